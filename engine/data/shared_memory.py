"""The memory that batches take on their way from workers to their rank."""

import os
from pathlib import Path

from engine.data.dataset import ExampleOptions
from engine.errors import UserError

PREFETCH_FACTOR = 2  # batches that a worker prepares ahead
SHARED_MEMORY = Path("/dev/shm")


def shared_memory_per_worker(options: ExampleOptions, batch_size: int) -> int:
    """Bytes of batches that one worker may have in /dev/shm: those it prepares ahead, and the one in use."""
    return (PREFETCH_FACTOR + 1) * batch_size * options.sample_bytes()


def check_shared_memory(
    options: ExampleOptions,
    batch_size: int,
    *,
    num_workers: int,
    local_world_size: int,
    folder: Path | None = None,
) -> None:
    """Batches travel from workers through /dev/shm; where it is too small, a worker would die in the midst of training.

    Raises:
        UserError: with the number of workers that would fit.
    """
    folder = folder or SHARED_MEMORY
    per_worker = shared_memory_per_worker(options, batch_size)
    try:
        space = os.statvfs(folder)
    except OSError:
        return  # a machine that has no such folder shares memory in another way
    free = space.f_bavail * space.f_frsize
    needed = num_workers * local_world_size * per_worker
    if needed > free:
        fitting = free // (per_worker * local_world_size)
        raise UserError(
            f"{folder} has {free >> 20:,} MB free, but {num_workers} workers of {local_world_size} ranks may put "
            f"{(needed >> 20) + 1:,} MB of batches there; enlarge it (docker run --shm-size={(needed >> 30) + 1}g, or "
            f"mount -o remount,size=...) or lower --num_workers to {fitting}"
        )
