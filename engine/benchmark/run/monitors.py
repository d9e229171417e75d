"""Steps per second with TensorBoard, CSV files and W&B on, over those with them off.

    python -m engine.benchmark.run.monitors --json monitors.json            DS_ACCELERATOR=cpu where there is a GPU

One process trains the demo's model with the reports of a training, in windows of steps that have the monitors on and
off in turns. W&B is offline, as no network is to be measured. Reports are of every 20 micro-batches, a tenth of the
default of --report_step, and of each, which is the hardest case.
"""

import argparse
import contextlib
import datetime
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

from engine.benchmark.machine import describe, seconds_of
from engine.benchmark.step.ours import Ours
from engine.benchmark.step.workload import Workload, check_files, write_figures
from engine.data.loading import Batch
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig
from engine.training.loop import TrainState
from engine.training.observers.reporter import Reporter
from engine.training.reports.listener import Listener
from engine.training.reports.monitors import Monitors

MODEL = Workload("tiny", layers=3, hidden_size=128, sub_feat_num=5, height=64, width=96, dtype="fp32")  # the demo's
SENTENCES = 32
TOOLS = ("tensorboard", "csv", "wandb")
GOAL = 0.98


class Timed(Listener):
    """Monitors, and the seconds that training waited for them at each report: what the noise of windows may hide."""

    def __init__(self, monitors: Monitors) -> None:
        self.monitors = monitors
        self.seconds: list[float] = []

    def hear(self, record: Mapping[str, Any]) -> None:
        self.seconds.append(seconds_of(lambda: self.monitors.hear(record), "cpu"))


class Epoch:
    """Of a training's loader, what a report asks for."""

    batch_sampler = range(1_000_000)
    seconds = 0.0  # nobody waits for it

    def __len__(self) -> int:
        return len(self.batch_sampler)


class Training:
    """Steps with reports; the listeners of each window hear them."""

    def __init__(self, ours: Ours, output: Path, report_step: int) -> None:
        config = PretrainConfig(output=str(output), report_step=report_step)
        self.ours, self.state = ours, TrainState()
        self.reporter = Reporter(ours.engine, config, Epoch(), ours.metrics)  # type: ignore[arg-type]
        self.batch = Batch(ours.batch.inputs, ours.batch.numbers, [])

    def window(self, steps: int, listeners: list[Listener]) -> None:
        self.reporter.listeners = listeners
        for _ in range(steps):
            self.ours.step()
            self.state.batches += 1
            self.state.step += 1
            self.reporter.after_micro_step(self.state, self.batch, at_boundary=True)


@dataclass
class Seconds:
    """Of a step, in each window: until it has ended, and of this process's own work, which others slow down less."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def time(self, window: Callable[[], None], steps: int, device: str) -> None:
        before = time.process_time()
        self.wall.append(seconds_of(window, device) / steps)
        self.cpu.append((time.process_time() - before) / steps)


def compare(rounds: int, time_on: Callable[[], None], time_off: Callable[[], None]) -> None:
    """Windows in turns; each kind is the first one in every other round."""
    for number in range(rounds):
        both = [time_off, time_on]
        for each in both if number % 2 else reversed(both):
            each()


def ratio(off: list[float], on: list[float]) -> float:
    """Steps per second with monitors over those without: rounds are compared one by one."""
    return statistics.median(before / after for before, after in zip(off, on, strict=True))


def measure(ours: Ours, report_step: int, rounds: int, steps: int, device: str) -> dict[str, Any]:
    """Figures for one --report_step, in seconds of a step."""
    with contextlib.ExitStack() as stack:
        output = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="clipvil-monitors-")))
        stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
        stack.enter_context(patch.dict(os.environ, WANDB_MODE="offline", WANDB_SILENT="true"))
        monitors = stack.enter_context(Monitors({name: {} for name in TOOLS}, output))
        if missing := set(TOOLS) - monitors.open.keys():
            raise UserError(f"{', '.join(sorted(missing))} can't be opened; install what `.[monitor]` names")
        training = Training(ours, output, report_step)

        timed = Timed(monitors)
        training.window(steps, [timed])  # warm
        timed.seconds.clear()
        on, off = Seconds(), Seconds()
        compare(
            rounds,
            lambda: on.time(lambda: training.window(steps, [timed]), steps, device),
            lambda: off.time(lambda: training.window(steps, []), steps, device),
        )
        if missing := set(TOOLS) - monitors.open.keys():
            raise UserError(f"{', '.join(sorted(missing))} failed while it was measured; look at the warning")
    return {
        "report_step": report_step,
        "on": asdict(on),
        "off": asdict(off),
        "report": statistics.median(timed.seconds),
        "ratio": ratio(off.wall, on.wall),
        "ratio_of_cpu_time": ratio(off.cpu, on.cpu),
    }


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.run.monitors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report_step", type=int, nargs="+", default=[20, 1], help="micro-batches between reports")
    parser.add_argument("--rounds", type=int, default=20, help="windows of each kind")
    parser.add_argument("--steps", type=int, default=20, help="steps of a window; a multiple of --report_step")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser.parse_args(arguments)


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError, naming the flag to change."""
    if options.rounds < 1 or any(step < 1 or options.steps % step for step in options.report_step):
        raise UserError("--rounds has to be 1 or more, and --steps a multiple of each --report_step")
    check_files(options.json)


def main(arguments: list[str] | None = None) -> None:
    with telling_errors():
        options = parse(arguments)
        check_options(options)
        ranks = Ranks.from_environment()
        device = pick_device(ranks)
        join()
        ours = Ours(MODEL.model(), MODEL.batch(SENTENCES), MODEL.config(SENTENCES), device)
        rows = [measure(ours, step, options.rounds, options.steps, device.type) for step in options.report_step]
        figures = {
            "date": datetime.date.today().isoformat(),
            "goal": GOAL,
            "steps": options.steps,
            **describe(device.type),
            "rows": rows,
        }
        show(figures)
        write_figures(options.json, figures)
        dist.destroy_process_group()


def show(figures: dict[str, Any]) -> None:
    print(f"{figures['device_name']}: steps per second with {', '.join(TOOLS)} over those without; {GOAL} is the goal")
    for row in figures["rows"]:
        on, off = (1000 * statistics.median(row[name]["wall"]) for name in ("on", "off"))
        print(
            f"a report of every {row['report_step']} micro-batches: a step takes {off:.1f} ms, with monitors {on:.1f}; "
            f"ratio {row['ratio']:.4f}, of the process's own time {row['ratio_of_cpu_time']:.4f}; "
            f"it waits {1000 * row['report']:.2f} ms for a report"
        )


if __name__ == "__main__":
    main()
