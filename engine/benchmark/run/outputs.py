"""DeepSpeed's own times of a step beside ours, and what it costs that DeepSpeed sees the model's outputs.

    python -m engine.benchmark.run.outputs --json outputs.json              DS_ACCELERATOR=cpu where there is a GPU

First, launch/pretrain.py trains the demo's model on drawn data with `wall_clock_breakdown`. For each report, the times
that DeepSpeed prints of its forward pass, backward pass and step are added up and divided by our seconds of a step,
less the wait for data. Then one process takes steps without any such setting. Windows of steps whose outputs DeepSpeed
sees, so that it prepares each backward pass, take turns with windows in which they are plain objects, as they were. A
window is a single step: what slows the machine down for a while then slows both kinds.
"""

import argparse
import datetime
import json
import re
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from engine.benchmark.machine import describe
from engine.benchmark.run.dry_run import SMALL, program, start
from engine.benchmark.run.monitors import MODEL, Seconds, compare, ratio
from engine.benchmark.step.ours import Ours
from engine.benchmark.step.workload import check_files, write_figures
from engine.configuration.deepspeed import DS_CONFIGS
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.model import pretraining
from engine.synthetic.demo import write_demo

REPORT_STEP = 5
TIMES = re.compile(r"\| fwd: ([\d.]+) \| bwd: ([\d.]+) .*\| step: ([\d.]+)$", re.MULTILINE)  # of a step, in ms
AGREEMENT = 0.1  # the share of our seconds by which DeepSpeed's may differ
GOAL = 0.99  # of the steps per second with outputs that DeepSpeed doesn't see


def timed_training(ranks: int, steps: int) -> list[float]:
    """DeepSpeed's seconds of a step over ours, for each report but the first."""
    with tempfile.TemporaryDirectory(prefix="clipvil-outputs-") as folder:
        root, output, own = Path(folder, "data"), Path(folder, "run"), Path(folder, "own.json")
        write_demo(root, train_scenes=400, valid_scenes=4, seed=0)
        settings = json.loads((DS_CONFIGS / "zero2_fp32.json").read_text())
        own.write_text(json.dumps({**settings, "wall_clock_breakdown": True}))
        flags = ["--max_steps", str(steps), "--report_step", str(REPORT_STEP), "--deepspeed_config", str(own)]
        printed = start(program(root, output, [*SMALL, *flags], ranks))
        records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return theirs_over_ours(printed, [record for record in records if record["kind"] == "train"])


def theirs_over_ours(printed: str, reports: Sequence[dict[str, Any]]) -> list[float]:
    """For each report but the first, whose steps warm up.

    Args:
        printed: by a training with `wall_clock_breakdown`: a line with the times of each step.
        reports: of the same training, from its metrics.jsonl.
    """
    theirs = [sum(map(float, times)) / 1000 for times in TIMES.findall(printed)]
    return [
        statistics.mean(theirs[before["step"] : now["step"]]) / (now["seconds_per_step"] * (1 - now["data_wait"]))
        for before, now in pairwise(reports)
    ]


def cost(sentences: int, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds of a step with outputs that DeepSpeed sees, and with such that it doesn't see."""
    device = pick_device(Ranks.from_environment())
    join()
    ours = Ours(MODEL.model(), MODEL.batch(sentences), MODEL.config(sentences), device)
    seen, hidden = Seconds(), Seconds()

    def window() -> None:
        for _ in range(steps):
            ours.step()

    def time_hidden() -> None:
        with patch.object(pretraining, "PretrainingOutput", SimpleNamespace):
            hidden.time(window, steps, device.type)

    window()  # warm
    compare(rounds, lambda: seen.time(window, steps, device.type), time_hidden)
    dist.destroy_process_group()
    return {
        **describe(device.type),
        "sentences": sentences,
        "steps": steps,
        "seen": asdict(seen),
        "hidden": asdict(hidden),
        "ratio": ratio(hidden.wall, seen.wall),
        "ratio_of_cpu_time": ratio(hidden.cpu, seen.cpu),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.run.outputs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--ranks", type=int, default=1, help="of the training with DeepSpeed's times")
    parser.add_argument("--max_steps", type=int, default=100, help="of this training")
    parser.add_argument("--sentences", type=int, default=8, help="of each step in the windows")
    parser.add_argument("--rounds", type=int, default=600, help="windows of each kind")
    parser.add_argument("--steps", type=int, default=1, help="steps of a window")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError, naming the flag to change."""
    least = {"ranks": 1, "max_steps": 2 * REPORT_STEP, "sentences": 1, "rounds": 1, "steps": 1}
    for name, number in least.items():
        if getattr(options, name) < number:
            raise UserError(f"--{name} {getattr(options, name)}: {number} or more is needed")
    check_files(options.json)


def main(arguments: list[str] | None = None) -> None:
    with telling_errors():
        options = parse(arguments)
        check_options(options)
        times = timed_training(options.ranks, options.max_steps)
        print(
            f"DeepSpeed's times of a step over ours, in {len(times)} reports: median {statistics.median(times):.3f}, "
            f"{min(times):.3f} to {max(times):.3f}; within {AGREEMENT:.0%} is the goal",
            flush=True,
        )
        found = cost(options.sentences, options.rounds, options.steps)
        seen, hidden = (1000 * statistics.median(found[name]["wall"]) for name in ("seen", "hidden"))
        print(
            f"a step takes {hidden:.1f} ms with outputs that DeepSpeed doesn't see, {seen:.1f} with ours; steps per "
            f"second {found['ratio']:.4f} of before, by the process's own time {found['ratio_of_cpu_time']:.4f}; "
            f"{GOAL} is the goal"
        )
        figures = {"date": datetime.date.today().isoformat(), "ranks": options.ranks, "theirs_over_ours": times}
        write_figures(options.json, figures | {"agreement": AGREEMENT, "cost": found, "goal": GOAL})


if __name__ == "__main__":
    main()
