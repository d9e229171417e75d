"""Seconds and bytes, measured so that two sides can be compared."""

import gc
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.progress import Bar

Results = dict[str, float | int | str]

MB = 1e6


def in_process(method: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a new process ("fork" or "spawn"), which is gone, memory and all, when its result is here."""
    context: Any = multiprocessing.get_context(method)
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(sender, function, arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        raise SystemExit(f"the process of {function.__name__} ended without a result") from None
    except BaseException:
        process.terminate()
        raise
    finally:
        process.join()
    if isinstance(result, UserError):
        raise result
    return result


def _answer(sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the first process, which ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        sender.send(function(*arguments))
    except UserError as error:
        sender.send(error)


def peak_memory() -> float:
    """The most memory that this process had at once since it began, or since `restart_peak`, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024 / MB


def restart_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def own_memory() -> float:
    """Anonymous memory that only this process has, in MB.

    `Anonymous` itself counts what a forked process shares with its parent, so it doesn't grow when a page is copied;
    `Private_*` counts pages of shared memory that no other process maps just now. The smaller of both is neither.
    """
    total, private = 0, 0
    with Path("/proc/self/smaps").open() as lines:  # by line: the whole text would be memory, too
        for line in lines:
            if line.startswith("Private_"):  # clean and dirty, above the mapping's Anonymous
                private += int(line.split()[1])
            elif line.startswith("Anonymous:"):
                total += min(private, int(line.split()[1]))
                private = 0
    return total * 1024 / MB


def side_by_side(functions: Mapping[str, Callable[[], object]], rounds: int, name: str = "") -> dict[str, list[float]]:
    """Seconds of each function, round by round: what slows the machine down for a while slows all of them."""
    seconds: dict[str, list[float]] = {key: [] for key in functions}
    gc.collect()
    gc.freeze()  # else one side's collections would walk through the other side's objects
    for _ in Bar(range(rounds), desc=name, leave=False, disable=not name):
        for key, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[key].append(time.perf_counter() - start)
    gc.unfreeze()
    return seconds


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> float:
    """The median over the rounds."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))
