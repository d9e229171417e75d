"""Ten steps on two ranks, and the same ten with a resume after the fifth: their reports have to be equal.

    python -m tests.versions.training

Exits with 1 if they aren't, or if a command fails.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
STEPS = 10
COMPARED = ("step", "loss", "mask_lm_accuracy", "grad_norm", "lr", "sgd_lr")


def run(*command: str) -> None:
    print("$", *command, flush=True)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True)


def train(data: Path, output: Path, *more: str) -> None:
    run(
        *("-m", "deepspeed.launcher.runner", "--num_gpus", "2", "launch/pretrain.py", "--recipe", "demo_stage_one"),
        *("--data_root", str(data), "--bert", str(data / "bert"), "--batch_size", "4", "--report_step", "1"),
        *("--output", str(output), *more),
    )


def reports(output: Path) -> list[dict[str, Any]]:
    records = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [{name: each[name] for name in COMPARED} for each in records if each["kind"] == "train"]


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="clipvil-versions-") as name:
        folder = Path(name)
        data, whole, resumed = folder / "data", folder / "whole", folder / "resumed"
        run("launch/prepare.py", "demo", "--data_root", str(data), "--train_scenes", "100", "--valid_scenes", "8")
        train(data, whole, "--max_steps", str(STEPS))
        train(data, resumed, "--max_steps", str(STEPS // 2))
        train(data, resumed, "--max_steps", str(STEPS), "--resume", "auto")
        undisturbed, continued = reports(whole), reports(resumed)
    same = undisturbed == continued and [each["step"] for each in continued] == list(range(1, STEPS + 1))
    print(f"{len(continued)} steps, the last loss {continued[-1]['loss']!r}, undisturbed {undisturbed[-1]['loss']!r}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
