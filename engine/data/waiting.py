"""How long a rank waits for its loader."""

import time
from collections.abc import Iterator
from typing import Any

from torch.utils.data import DataLoader

from engine.data.loading import Batch


class Timed:
    """A loader that measures how long its batches were waited for."""

    def __init__(self, loader: DataLoader[Batch]) -> None:
        self.loader = loader
        self.dataset: Any = loader.dataset
        self.batch_sampler: Any = loader.batch_sampler
        self.seconds = 0.0  # waited in all
        self.since: float | None = None  # when the wait began that goes on now, by time.monotonic

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.loader)
        while True:
            self.since = time.monotonic()
            batch = next(batches, None)
            self.seconds += time.monotonic() - self.since
            self.since = None
            if batch is None:
                return
            yield batch
