"""Ranks: who this process is, how it joins the others, and how it leaves them."""

import logging
import multiprocessing
import os
import socket
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from engine.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among all of them, as `deepspeed` or `torchrun` says; alone without a launcher."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> "Ranks":
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size  # torchrun, deepspeed
        return cls(int(os.environ.get("RANK", 0)), world_size, int(os.environ.get("LOCAL_RANK", 0)), int(local))


def pick_device(ranks: Ranks) -> torch.device:
    """Give this rank its GPU, or its share of the CPU's cores. Loaders want to know it, so it comes first.

    Raises:
        UserError: if there are fewer GPUs than ranks.
    """
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        if "OMP_NUM_THREADS" not in os.environ or "TORCHELASTIC_RUN_ID" in os.environ:  # torchrun sets 1 unasked
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size))
        return torch.device("cpu")
    count = accelerator.device_count()
    if ranks.local_rank >= count:
        raise UserError(
            f"{ranks.local_world_size} ranks were started on this machine, which has {count} GPUs; start one a GPU"
        )
    accelerator.set_device(ranks.local_rank)
    return torch.device(accelerator.device_name(ranks.local_rank))


def join(ranks: Ranks) -> None:
    """Start torch.distributed, with nothing of DeepSpeed's left in /dev/shm."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if "MASTER_ADDR" not in os.environ:  # no launcher
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
    deepspeed.init_distributed(verbose=False)
    dist.barrier()
    _unlink_shared_buffer()


def _unlink_shared_buffer() -> None:
    """Remove the name of DeepSpeed's buffer for CPU ranks: all of them have mapped it, so none needs the name."""
    prefix = f"deepspeed_allreduce_buffer_{os.getuid()}_{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}_"
    Path("/dev/shm", prefix + os.environ["RANK"]).unlink(missing_ok=True)


def exit_with(error: UserError) -> NoReturn:
    """Say what was wrong, in one line, and leave with code 2 at once: other threads and ranks must not hold us.

    What stops every rank alike is said once: rank 0 leaves, and the launcher ends the others while they wait.
    """
    program = Path(sys.argv[0]).name
    if Ranks.from_environment().rank != 0:
        time.sleep(3)
    print(f"\n{program}: error: {error}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    for worker in multiprocessing.active_children():
        worker.terminate()
    os._exit(2)
