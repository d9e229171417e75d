"""Whether a run's checkpoints will fit, before it starts. What they really take: tests/launch/test_resume.py."""

import os
from pathlib import Path

import pytest

from engine.checkpoint import space
from engine.checkpoint.space import Files, check_space
from engine.errors import UserError

FILES = Files(state=1_000_000_000, weights=400_000_000)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """GB that the disk has free."""
    found = [0.0]

    def statvfs(path: Path) -> os.statvfs_result:
        return os.statvfs_result((4096, 1000, 0, 0, int(found[0] * 1e6), 0, 0, 0, 0, 255))

    monkeypatch.setattr(space.os, "statvfs", statvfs)
    return found


def test_what_keep_keeps_and_the_one_being_written_have_to_fit(free: list[float], tmp_path: Path) -> None:
    """Three stay and a fourth is written: 4 GB, and 20 files of 0.4 GB."""
    free[0] = 12.0
    assert check_space(tmp_path, FILES, saves=50, keep=3, weights_files=20) == ""
    free[0] = 11.9
    with pytest.raises(UserError) as error:
        check_space(tmp_path, FILES, saves=50, keep=3, weights_files=20)
    assert str(error.value) == (
        f"--output {tmp_path} needs 12 GB for 4 checkpoints of 1 GB and 20 x 0.4 GB of weights, and 11.9 GB are "
        "free; free space, choose another disk or lower --keep"
    )


def test_a_run_saves_no_more_often_than_it_saves(free: list[float], tmp_path: Path) -> None:
    free[0] = 2.0
    assert check_space(tmp_path, FILES, saves=2, keep=3, weights_files=0) == ""


def test_what_is_there_counts_as_written(free: list[float], tmp_path: Path) -> None:
    """As of a run that goes on: its older checkpoints are deleted while it writes new ones."""
    (tmp_path / "Epoch01").mkdir()
    with (tmp_path / "Epoch01" / "states.pt").open("wb") as file:
        file.truncate(3_000_000_000)
    free[0] = 1.0
    assert check_space(tmp_path, FILES, saves=50, keep=3, weights_files=0) == ""


def test_a_run_that_keeps_all_is_warned_while_two_fit(free: list[float], tmp_path: Path) -> None:
    free[0] = 3.0
    told = check_space(tmp_path, FILES, saves=20, keep=None, weights_files=20)
    assert "needs 28 GB for 20 checkpoints of 1 GB, and 3 GB are free: the disk will be full before" in told
    assert told.endswith("add --keep 3")
    free[0] = 2.0
    with pytest.raises(UserError, match="needs 28 GB for 20 checkpoints"):
        check_space(tmp_path, FILES, saves=20, keep=None, weights_files=20)
