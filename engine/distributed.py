"""Ranks: who this process is, how it joins the others, and how it leaves them."""

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from engine.errors import UserError
from engine.workers import end_workers
from kernels.backend import use_triton

# Scripts, and modules that `python -m` runs.
LAUNCHERS = {"deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch", "torchrun", "torch.distributed.run"}


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


def pick_device(ranks: Ranks, *, deterministic: bool = False) -> torch.device:
    """Give this rank its GPU, or its share of the CPU's cores. Loaders want to know it, so it comes first.

    Args:
        deterministic: have it give the same bits in every run, at some cost.

    Raises:
        UserError: if there are fewer GPUs than ranks.
    """
    if deterministic:
        _be_deterministic()
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
    if accelerator.device_name() == "cuda":
        accelerator.available_memory = _free_memory
    return torch.device(accelerator.device_name(ranks.local_rank))


def _free_memory(index: int | None = None) -> int:
    """Bytes that a GPU has free, as CUDA says.

    DeepSpeed asks NVML where nvidia-ml-py is installed, and takes the ids in CUDA_VISIBLE_DEVICES for numbers on the
    way: GPU-5d2f... or MIG-... would be a ValueError.
    """
    return torch.cuda.mem_get_info(index)[0]


def _be_deterministic() -> None:
    """Have a GPU add in the same order each time. Before CUDA starts, since cuBLAS looks at its variable only once.

    What can't be done so is told by a warning of torch's.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else torch fills all new memory, at a cost, for who reads before writing, as we don't. mypy doesn't know the name.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False


def pick_kernels(device: torch.device) -> str:
    """Which implementation of the kernels this device takes, "triton" or "torch"; KERNELS_BACKEND may say which.

    Raises:
        UserError: if it asks for one that can't run here.
    """
    try:
        return "triton" if use_triton(device.type) else "torch"
    except (ValueError, RuntimeError) as error:
        raise UserError(str(error)) from None


def join(ranks: Ranks) -> None:
    """Start torch.distributed, with nothing of DeepSpeed's in /dev/shm.

    DeepSpeed has a shared buffer for CPU ranks, which only inference uses and which a killed run leaves behind. It is
    an operator that the table of those that can be compiled has to grant. Ours grants none: to make its own, DeepSpeed
    would try them all, and print a warning for each that needs a CUDA compiler where there is none.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if "MASTER_ADDR" not in os.environ:  # no launcher
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
    deepspeed.ops.__compatible_ops__ = {ShareMemCommBuilder.NAME: False}
    deepspeed.init_distributed(verbose=False)
    dist.barrier()


def end_with_launcher() -> None:
    """End this process when a launcher above it is gone, however it went: nobody else would notice.

    Raises SIGTERM in this process, which is what launchers send, too; at once, if one went while we started.
    """
    family = [os.getpid(), *_launchers()]
    launchers = [os.pidfd_open(pid) for pid in family[1:]]
    if _some_went(family):
        os.kill(os.getpid(), signal.SIGTERM)
    if not launchers:
        return

    def watch() -> None:
        select.select(launchers, [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="launcher watch").start()


def _launchers() -> Iterator[int]:
    """The processes right above this one that are deepspeed's or torchrun's; shells and others don't count."""
    pid = os.getppid()
    while pid > 1:
        arguments = _command(pid).decode(errors="replace").split("\0")
        programs = {Path(argument).name for argument in arguments[:2]} | set(arguments)
        if not programs & LAUNCHERS:
            return
        yield pid
        pid = _parent(pid)


def _some_went(family: list[int]) -> bool:
    """Whether deepspeed has started this rank and its launch module, or what started that, is gone already.

    Who isn't the first of a session has its parent in the same one; an orphan has its new parent in another. Of the
    launchers only the last may be an orphan: the one that a person started, perhaps with nohup.
    """
    if "CROSS_RANK" not in os.environ:  # which deepspeed's launch module sets
        return False
    started_by_launchers = [
        pid for pid in family if pid == os.getpid() or b"deepspeed.launcher.launch" in _command(pid)
    ]
    return any(os.getsid(pid) != pid and os.getsid(_parent(pid)) != os.getsid(pid) for pid in started_by_launchers)


def _command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def has_lost_a_rank(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone."""
    return isinstance(error, dist.DistBackendError | dist.DistNetworkError) or "gloo/transport" in str(error)


@contextmanager
def telling_errors(ranks: Ranks) -> Iterator[None]:
    """What ends a program under a launcher becomes one line and an exit code."""
    try:
        yield
    except UserError as error:
        exit_with(error)
    except RuntimeError as error:
        if not has_lost_a_rank(error):
            raise
        leave(f"rank {ranks.rank} ends, another one is gone", code=1)
    except KeyboardInterrupt:
        sys.exit(130)


def exit_with(error: UserError) -> NoReturn:
    """Say what was wrong, in one line, and leave with code 2 at once: other threads and ranks must not hold us.

    What stops every rank alike is said once: rank 0 leaves, and the launcher ends the others while they wait.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if Ranks.from_environment().rank != 0:
        time.sleep(3)
    leave(f"error: {error}", code=2)


def leave(message: str, code: int) -> NoReturn:
    """End this process and its workers, whatever else it still does."""
    print(f"\n{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    end_workers()
    os._exit(code)
