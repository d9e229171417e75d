"""How long a rank waits for its batches, and what it says when one doesn't come."""

import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from torch.utils.data import DataLoader
from tqdm import tqdm

from engine.distributed.workers import Readings, begin_worker

STALLED_AFTER = 60.0  # seconds of one wait

T = TypeVar("T")


class TimedLoader(DataLoader[T]):
    """A loader that knows how long its batches have been waited for, and which files its workers are in the midst of.

    `seconds` is the time of all waits that are over; `since` is when the current one began, by time.monotonic, or None
    if nobody waits.
    """

    seconds = 0.0
    since: float | None = None

    def __init__(self, dataset: Any, *, num_workers: int, start_method: str = "fork", **options: Any) -> None:
        self.readings = Readings(num_workers, start_method)
        super().__init__(
            dataset,
            num_workers=num_workers,
            multiprocessing_context=start_method if num_workers else None,
            worker_init_fn=partial(begin_worker, self.readings),
            **options,
        )

    def __iter__(self) -> Iterator[T]:  # type: ignore[override]  # torch's iterator, timed
        if not self.num_workers:
            self.readings.enter(0)
        return self._timed(self._wait(super().__iter__))

    def _timed(self, batches: Iterator[T]) -> Iterator[T]:
        nothing = object()
        while (batch := self._wait(lambda: next(batches, nothing))) is not nothing:
            yield batch

    def _wait(self, get: Callable[[], Any]) -> Any:
        self.since = began = time.monotonic()
        try:
            return get()
        finally:
            self.seconds += time.monotonic() - began
            self.since = None

    def stall(self, now: float) -> str:
        """What holds the batch that is waited for, and what to do."""
        longest = self.readings.longest()
        if longest is None:
            return (
                f"none of its {self.num_workers} workers is in the midst of an image; see with `top` whether other "
                "programs take their cores or their memory, and lower --num_workers if so"
            )
        who = f"worker {longest.worker} (pid {longest.pid})" if self.num_workers else f"it (pid {longest.pid})"
        return (
            f"{who} has been reading {longest.name} for {now - longest.since:.0f} s; see whether its disk answers. "
            "The run goes on once the file has been read. If it never is, stop the run, copy the images to a disk "
            "that answers, and start the same command with --resume auto"
        )


class StallWatch:
    """A thread that says, once for each wait, that this rank has waited too long for a loader."""

    def __init__(
        self,
        loaders: Sequence[TimedLoader[Any]],
        rank: int,
        step: Callable[[], int],
        limit: float | None = None,
    ) -> None:
        self.loaders, self.rank, self.step = loaders, rank, step
        self.limit = STALLED_AFTER if limit is None else limit
        threading.Thread(target=self._watch, daemon=True, name="stall watch").start()

    def _watch(self) -> None:
        told: float | None = None
        while True:
            time.sleep(self.limit / 10)
            now = time.monotonic()
            for loader in self.loaders:
                since = loader.since
                if since is None or since == told or now - since <= self.limit:
                    continue
                told = since
                waited = f"rank {self.rank} on {socket.gethostname()} has waited {now - since:.0f} s for its loader"
                text = f"warning: after step {self.step()}, {waited}: {loader.stall(now)}"
                tqdm.write(text, file=sys.stderr)
                sys.stderr.flush()
