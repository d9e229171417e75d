"""This rank's device, what it can do, and which kernels run on it."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from engine.distributed.launchers import threads_are_given
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from kernels.backend import use_triton


def pick_device(ranks: Ranks, *, fp16: bool = False, deterministic: bool = False) -> torch.device:
    """Give this rank its GPU, or its share of the CPU's cores. Loaders want to know it, so it comes first.

    Args:
        fp16: refuse a device that gains nothing from it.
        deterministic: have it give the same bits in every run, at some cost.

    Raises:
        UserError: if there are fewer GPUs than ranks, or fp16 is asked of a CPU.
    """
    if deterministic:
        _be_deterministic()
    accelerator = get_accelerator()
    if fp16 and not fp16_is_supported():
        raise UserError("--fp16 needs a GPU; on a CPU use --bf16, or neither for fp32 (with a recipe: --fp16 false)")
    if accelerator.device_name() == "cpu":
        if not threads_are_given():
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


def agree_on_threads(device: torch.device) -> str:
    """On a CPU, give every rank the smallest number of threads that one has: it decides how sums are rounded.

    A machine with more cores for a rank would wait for the others in each step anyhow. All ranks call it.

    Returns:
        what the ranks compute on.
    """
    if device.type != "cpu":
        return device.type
    threads = torch.tensor(torch.get_num_threads())
    dist.all_reduce(threads, op=dist.ReduceOp.MIN)
    torch.set_num_threads(int(threads))
    return f"cpu with {threads} thread{'s' * (int(threads) > 1)} a rank"


def peak_bytes(device: torch.device) -> int:
    """The most that this rank has taken of its device so far; of a CPU, what the process has taken of its memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def forget_peak(device: torch.device) -> None:
    """Have the peak measured anew from here on."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5")  # see proc(5)


def fp16_is_supported() -> bool:
    """Some CPUs report fp16, too, but only a GPU gains from it."""
    return get_accelerator().device_name() != "cpu" and bool(get_accelerator().is_fp16_supported())


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
