"""How long a report takes, and how large it is: of a very long run, and of runs that are named.

    python -m engine.benchmark.run.report --json report.json
    python -m engine.benchmark.run.report --runs snap/demo/stage_one snap/demo/vqa --json report.json

The long run has 200,000 lines in metrics.jsonl, as stage two reports them, and no model, so its report has no pictures
from held-out data; that of --runs has. launch/report.py is started as a user does, and its imports count.
"""

import argparse
import datetime
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine.benchmark.machine import describe
from engine.benchmark.step.workload import check_files, write_figures
from engine.distributed.leaving import telling_errors
from engine.errors import UserError

ROOT = Path(__file__).resolve().parents[3]
GOALS = {"seconds": 30.0, "megabytes": 3.0}
LINES_PER_EPOCH = 10_000


def records(lines: int) -> Iterator[dict[str, Any]]:
    """Losses that fall and swing, and a validation in place of every 10,000th report."""
    for number in range(1, lines + 1):
        step, epoch = 10 * number, number / LINES_PER_EPOCH
        told: dict[str, Any] = {"kind": "train", "epoch": epoch, "step": step, "loss": 0.0}
        for place, name in enumerate(("mask_lm", "matched", "qa")):
            loss = 0.2 + 0.8 / (1 + number / 1000) + 0.1 * math.sin(number * (place + 1))
            told |= {f"{name}_loss": loss, f"{name}_accuracy": 1 - loss / 2}
        told["loss"] = sum(told[f"{name}_loss"] for name in ("mask_lm", "matched", "qa"))
        if number % LINES_PER_EPOCH == 0:
            yield {**told, "kind": "valid", "epoch": int(epoch)}
            continue
        rates = {"grad_norm": 1 + told["loss"], "lr": 1e-4 * (1 - number / lines), "sgd_lr": 3e-3, "loss_scale": 1024.0}
        speed = {"images_per_second": 900 + number % 97, "samples_per_second": 1000.0, "seconds_per_step": 0.25}
        rest = {"data_wait": 0.01, "peak_memory_gb": 20.0, "skipped_steps": 0, "unreadable_images": 0}
        yield {**told, **rates, **speed, **rest, "seconds_left": lines - number}


def write_run(folder: Path, lines: int) -> None:
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(record) + "\n" for record in records(lines))


def measure(name: str, runs: list[str], flags: list[str], output: Path) -> dict[str, Any]:
    """One report.

    Raises:
        UserError: if the program fails.
    """
    command = [sys.executable, str(ROOT / "launch" / "report.py"), *runs, "--output", str(output), *flags]
    started = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if run.returncode != 0:
        raise UserError(f"{' '.join(command)} failed: {run.stderr.strip()[-2000:]}")
    return {"report": name, "seconds": seconds, "megabytes": (output / "report.html").stat().st_size / 1e6}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.run.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--lines", type=int, default=200_000, help="of the long run")
    parser.add_argument("--runs", nargs="+", default=[], metavar="RUN", help="folders of runs to report of together")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    with telling_errors():
        options = parse(arguments)
        if options.lines < 1:
            raise UserError(f"--lines {options.lines}: at least 1 is needed")
        check_files(options.json)
        with tempfile.TemporaryDirectory(prefix="clipvil-report-") as folder:
            write_run(Path(folder), options.lines)
            rows = [measure(f"{options.lines:,} lines", [folder], ["--no_pictures"], Path(folder, "long"))]
            if options.runs:
                rows.append(measure(" ".join(options.runs), options.runs, [], Path(folder, "named")))
        figures = {"date": datetime.date.today().isoformat(), "goals": GOALS, **describe("cpu"), "rows": rows}
        for row in rows:
            print(f"{row['report']}: {row['seconds']:.1f} s, {row['megabytes']:.2f} MB")
        print(f"the goals are {GOALS['seconds']:g} s and {GOALS['megabytes']:g} MB")
        write_figures(options.json, figures)


if __name__ == "__main__":
    main()
