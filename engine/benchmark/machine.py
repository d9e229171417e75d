"""What a machine is, and what it can do at best: the two numbers that all others are held against."""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from engine.provenance.environment import versions
from kernels.benchmark.shapes import DTYPES
from kernels.benchmark.timing import copy_gigabytes_per_second, device_name

MATRIX = {"cuda": 8192, "cpu": 1024}


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Until the device has finished."""
    synchronise(device)
    started = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - started


def matmul_flops_per_second(device: str, dtype: str) -> float:
    """A large square matrix product of random numbers: the median over five rounds of ten each, on a CPU of one."""
    size, times = MATRIX[device], 10 if device == "cuda" else 1
    a, b = (torch.randn(size, size, device=device).to(DTYPES[dtype]) for _ in range(2))

    def multiply() -> None:
        for _ in range(times):
            a @ b.t()  # as a linear layer has its weights

    multiply()
    return 2 * size**3 * times / statistics.median(seconds_of(multiply, device) for _ in range(5))


def describe(device: str) -> dict[str, Any]:
    """Flat: versions, device, memory, and both ceilings."""
    about: dict[str, Any] = {
        "device_name": device_name(device),
        "versions": versions(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "copy_gb_per_s": copy_gigabytes_per_second(device, 5),
    }
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
        properties = torch.cuda.get_device_properties(0)
        about |= {
            "memory_free_gb": free / 1e9,
            "memory_gb": total / 1e9,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
        }
    return about


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m engine.benchmark.machine", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what is printed")
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu" else "cpu"
    about = describe(device)
    for dtype in DTYPES if device == "cuda" else ("fp32",):
        about[f"matmul_tflops_{dtype}"] = matmul_flops_per_second(device, dtype) / 1e12
    text = json.dumps(about, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
