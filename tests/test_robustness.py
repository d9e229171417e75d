"""Trainings that are killed, and trainings beside each other."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import in_shared_memory, launch, left_in_shared_memory, read_metrics
from tests.kill.rounds import rounds

Flags = Callable[..., list[str]]


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_nothing_had_happened() -> None:
    """Two of the ways in which it may be disturbed. `python -m tests.kill` goes through all of them."""
    lines = list(rounds(times=2, seed=0, names=("a rank that saves", "two starts")))
    assert lines[-2] == "a rank that saves 1, two starts 1"
    assert "came to their end" in lines[-1]


@pytest.mark.parametrize(
    "same", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["same_data", "different_data"]
)
def test_two_trainings_do_not_disturb_each_other(flags: Flags, damaged: Path, tmp_path: Path, same: bool) -> None:
    """Two ranks each, started together with their annotations still to be prepared, in one cache."""
    other = damaged / "lxmert" / "mscoco_train.json"
    if not same:
        other.write_text(other.read_text().replace("red", "blue"))
    before = in_shared_memory()
    cache = ["--cache_dir", str(tmp_path / "cache"), "--max_steps", "3", "--report_step", "1", "--num_workers", "1"]
    commands = [
        flags(*data, *cache, "--output", str(tmp_path / name))
        for name, data in (("one", []), ("two", ["--data_root", str(damaged)]))
    ]
    with ThreadPoolExecutor() as pool:
        for run in pool.map(lambda command: launch("launch/pretrain.py", command, launcher="warm"), commands):
            assert run.code == 0, run.stderr[-3000:]
    one, two = ([record["loss"] for record in read_metrics(tmp_path / name)] for name in ("one", "two"))
    assert len(one) == 3
    assert (one == two) == same
    assert len(list((tmp_path / "cache").iterdir())) == (2 if same else 3)  # the validation's is the same
    assert left_in_shared_memory(before) == set()
