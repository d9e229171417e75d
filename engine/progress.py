"""Progress of long work: a bar on a terminal, plain lines in a log."""

import time
from typing import Any

from tqdm import tqdm

LOG_INTERVAL = 30.0  # seconds between two lines


class Bar(tqdm):
    """tqdm's bar. Where its output is no terminal, as in a pipe or a log, a line every LOG_INTERVAL seconds instead.

    Work that takes less leaves no line there.
    """

    told: float | None = None  # when the last line was

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        if self.fp.isatty():
            return super().display(msg, pos)
        now = time.monotonic()
        if self.told is None:
            self.told = now
        if now - self.told >= LOG_INTERVAL:
            self.told = now
            print(self.format_meter(**{**self.format_dict, "ncols": 0}), file=self.fp, flush=True)

    def clear(self, nolock: bool = False) -> None:
        if self.fp.isatty():
            super().clear(nolock)

    def close(self) -> None:
        if not self.disable and not self.fp.isatty():
            self.last_print_t = float("-inf")  # as if nothing had been shown that has to be tidied up
        super().close()
