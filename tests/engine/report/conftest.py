"""Runs without a training: their files, as one writes them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

FINISHED = {
    "start": "2026-01-01T10:00:00+00:00",
    "end": "2026-01-01T11:00:00+00:00",
    "exit": "finished",
    "seconds": 3600.0,
    "step": 40,
    "command": {"argv": ["launch/finetune.py", "--task", "gqa"]},
    "configuration": {"train": "train", "valid": "testdev", "epochs": 2, "lr": 1e-4, "clip_model_name": "RN50"},
    "deepspeed": {"train_batch_size": 32},
    "code": {"commit": "0123456789abcdef", "clean": True},
    "hosts": {"one": {"cpu": "a CPU", "ranks": [0, 1], "gpus": []}},
}


def train(step: int, loss: float, **more: Any) -> dict[str, Any]:
    speed = {"samples_per_second": 10.0, "images_per_second": 10.0, "seconds_per_step": 0.1, "data_wait": 0.01}
    rates = {"lr": 1e-4, "sgd_lr": 1e-2, "grad_norm": 1.0, "loss_scale": 1.0}
    return {"kind": "train", "epoch": step / 20, "step": step, "loss": loss, "qa_loss": loss, **rates, **speed, **more}


def valid(step: int, score: float, **more: Any) -> dict[str, Any]:
    by_type = {"answer_type": {"yes/no": {"score": score}}}
    return {"kind": "valid", "epoch": step // 20, "step": step, "loss": 1 - score, "score": score, **by_type, **more}


RECORDS = [train(10, 3.0), train(20, 2.0), valid(20, 0.25), train(30, 1.5), train(40, 1.25), valid(40, 0.5)]


def write_run(folder: Path, records: Iterable[Any] = RECORDS, **start: Any) -> Path:
    """A folder of a run; records that are texts are lines as they are."""
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"starts": [FINISHED | start]}))
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder
