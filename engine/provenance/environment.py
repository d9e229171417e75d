"""What a program runs on: versions, the checkout, machines and their ranks. Nothing here fails, or takes long."""

import importlib.metadata
import os
import platform
import re
import socket
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine import __version__
from engine.commands import ROOT
from kernels.benchmark.timing import device_name

PACKAGES = ("torch", "triton", "deepspeed", "transformers", "tokenizers", "numpy", "pillow", "lmdb")
DRIVER = Path("/proc/driver/nvidia/version")
GIT_TIMEOUT = 10.0  # seconds; a checkout on a slow network file system isn't worth more


def versions() -> dict[str, str]:
    """Of this project, Python and the packages, and of what belongs to the GPU if torch was built for one."""
    found = {"clipvil-engine": __version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "missing"
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
        if dist.is_nccl_available():
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    if (driver := driver_version(DRIVER)) is not None:
        found["driver"] = driver
    return found


def version_lines() -> list[str]:
    """A line for each of them, with the commit of a checkout, ready for a report of a bug."""
    found, code = versions(), checkout()
    if code is not None:
        found["clipvil-engine"] += f", commit {code['commit'][:12]}{'' if code['clean'] else ' with changes'}"
    found.setdefault("cuda", "none: a build of torch for CPUs")
    return [f"{name:<16}{version}" for name, version in found.items()]


def driver_version(file: Path) -> str | None:
    """Of NVIDIA's driver, from the file in which it names itself."""
    try:
        number = re.search(r"\b\d+\.\d+(\.\d+)?\b", file.read_text())
    except OSError:
        return None
    return number.group() if number else None


def checkout(root: Path = ROOT) -> dict[str, Any] | None:
    """The commit that this code is of, and whether its files are as committed; None where there is no checkout."""
    top = _git(root, "rev-parse", "--show-toplevel")
    commit = _git(root, "rev-parse", "HEAD")
    if top is None or commit is None or Path(top) != root:  # an installed copy may lie within another's checkout
        return None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "clean": None if changes is None else not changes}


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, or None if it can't or isn't there."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_TIMEOUT)
    except (OSError, subprocess.SubprocessError):
        return None
    return ended.stdout.strip()


def place(rank: int, device: torch.device) -> dict[str, Any]:
    """Where this rank runs."""
    return {
        "rank": rank,
        "host": socket.gethostname(),
        "gpu": None if device.type == "cpu" else device_name(device.type),
        "cpu": device_name("cpu"),
        "cores": len(os.sched_getaffinity(0)),
    }


def by_host(places: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Each host with its CPU, its ranks, and their GPUs in the same order."""
    hosts: dict[str, dict[str, Any]] = {}
    for found in places:
        about = {"cpu": found["cpu"], "cores": found["cores"], "ranks": [], "gpus": []}
        host = hosts.setdefault(found["host"], about)
        host["ranks"].append(found["rank"])
        if found["gpu"] is not None:
            host["gpus"].append(found["gpu"])
    return hosts
