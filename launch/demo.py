"""Pre-train a tiny CLIP-ViL on drawn scenes, fine-tune it to answer questions, and test both on scenes it never saw.

    make demo

1. draw the data set               data/demo
2. stage one, stage two            deepspeed --num_gpus 2 launch/pretrain.py --recipe demo_stage_one (_two)
3. fine-tune                       deepspeed --num_gpus 2 launch/finetune_vqa.py --recipe demo_vqa
   and the same from random weights, to see what pre-training is good for
4. predict                         deepspeed --num_gpus 2 launch/predict_vqa.py --load snap/demo/vqa/BEST --test minival
5. evaluate, with the images and blind (every image grey)
6. print, and write snap/demo/summary.json
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import launch  # noqa: F401  says what isn't installed, before anything else is imported

# isort: split
from deepspeed.accelerator import get_accelerator
from transformers.hf_argparser import HfArg

from engine.checkpoint.manifest import complete_checkpoints
from engine.configuration.parsing import parse, parse_command
from engine.distributed.leaving import exit_with
from engine.errors import UserError
from engine.synthetic.command import DrawingConfig, prepare_demo
from engine.synthetic.held_out import evaluate_held_out, predict_blind
from engine.tasks.pretraining import PretrainConfig
from engine.training.program import RECIPES

ROOT = Path(__file__).resolve().parent.parent
SAMPLES_PER_STEP = 64  # on any number of ranks: two of them without accumulation, one with


@dataclass
class DemoConfig(DrawingConfig):
    """The demo's own flags; those of the training are in launch/recipes/demo_stage_{one,two}.yaml."""

    output: str = HfArg(default="snap/demo", help="folder for checkpoints and summary.json")
    stage_one: str = HfArg(default="", help="more flags for stage one, in one string")
    stage_two: str = HfArg(default="", help="more flags for stage two, in one string")
    vqa: str = HfArg(default="", help="more flags for fine-tuning, in one string")


def run_program(name: str, flags: list[str]) -> None:
    """A program of launch/ on up to two ranks, under the launcher where there are two."""
    accelerator = get_accelerator()
    ranks = 2 if accelerator.device_name() == "cpu" else min(2, accelerator.device_count())
    run_python([*(launcher(ranks) if ranks > 1 else []), program(name), *flags])


def program(name: str) -> str:
    return str(ROOT / "launch" / name)


def run_python(command: list[str], *, may_end_with: int = 0, variables: Mapping[str, str] | None = None) -> None:
    """Print a command and run it, its output passed through.

    Args:
        may_end_with: a code beside 0 that is no failure.
        variables: of the environment, to add to this process's.

    Raises:
        UserError: if it fails; its own message stands above.
    """
    variables = variables or {}
    assigned = [f"{name}={shlex.quote(value)}" for name, value in variables.items()]
    print("\n$ " + " ".join([*assigned, "python", shlex.join(command)]), flush=True)
    code = subprocess.run([sys.executable, *command], check=False, env={**os.environ, **variables}).returncode
    if code not in (0, may_end_with):
        name = next(Path(word).name for word in command if word.endswith(".py"))
        raise UserError(f"{name} ended with code {code}; the reason stands above")


def launcher(ranks: int) -> list[str]:
    """What `deepspeed` does, as a module: that script isn't everywhere where DeepSpeed can be imported."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return ["-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks), "--master_port", str(port)]


def training_flags(config: DrawingConfig) -> list[str]:
    """What all of its trainings take beside their recipe."""
    data = ["--data_root", config.data_root, "--bert", f"{config.data_root}/bert"]
    return [*data, "--global_batch_size", str(SAMPLES_PER_STEP)]


def predict_held_out(model: str, data_root: str) -> float:
    """The score of a fine-tuned model on the held-out scenes' questions, by launch/predict_vqa.py."""
    run_program("predict_vqa.py", ["--load", model, "--test", "minival", "--data_root", data_root, "--num_workers=1"])
    return float(json.loads(Path(model).with_name("minival_score.json").read_text())["score"])


def main() -> None:
    started = time.monotonic()
    try:
        config = parse_command(DemoConfig, "demo.py", sys.argv[1:])
        common = training_flags(config)
        prepare_demo(config)
        names = ("stage_one", "stage_two", "vqa", "vqa_from_scratch")
        stage_one, stage_two, vqa, from_scratch = (f"{config.output}/{name}" for name in names)
        for stage in (stage_one, stage_two, vqa, from_scratch):
            shutil.rmtree(stage, ignore_errors=True)  # an earlier demo's
        first = ["--recipe", "demo_stage_one", *common, "--output", stage_one, *config.stage_one.split()]
        run_program("pretrain.py", first)
        second = ["--recipe", "demo_stage_two", *common, "--load", last_checkpoint(stage_one), "--output", stage_two]
        run_program("pretrain.py", [*second, *config.stage_two.split()])
        flags = ["--recipe", f"{stage_two}/config.yaml", "--load", last_checkpoint(stage_two)]
        summary = evaluate_held_out(parse(PretrainConfig, flags, RECIPES)[0])

        pretrained = time.monotonic()
        for output, start in (
            (vqa, ["--load_lxmert_qa", last_checkpoint(stage_two)]),
            (from_scratch, ["--load_lxmert_qa", "", "--fromScratch"]),
        ):
            recipe = ["--recipe", "demo_vqa", *common, *start, "--output", output]
            run_program("finetune_vqa.py", [*recipe, *config.vqa.split()])
        summary["vqa_accuracy"] = predict_held_out(f"{vqa}/BEST", config.data_root)
        summary["vqa_accuracy_blind"] = predict_blind(f"{vqa}/BEST", config.data_root)
        summary["vqa_accuracy_from_scratch"] = predict_held_out(f"{from_scratch}/BEST", config.data_root)
        summary["vqa_seconds"] = round(time.monotonic() - pretrained, 1)
    except UserError as error:
        exit_with(error)
    summary["seconds"] = round(time.monotonic() - started, 1)
    Path(config.output, "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print("\non held-out scenes     with images   blind")
    for name in ("masked_word_accuracy", "matched_accuracy", "qa_accuracy", "vqa_accuracy"):
        print(f"{name:<22} {summary[name]:<13.3f} {summary[name + '_blind']:.3f}")
    print(f"vqa_accuracy without pre-training: {summary['vqa_accuracy_from_scratch']:.3f}")
    print(f"{summary['seconds']:.0f} seconds; {config.output}/summary.json")


def last_checkpoint(folder: str) -> str:
    return str(complete_checkpoints(Path(folder))[0])


if __name__ == "__main__":
    main()
