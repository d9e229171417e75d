"""A file by which somebody asks a running training for a checkpoint, where a signal is out of reach."""

import time
from contextlib import suppress
from pathlib import Path

from engine.training.run_folder import SAVE

INTERVAL = 1.0  # seconds between two looks: --output may be on a file system of many machines


class SaveFile:
    """OUTPUT/SAVE. Only rank 0 looks for it, and removes it once the checkpoint is published.

    Each file asks once, also if it can't be removed; touching it again is to ask again.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / SAVE
        self.next_look = 0.0
        self.seen: tuple[int, int] | None = None  # which file has asked last
        self.is_there = False  # and hasn't been removed

    def asks(self) -> bool:
        """Whether there is one that hasn't asked before."""
        if time.monotonic() < self.next_look:
            return False
        self.next_look = time.monotonic() + INTERVAL
        found = self._identity()
        if found is None or found == self.seen:
            return False
        self.seen, self.is_there = found, True
        return True

    def remove(self) -> str:
        """Remove the file that has asked, if there is one; what to say if that fails, or ""."""
        if not self.is_there:
            return ""
        self.is_there = False
        try:
            if self._identity() == self.seen:  # else it has been touched, and asks again
                self.path.unlink()
        except OSError as error:
            return f"{self.path} can't be removed ({error.strerror}); to ask for another checkpoint, touch it"
        return ""

    def discard(self) -> None:
        """At the end, when everything is saved: remove one that came since."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def _identity(self) -> tuple[int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns
