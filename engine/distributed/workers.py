"""How long loading workers live: as long as their rank, whatever signal a launcher sends to all processes at once.

And what each of them reads, so that a rank that waits for one can say for which file.
"""

import ctypes
import multiprocessing
import os
import signal
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

SLOT = struct.Struct("dqH494s")  # when the reading began (0: nothing is read), process, bytes of the name, the name


class Reading(NamedTuple):
    """A file that a worker is in the midst of."""

    worker: int
    pid: int
    since: float  # of time.monotonic, which all processes of a machine share
    name: str


class Readings:
    """What each of a rank's workers reads right now, in memory that they share, however they were started."""

    def __init__(self, workers: int, start_method: str) -> None:
        context = multiprocessing.get_context(start_method)
        self.memory = context.RawArray(ctypes.c_char, SLOT.size * max(1, workers))

    def enter(self, worker: int) -> None:
        """From here on this process notes what it reads as this worker."""
        global _own_slot
        _own_slot = memoryview(self.memory).cast("B")[worker * SLOT.size : (worker + 1) * SLOT.size]

    def longest(self) -> Reading | None:
        """The one that has been read for the longest time, if any is."""
        slots = [SLOT.unpack_from(self.memory, begin) for begin in range(0, len(self.memory), SLOT.size)]
        found = [
            Reading(worker, pid, since, name[:length].decode(errors="replace"))
            for worker, (since, pid, length, name) in enumerate(slots)
            if since
        ]
        return min(found, key=lambda reading: reading.since, default=None)


_own_slot: memoryview | None = None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Note what this worker reads, for its rank, which may have to wait for it."""
    if _own_slot is None:
        yield
        return
    encoded = name.encode()[-494:]  # the end of a path tells more
    SLOT.pack_into(_own_slot, 0, time.monotonic(), os.getpid(), len(encoded), encoded)
    try:
        yield
    finally:
        SLOT.pack_into(_own_slot, 0, 0.0, 0, 0, b"")


def begin_worker(readings: Readings, worker: int) -> None:
    """In a worker, before anything else.

    It outlives signals: its rank may need it for a last step after one, and ends it when it ends itself.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    readings.enter(worker)


def end_workers() -> None:
    """In a rank that ends: SIGTERM, which multiprocessing would send and then wait, they don't heed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would take it for a failure
    threading.excepthook = lambda failure: None  # and its thread that pins batches may be in the midst of receiving one
    kill_workers()


def kill_workers() -> None:
    """From any thread."""
    for worker in multiprocessing.active_children():
        worker.kill()
