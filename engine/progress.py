"""Progress of long work: a bar on a terminal, plain lines in a log; and times in words."""

import os
import time
from typing import IO, Any

from tqdm import tqdm

LOG_INTERVAL = 30.0  # seconds between two lines


def is_terminal(stream: IO[Any]) -> bool:
    """Whether a line that has been written there can be written over."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Bar(tqdm):
    """tqdm's bar. Where its output is no terminal, as in a pipe or a log, a line every LOG_INTERVAL seconds instead.

    Work that takes less leaves no line there.
    """

    told: float | None = None  # when the last line was

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if is_terminal(self.fp):
            return super().display(msg, pos)
        now = time.monotonic()
        if self.told is None:
            self.told = now
        if now - self.told >= LOG_INTERVAL:
            self.told = now
            print(self.format_meter(**{**self.format_dict, "ncols": 0}), file=self.fp, flush=True)

    def clear(self, nolock: bool = False) -> None:
        if is_terminal(self.fp):
            super().clear(nolock)

    def close(self) -> None:
        if not self.disable and not is_terminal(self.fp):
            self.last_print_t = float("-inf")  # as if nothing had been shown that has to be tidied up
        super().close()


def duration(seconds: float) -> str:
    """A time for the eye."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
