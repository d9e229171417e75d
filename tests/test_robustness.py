"""Trainings that are killed, and trainings beside each other."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import read_metrics, start
from tests.kill import kills

Flags = Callable[..., list[str]]


def test_a_killed_training_goes_on_as_if_nothing_had_happened() -> None:
    """One rank, and a rank that saves. `python -m tests.kill` does more of it."""
    lines = list(kills(times=2, seed=0))
    assert len(lines) == 4
    assert lines[-1].startswith("2 trainings")


@pytest.mark.parametrize("same", [True, False], ids=["same_data", "different_data"])
def test_two_trainings_do_not_disturb_each_other(flags: Flags, damaged: Path, tmp_path: Path, same: bool) -> None:
    """Two ranks each, started together with their annotations still to be prepared, in one cache."""
    other = damaged / "lxmert" / "mscoco_train.json"
    if not same:
        other.write_text(other.read_text().replace("red", "blue"))
    before = set(os.listdir("/dev/shm"))
    cache = ["--cache_dir", str(tmp_path / "cache"), "--max_steps", "3", "--report_step", "1", "--num_workers", "1"]
    runs = []
    for name, data in (("one", []), ("two", ["--data_root", str(damaged)])):
        runs.append(start("launch/pretrain.py", flags(*data, *cache, "--output", str(tmp_path / name))))
    for run in runs:
        _, errors = run.communicate(timeout=200)
        assert run.returncode == 0, errors[-3000:]
    one, two = ([record["loss"] for record in read_metrics(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 3
    assert (one == two) == same
    assert len(list((tmp_path / "cache").iterdir())) == (2 if same else 3)  # the validation's is the same
    assert set(os.listdir("/dev/shm")) == before
