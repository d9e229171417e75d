"""A rank ends with its launcher: the processes above this one, and what becomes of it when they are gone."""

import os
import select
import shlex
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from engine.distributed.ranks import Ranks

# Scripts, and modules that `python -m` runs.
LAUNCHERS = {
    *("deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch"),
    *("torchrun", "torch.distributed.run", "torch.distributed.launch"),
}


def end_with_launcher() -> None:
    """End this process when a launcher above it is gone, however it went: nobody else would notice.

    Raises SIGTERM in this process, which is what launchers send, too; at once, if one went while we started.
    """
    family = [os.getpid(), *launchers()]
    above = [os.pidfd_open(pid) for pid in family[1:]]
    if _some_went(family):
        os.kill(os.getpid(), signal.SIGTERM)
    if not above:
        return

    def watch() -> None:
        select.select(above, [], [])
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="launcher watch").start()


def launchers() -> Iterator[int]:
    """The processes right above this one that are deepspeed's or torchrun's; shells and others don't count."""
    pid = os.getppid()
    while pid > 0:  # in a container, the first process may be one
        arguments = _command(pid).decode(errors="replace").split("\0")
        programs = {Path(argument).name for argument in arguments[:2]} | set(arguments)
        if not programs & LAUNCHERS:
            return
        yield pid
        pid = parent_of(pid)


def command_line(program: list[str], ranks: Ranks) -> str:
    """What to type to start a program and its flags as this one was started, on one machine.

    Args:
        program: a file, an installed command, or `-m` and a module; and flags.
    """
    start: list[str]
    if ranks.world_size == 1:
        start = ["python"] if program[0] == "-m" or program[0].endswith(".py") else []
    elif ranks.world_size > ranks.local_world_size:  # whoever started them knows the machines
        start = []
    elif by_torchrun():
        start = ["torchrun", "--nproc-per-node", str(ranks.local_world_size)]
    else:
        start = ["deepspeed", "--num_gpus", str(ranks.local_world_size)]
        program = ["--module", *program[1:]] if program[0] == "-m" else program
    return shlex.join([*start, *program])


def launcher_command() -> list[str] | None:
    """How a person started the ranks of this machine; None without a launcher."""
    pids = list(launchers())
    return _command(pids[-1]).decode(errors="replace").rstrip("\0").split("\0") if pids else None


def by_torchrun() -> bool:
    """Whether torchrun started this rank, as its environment says."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def threads_are_given() -> bool:
    """Whether a person set OMP_NUM_THREADS. torchrun sets 1 for its ranks unasked, but was started without it then."""
    launcher = next(launchers(), None)
    if launcher is None or not by_torchrun():
        return "OMP_NUM_THREADS" in os.environ
    return b"OMP_NUM_THREADS=" in Path(f"/proc/{launcher}/environ").read_bytes()


def _some_went(family: list[int]) -> bool:
    """Whether a launcher has started this rank and it, or what started it, is gone already.

    torchrun gives each rank a session of its own; that of a rank which still has its launcher has it right above. Where
    deepspeed started this rank, who isn't the first of a session has its parent in the same one; an orphan has its new
    parent in another. Of the launchers only the last may be an orphan: the one that a person started, perhaps with
    nohup.
    """
    if by_torchrun():
        return len(family) == 1 and os.getsid(0) == os.getpid()
    if "CROSS_RANK" not in os.environ:  # which deepspeed's launch module sets
        return False
    started_by_launchers = [
        pid for pid in family if pid == os.getpid() or b"deepspeed.launcher.launch" in _command(pid)
    ]
    return any(os.getsid(pid) != pid and os.getsid(parent_of(pid)) != os.getsid(pid) for pid in started_by_launchers)


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it is gone, or hidden from this user
        return b""


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
