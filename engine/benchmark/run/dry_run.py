"""How well a dry run predicts the seconds of a step and the peak memory of the training that follows it.

    python -m engine.benchmark.run.dry_run --json dry_run.json              the demo's model: two minutes
    python -m engine.benchmark.run.dry_run --full --json dry_run.json       RN50 and 12 layers, 2 images: a quarter hour

Drawn data are trained on from random weights. Each round starts launch/pretrain.py twice, as a user does: with
--dry_run, and for --steps steps. The training's seconds of a step are the median of its reports, of which the first is
left out; its memory is that of its last report.
"""

import argparse
import datetime
import json
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from engine.benchmark.machine import describe
from engine.benchmark.step.workload import check_files, write_figures
from engine.distributed.leaving import telling_errors
from engine.errors import UserError
from engine.synthetic.demo import write_demo

ROOT = Path(__file__).resolve().parents[3]
BERT = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = ["--batchSize", "16"]
FULL = ["--clip_model_name", "RN50", "--image_size_min", "384", "--image_size_max", "640", "--batchSize", "2"]
FULL += ["--sub_feat_num", "100", "--pos_num", "25"]
GOAL = 0.15  # of what is measured


def program(root: Path, output: Path, flags: list[str], ranks: int) -> list[str]:
    """The command of a training on the drawn data."""
    launcher = [sys.executable]
    if ranks > 1:
        launcher += ["-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    common = ["--recipe", "demo_stage_one", "--data_root", str(root), "--bert", str(root / "bert"), "--valid", ""]
    return [*launcher, str(ROOT / "launch" / "pretrain.py"), *common, "--output", str(output), *flags]


def start(command: list[str]) -> str:
    """What it prints.

    Raises:
        UserError: if it fails.
    """
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise UserError(f"{' '.join(command)} failed: {run.stderr.strip()[-2000:]}")
    return run.stdout


def predicted(told: str) -> tuple[float, float]:
    """Seconds of a step and GB at the peak, as a dry run tells them."""
    step = re.search(r"^  step +([\d.e-]+) s,", told, re.MULTILINE)
    memory = re.search(r"^  memory +([\d.e-]+) GB", told, re.MULTILINE)
    assert step is not None, told
    assert memory is not None, told
    return float(step[1]), float(memory[1])


def measured(output: Path) -> tuple[float, float]:
    """The same of a training, from its reports."""
    lines = (output / "metrics.jsonl").read_text().splitlines()
    reports = [record for record in map(json.loads, lines) if record["kind"] == "train"]
    return statistics.median(report["seconds_per_step"] for report in reports[1:]), reports[-1]["peak_memory_gb"]


def run(options: argparse.Namespace) -> dict[str, Any]:
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        root, output = Path(folder, "data"), Path(folder, "run")
        write_demo(root, train_scenes=400, valid_scenes=4, seed=0)
        if options.full:
            path = root / "bert" / "config.json"
            path.write_text(json.dumps({**json.loads(path.read_text()), **BERT}))
        size = FULL if options.full else SMALL
        for number in range(options.rounds):
            told = start(program(root, output / str(number), [*size, "--dry_run"], options.ranks))
            steps = ["--max_steps", str(options.steps), "--report_step", "5"]
            start(program(root, output / str(number), [*size, *steps], options.ranks))
            (seconds, memory), (step, peak) = predicted(told), measured(output / str(number))
            rounds.append({"step": seconds / step, "memory": memory / peak, "seconds_per_step": step, "peak_gb": peak})
            print(f"round {number + 1}: predicted over measured: step {seconds / step:.3f}, memory {memory / peak:.3f}")
    medians = {name: statistics.median(each[name] for each in rounds) for name in ("step", "memory")}
    return {
        "date": datetime.date.today().isoformat(),
        "size": "full" if options.full else "small",
        "ranks": options.ranks,
        "steps": options.steps,
        **describe("cpu"),
        "rounds": rounds,
        "predicted_over_measured": medians,
        "goal": GOAL,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.run.dry_run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--full", action="store_true", help="RN50 and 12 layers instead of the demo's model")
    parser.add_argument("--ranks", type=int, default=1, help="ranks of this machine")
    parser.add_argument("--steps", type=int, default=50, help="of the training that follows the dry run")
    parser.add_argument("--rounds", type=int, default=3, help="dry runs and trainings; the median is told")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    options = parser.parse_args(arguments)
    with telling_errors():
        for name in ("ranks", "steps", "rounds"):
            if getattr(options, name) < 1 + 10 * (name == "steps"):
                raise UserError(
                    f"--{name} {getattr(options, name)}: {'11' if name == 'steps' else '1'} or more is needed"
                )
        check_files(options.json)
        report = run(options)
        medians = report["predicted_over_measured"]
        print(f"median: step {medians['step']:.3f}, memory {medians['memory']:.3f}; 1 is exact, 0.85 to 1.15 the goal")
        write_figures(options.json, report)


if __name__ == "__main__":
    main()
