"""Pre-train a tiny CLIP-ViL on drawn scenes, fine-tune it to answer questions, and test both on scenes it never saw.

    make demo
    make demo TASKS=all

1. draw the data set               data/demo
2. stage one, stage two            deepspeed --num_gpus 2 launch/pretrain.py --recipe demo_stage_one (_two)
3. fine-tune                       deepspeed --num_gpus 2 launch/finetune.py --task vqa --recipe demo_vqa
   and the same from random weights, to see what pre-training is good for
4. predict                         deepspeed --num_gpus 2 launch/predict.py --task vqa --load snap/demo/vqa/BEST ...
5. evaluate, with the images and blind (every image grey)
6. print, and write snap/demo/summary.json
7. report on all of these trainings   python launch/report.py snap/demo/stage_one ... --output snap/demo/report

3 to 5 are done for each of --tasks: vqa alone if not given, else vqa,gqa,snli_ve or some of them.
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

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported

# isort: split
from transformers.hf_argparser import HfArg

from engine.commands import IN_CHECKOUT, ROOT
from engine.configuration.parsing import parse, parse_command
from engine.data.annotations.questions.official_gqa import OFFICIAL_FOLDER
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.synthetic.command import DrawingConfig, prepare_demo
from engine.synthetic.held_out import evaluate_held_out, predict_blind
from engine.tasks.named import TASKS
from engine.tasks.pretraining import PretrainConfig
from engine.training.program import RECIPES

SAMPLES_PER_STEP = 64  # on any number of ranks: two of them without accumulation, one with
# Of each task, how fine-tuning takes the weights of stage two, and the split of the held-out scenes.
FINE_TUNING = {
    "vqa": ("--load_lxmert_qa", "minival"),
    "gqa": ("--load_lxmert_qa", "testdev"),
    "snli_ve": ("--load_lxmert", "test"),
}


@dataclass
class DemoConfig(DrawingConfig):
    """The demo's own flags; those of the training are in launch/recipes/demo_stage_{one,two}.yaml."""

    output: str = HfArg(default="snap/demo", help="folder for checkpoints and summary.json")
    stage_one: str = HfArg(default="", help="more flags for stage one, in one string")
    stage_two: str = HfArg(default="", help="more flags for stage two, in one string")
    tasks: str = HfArg(default="vqa", help=f"which of {', '.join(FINE_TUNING)} to fine-tune on, or all")
    vqa: str = HfArg(default="", help="more flags for fine-tuning on VQA, in one string")
    gqa: str = HfArg(default="", help="more flags for fine-tuning on GQA, in one string")
    snli_ve: str = HfArg(default="", help="more flags for fine-tuning on visual entailment, in one string")

    @property
    def chosen_tasks(self) -> list[str]:
        """Raises UserError if there is no such task."""
        chosen = list(FINE_TUNING) if self.tasks == "all" else self.tasks.split(",")
        if unknown := [name for name in chosen if name not in FINE_TUNING]:
            raise UserError(f"--tasks {self.tasks}: {unknown[0]!r} is none of {', '.join(FINE_TUNING)}, all")
        return chosen


def run_program(name: str, flags: list[str]) -> None:
    """A training or a prediction on up to two ranks, under the launcher where there are two."""
    from deepspeed.accelerator import get_accelerator  # here, behind engine, which keeps it quiet

    accelerator = get_accelerator()
    ranks = 2 if accelerator.device_name() == "cpu" else min(2, accelerator.device_count())
    run_python([*(launcher(ranks) if ranks > 1 else []), *words(name, "--module" if ranks > 1 else "-m"), *flags])


def words(name: str, module: str = "-m") -> list[str]:
    """What names a program behind `python`, or behind a launcher that takes modules with this flag."""
    return [str(ROOT / "launch" / f"{name}.py")] if IN_CHECKOUT else [module, f"launch.{name}"]


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
        name = next(Path(word).name for word in command if word.endswith(".py") or word.startswith("launch."))
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


def fine_tune(config: DemoConfig, name: str, stage_two: str) -> dict[str, float]:
    """Fine-tune on a task, from the weights of stage two and from random ones; scores on held-out scenes."""
    started = time.monotonic()
    flag, test = FINE_TUNING[name]
    scores: dict[str, float] = {}
    for suffix, start in (("", [flag, stage_two]), ("_from_scratch", [flag, "", "--fromScratch"])):
        output = f"{config.output}/{name}{suffix}"
        shutil.rmtree(output, ignore_errors=True)  # an earlier demo's
        recipe = ["--recipe", f"demo_{name}", *training_flags(config), *start, "--output", output]
        run_program("finetune", ["--task", name, *recipe, *getattr(config, name).split()])
        model = ["--load", f"{output}/BEST", "--test", test, "--data_root", config.data_root, "--num_workers=1"]
        run_program("predict", ["--task", name, *model, *official_files(config, name, test)])
        scores[f"{name}_accuracy{suffix}"] = float(json.loads(Path(output, f"{test}_score.json").read_text())["score"])
    scores[f"{name}_accuracy_blind"] = predict_blind(
        TASKS[name], f"{config.output}/{name}/BEST", config.data_root, test
    )
    scores[f"{name}_seconds"] = round(time.monotonic() - started, 1)
    return scores


def official_files(config: DemoConfig, name: str, test: str) -> list[str]:
    """What GQA's own measures take; nothing for other tasks."""
    if name != "gqa":
        return []
    begin = Path(config.data_root, OFFICIAL_FOLDER, test)
    return ["--official_questions", f"{begin}_balanced_questions.json", "--official_choices", f"{begin}_choices.json"]


@launch.program
def main() -> None:
    started = time.monotonic()
    config = parse_command(DemoConfig, sys.argv[1:])
    common, tasks = training_flags(config), config.chosen_tasks
    Ranks.check_alone()
    prepare_demo(config)
    stage_one, stage_two = (f"{config.output}/{name}" for name in ("stage_one", "stage_two"))
    for stage in (stage_one, stage_two):
        shutil.rmtree(stage, ignore_errors=True)  # an earlier demo's
    first = ["--recipe", "demo_stage_one", *common, "--output", stage_one, *config.stage_one.split()]
    run_program("pretrain", first)
    second = ["--recipe", "demo_stage_two", *common, "--load", stage_one, "--output", stage_two]
    run_program("pretrain", [*second, *config.stage_two.split()])
    flags = ["--recipe", f"{stage_two}/config.yaml", "--load", stage_two]
    summary = evaluate_held_out(parse(PretrainConfig, flags, RECIPES)[0])

    for name in tasks:
        summary |= fine_tune(config, name, stage_two)
    summary["seconds"] = round(time.monotonic() - started, 1)
    Path(config.output, "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print("\non held-out scenes     with images   blind")
    for name in ("masked_word_accuracy", "matched_accuracy", "qa_accuracy", *(f"{name}_accuracy" for name in tasks)):
        print(f"{name:<22} {summary[name]:<13.3f} {summary[name + '_blind']:.3f}")
    for name in tasks:
        print(f"{name}_accuracy without pre-training: {summary[f'{name}_accuracy_from_scratch']:.3f}")
    print(f"{summary['seconds']:.0f} seconds; {config.output}/summary.json")
    fine_tuned = [f"{config.output}/{name}{suffix}" for name in tasks for suffix in ("", "_from_scratch")]
    run_python([*words("report"), stage_one, stage_two, *fine_tuned, "--output", f"{config.output}/report"])


if __name__ == "__main__":
    main()
