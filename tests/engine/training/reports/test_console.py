"""What a terminal shows, at any width, and what a pipe gets."""

import contextlib
import fcntl
import io
import os
import pty
import struct
import termios
from collections.abc import Iterator
from typing import IO

import pytest

from engine.training.reports import console
from engine.training.reports.console import Console, Field, as_line, fitted, live_fields, live_line

RECORD = {
    **{"kind": "train", "epoch": 1.25, "step": 1200, "loss": 2.3141, "mask_lm_loss": 1.92, "matched_loss": 0.3941},
    **{"grad_norm": 1.5, "skipped_steps": 0, "unreadable_images": 0, "images_per_second": 412.3},
    **{"samples_per_second": 412.3, "data_wait": 0.034, "peak_memory_gb": 12.44, "seconds_left": 4930},
}


def shown(width: int, **more: float) -> str:
    return live_line(live_fields({**RECORD, **more}, 1234, 30_000, 1.29, 20), 0.1, width)


def test_a_wide_line_has_everything_and_a_bar() -> None:
    text = "epoch 1.29/20 | step 1,234/30,000 | loss 2.31 | mask_lm 1.92, matched 0.394 | 412 images/s | data 3% | "
    assert shown(200) == f"██{' ' * 18} {text}12.4 GB | 1:22:10 left"
    assert shown(len(text) + 22) == f"{text}12.4 GB | 1:22:10 left"
    assert live_line([Field(0, "step")], 0.5, 30, ascii_only=True) == "##########           step"


def test_a_narrow_line_leaves_out_what_matters_less() -> None:
    assert shown(80) == "epoch 1.29/20 | step 1,234/30,000 | loss 2.31 | 412 images/s | 1:22:10 left"
    assert shown(60) == "step 1,234/30,000 | loss 2.31 | 412 images/s | 1:22:10 left"
    assert shown(39) == "step 1,234/30,000 | loss 2.31"
    assert shown(10) == "step 1,234"
    assert all(len(shown(width, images_per_second=123456.0)) <= width for width in range(1, 200))


def test_before_the_first_report_there_is_the_step() -> None:
    assert live_line(live_fields({}, 3, 30, 0.1, 20), 0.1, 31) == "epoch 0.10/20 | step 3/30"


def test_long_lines_break_between_fields() -> None:
    line = as_line(RECORD)
    assert "\n" not in line
    for width in (40, 60, 200):
        broken = fitted(f"{line}\nsaved x", width)
        assert all(len(part) <= width for part in broken.split("\n"))
        assert broken.replace("\n  ", " ") == f"{line}\nsaved x"
    assert fitted("a, b, c", 4) == "a,\n  b,\n  c"
    assert fitted("12345678, b", 4) == "12345678,\n  b"  # what has no place to break stays


def test_a_line_leaves_out_what_says_nothing() -> None:
    assert as_line(RECORD).startswith("train: epoch 1.25, step 1200, loss 2.314, mask_lm_loss 1.92, ")
    assert "samples_per_second" not in as_line(RECORD)
    assert "samples_per_second 800" in as_line({**RECORD, "samples_per_second": 800.0})
    assert "skipped_steps 3" in as_line({**RECORD, "skipped_steps": 3})
    assert as_line({"kind": "warning", "step": 4, "rank": 1, "text": "step 4, rank 1: slow"}) == (
        "warning: step 4, rank 1: slow"
    )


MARK = "\0"  # which no program writes


class Terminal:
    """Of 60 columns; what it shows can be read."""

    def __init__(self) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        self.stream = os.fdopen(slave, "w", buffering=1)

    def shown(self) -> str:
        """What has come since the last time. The system hands it over some time later, in order: up to a mark."""
        self.stream.write(MARK)
        self.stream.flush()
        read = b""
        while not read.endswith(MARK.encode()):
            read += os.read(self.master, 100_000)
        return read.decode().removesuffix(MARK).replace("\r\n", "\n")


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    terminal = Terminal()
    monkeypatch.setattr(console.sys, "__stdout__", terminal.stream)  # whose width is asked for
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)
    yield terminal
    terminal.stream.close()
    os.close(terminal.master)


def train(output: IO[str], errors: IO[str], rank: int = 0) -> None:
    """Three steps, the second of which is reported."""
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        shown_by = Console(rank, 3, 1)
        shown_by.line.mininterval = 0
        for step in (1, 2, 3):
            shown_by.advance(step, step / 3)
            if step == 2:
                shown_by.hear({**RECORD, "step": 2})
        shown_by.close()
        shown_by.say("saved x")


PLAIN = f"{as_line({**RECORD, 'step': 2})}\nsaved x\n"


def test_a_terminal_has_a_line_that_never_wraps(terminal: Terminal) -> None:
    train(terminal.stream, terminal.stream)
    text = terminal.shown()
    assert "\x1b" not in text  # no colour, and no movement of the cursor but to the line's begin
    assert "step 3/3 | loss 2.31 | 412 images/s | 1:22:10 left" in text
    parts = text.replace("\r", "\n").split("\n")
    assert "train: epoch 1.25, step 2, loss 2.314, mask_lm_loss 1.92," in parts
    assert max(map(len, parts)) <= 60
    assert parts[-2:] == ["saved x", ""]
    assert not parts[-3].strip()  # nothing is left of the live line


def test_another_rank_shows_nothing(terminal: Terminal) -> None:
    train(terminal.stream, terminal.stream, rank=1)
    assert terminal.shown() == ""


def test_a_dumb_terminal_has_plain_lines(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    train(terminal.stream, terminal.stream)
    assert terminal.shown() == PLAIN


def test_a_pipe_has_plain_lines() -> None:
    output, errors = io.StringIO(), io.StringIO()
    train(output, errors)
    assert (output.getvalue(), errors.getvalue()) == (PLAIN, "")


def test_a_pipe_beside_a_terminal_has_plain_lines_too(terminal: Terminal) -> None:
    """As `python launch/pretrain.py ... | tee log`: a live line would be written into the midst of tee's."""
    output = io.StringIO()
    train(output, terminal.stream)
    assert (output.getvalue(), terminal.shown()) == (PLAIN, "")
