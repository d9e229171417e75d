"""How long batches are waited for, and what is said of one that doesn't come."""

import multiprocessing
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from engine.data.waiting import StallWatch, TimedLoader
from engine.distributed.workers import Readings, reading


class Files:
    """Reads a file for each item, as data sets read images."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> str:
        with reading(str(self.paths[number])):
            return self.paths[number].read_text()


class Slow:
    def __len__(self) -> int:
        return 3

    def __getitem__(self, number: int) -> int:
        time.sleep(0.05)
        return number


def test_waits_are_counted_and_the_time_between_is_not() -> None:
    loader: TimedLoader[Any] = TimedLoader(Slow(), num_workers=0, batch_size=None)
    seen = []
    for number in loader:
        assert loader.since is None
        seen.append(number)
        time.sleep(0.3)
    assert seen == [0, 1, 2]
    assert 0.15 <= loader.seconds < 0.9  # three waits, and not the three pauses
    before = loader.seconds
    assert list(loader) == [0, 1, 2]
    assert loader.seconds >= before + 0.15


def test_an_error_ends_the_wait() -> None:
    loader: TimedLoader[Any] = TimedLoader(Files([Path("nowhere")]), num_workers=0, batch_size=None)
    with pytest.raises(FileNotFoundError):
        next(iter(loader))
    assert loader.since is None
    assert loader.readings.longest() is None


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A file that can be opened only once somebody writes into it."""
    path = tmp_path / "hanging.jpg"
    os.mkfifo(path)
    return path


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_a_stalled_worker_is_named_with_its_file(
    start_method: str, hanging: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "good.jpg"
    good.write_text("pixels")
    loader: TimedLoader[Any] = TimedLoader(
        Files([good, hanging, good]), num_workers=2, start_method=start_method, batch_size=None
    )
    batches = iter(loader)
    assert next(batches) == "pixels"  # for which a spawned worker takes seconds
    StallWatch([loader], 3, lambda: 17, limit=0.3)
    workers = {worker.pid for worker in multiprocessing.active_children()}
    time.sleep(0.5)  # the watch is about waits, and nobody waits now
    released = multiprocessing.get_context("fork").Process(target=release, args=(hanging, 1.5))
    released.start()
    assert next(batches) == "late"
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1, told
    assert told[0].startswith("warning: after step 17, rank 3 on ")
    found = re.search(r"s for its loader: worker 1 \(pid (\d+)\) has been reading (\S+) for ", told[0])
    assert found is not None
    assert int(found[1]) in workers
    assert found[2] == str(hanging)
    assert "start the same command with --resume auto" in told[0]
    assert list(batches) == ["pixels"]
    released.join()


def release(path: Path, after: float) -> None:
    time.sleep(after)
    path.write_text("late")


def test_a_rank_that_loads_by_itself_is_named(hanging: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loader: TimedLoader[Any] = TimedLoader(Files([hanging]), num_workers=0, batch_size=None)
    StallWatch([loader], 0, lambda: 0, limit=0.2)
    released = multiprocessing.get_context("fork").Process(target=release, args=(hanging, 1.0))
    released.start()
    assert list(loader) == ["late"]
    released.join()
    [told] = capsys.readouterr().err.splitlines()
    assert f"it (pid {os.getpid()}) has been reading {hanging} for " in told


def test_slow_workers_without_a_hanging_file() -> None:
    loader: TimedLoader[Any] = TimedLoader(Slow(), num_workers=1, batch_size=None)
    assert loader.stall(0.0).startswith("none of its 1 workers is in the midst of an image")


def test_the_longest_reading_is_found_and_long_names_keep_their_ends() -> None:
    readings = Readings(3, "fork")
    assert readings.longest() is None
    readings.enter(2)
    with reading("x" * 600 + "ä.jpg"):
        found = readings.longest()
        assert found is not None
        assert (found.worker, found.pid) == (2, os.getpid())
        assert found.name.endswith("xxä.jpg")
        assert 0 <= time.monotonic() - found.since < 5
    assert readings.longest() is None
