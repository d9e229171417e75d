"""The trainings that are ended at random moments, and what each of them has to come to."""

import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.manifest import complete_checkpoints, read_manifest, verify
from engine.synthetic.demo import write_demo
from tests.conftest import TINY_BERT, launch, start

SAVE_STEP, KEEP = 2, 2
# Of a report, what differs from run to run; so do warnings, some of which are about speed.
SPEEDS = ("images_per_second", "samples_per_second", "seconds_per_step", "seconds_left", "data_wait", "peak_memory_gb")
TIMES = ("time", "seconds", *SPEEDS)


class Training:
    """A command that is started again and again until it gets to its end, and what it has to come to."""

    def __init__(self, folder: Path, repeats: int, flags: list[str]) -> None:
        self.root = folder
        self.output = folder / "run"
        write_data(folder, repeats)
        common = ["--recipe", "demo_stage_one", "--data_root", str(folder), "--bert", str(folder / "bert")]
        common += ["--report_step", "1", "--num_workers", "2", "--batchSize", "8", "--save_step", str(SAVE_STEP)]
        self.flags = [*common, "--keep", str(KEEP), *flags]
        self.whole = self.run_to_the_end(folder / "undisturbed")
        self.curve = read_curve(folder / "undisturbed")
        self.files = files(folder / "undisturbed")
        self.weights = read_weights(folder / "undisturbed")

    def flags_for(self, output: Path) -> list[str]:
        return [*self.flags, "--output", str(output), "--resume", "auto"]

    def start(self, launcher: str = "deepspeed", *, resumes: bool = True) -> "subprocess.Popen[str]":
        flags = self.flags_for(self.output) if resumes else [*self.flags, "--output", str(self.output)]
        return start("launch/pretrain.py", flags, launcher=launcher)

    def run_to_the_end(self, output: Path, launcher: str = "deepspeed") -> float:
        """Seconds that it takes."""
        started = time.monotonic()
        run = launch("launch/pretrain.py", self.flags_for(output), launcher=launcher, timeout=180)
        assert run.code == 0, f"a training ended with code {run.code}:\n{run.stderr[-3000:]}"
        return time.monotonic() - started

    def has_ended(self) -> bool:
        latest = self.output / "latest"
        return (
            latest.exists()
            and (self.output / f"{latest.read_text()}_LXRT.pth").exists()
            and (len(read_curve(self.output)) == len(self.curve))
        )

    def check_the_end(self) -> None:
        """Let it come there if it hasn't, compare with the undisturbed one, and begin anew."""
        self.run_to_the_end(self.output, launcher="warm")  # whatever starts it, it has to be the same
        curve = read_curve(self.output)
        differing = [(ours, theirs) for ours, theirs in zip(curve, self.curve, strict=False) if ours != theirs]
        assert curve == self.curve, f"{len(curve)} of {len(self.curve)} reports, first difference: {differing[:1]}"
        weights = read_weights(self.output)
        assert set(weights) == set(self.weights)
        assert all(torch.equal(weights[name], self.weights[name]) for name in weights)
        assert files(self.output) == self.files
        assert len(complete_checkpoints(self.output)) == KEEP
        shutil.rmtree(self.output)

    def steps(self) -> tuple[int, int]:
        """Optimiser steps that were reported, and those of the newest checkpoint, which has to be whole."""
        saved = complete_checkpoints(self.output)
        if saved:
            verify(saved[0])
        reported = [record["step"] for record in read_curve(self.output)]
        return max(reported, default=0), read_manifest(saved[0])["step"] if saved else 0


def write_data(root: Path, repeats: int) -> None:
    """A few scenes, perhaps many sentences, and a small BERT with dropout."""
    write_demo(root, train_scenes=40, valid_scenes=5, seed=1)
    config = json.loads((root / "bert" / "config.json").read_text())
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (root / "bert" / "config.json").write_text(json.dumps({**config, **TINY_BERT, **dropout}))
    path = root / "lxmert" / "mscoco_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * repeats))


def read_curve(output: Path) -> list[dict[str, Any]]:
    """Reports and validations, without times."""
    lines = (output / "metrics.jsonl").read_text().splitlines() if (output / "metrics.jsonl").exists() else []
    records = [record for line in lines if (record := json.loads(line))["kind"] != "warning"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def read_weights(output: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(output / f"{(output / 'latest').read_text()}_LXRT.pth", weights_only=True))


def files(output: Path) -> set[str]:
    """Without the numbers of steps: a training that was asked to stop saved at other ones."""
    return {re.sub(r"Step\d+", "Step", str(path.relative_to(output))) for path in output.rglob("*")}
