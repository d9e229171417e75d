"""A bar on a terminal; in a log, plain lines at intervals, and none for what takes less."""

import os
import pty
import time

import pytest
from tqdm import tqdm

from engine import progress
from engine.progress import Bar


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when a test says so."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_an_interval_and_no_bar(clock, capsys):
    with Bar(total=10, desc="decoding", unit="image", mininterval=0) as bar:
        for _ in range(10):
            clock[0] += 12
            bar.update()
            tqdm.write("a report")  # which on a terminal draws every bar anew
    told = capsys.readouterr()
    lines = told.err.splitlines()
    assert [line.split(" [")[0] for line in lines] == [f"decoding:  {n}0% {n}/10" for n in (3, 6, 9)]
    assert "\r" not in told.err
    assert told.out == "a report\n" * 10


@pytest.mark.parametrize("leave", [True, False])
def test_what_is_soon_done_leaves_nothing_in_a_log(clock, capsys, leave):
    assert list(Bar(range(5), leave=leave, mininterval=0)) == list(range(5))
    bar = Bar(total=3, disable=True)
    bar.update()
    bar.close()
    assert capsys.readouterr() == ("", "")


def test_a_terminal_has_the_bar():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as terminal:
        assert list(Bar(range(3), file=terminal, desc="decoding", ncols=60, ascii=True)) == [0, 1, 2]
        time.sleep(0.05)
    shown = os.read(master, 10_000).decode()
    os.close(master)
    assert "\rdecoding:   0%|" in shown
    assert "100%|##" in shown
