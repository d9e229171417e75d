"""The ways in which a training ends, or is disturbed, before it is done; each at a random moment."""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from engine.checkpoint.manifest import complete_checkpoints
from engine.distributed.launchers import parent_of
from tests.conftest import in_shared_memory, launch, left_in_shared_memory, session_members
from tests.kill.training import Training

PATIENCE = 20.0  # seconds in which what is left has to end by itself
LONGEST = 300.0  # seconds of a start that has to wait for another one, and of its training
LAUNCHERS = ("deepspeed", "torchrun")
REFUSALS = ("is in use by another process", "holds a run, up to")
KILLED = ("one rank", "a rank that saves", "all ranks", "a worker", "the launcher", "its launch module", "everything")


class Ending(NamedTuple):
    """What became of a start."""

    hit: bool  # whether it was still running
    text: str


class Moment(NamedTuple):
    after: float  # seconds from the start
    in_training: bool  # whether a step had been done since then


def victims(leader: int, target: str, draw: random.Random) -> list[int]:
    """The processes to kill; everything, while those asked for aren't there yet."""
    members = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in session_members(leader)}
    launch_module = [pid for pid, line in members.items() if "deepspeed.launcher.launch" in line]
    launchers = [leader, *launch_module]
    programs = [pid for pid, line in members.items() if "pretrain.py\0" in line and pid not in launchers]
    ranks = [pid for pid in programs if parent_of(pid) in launchers]
    found = {
        "one rank": draw.sample(ranks, min(1, len(ranks))),
        "all ranks": ranks,
        "a rank that saves": draw.sample(ranks, min(1, len(ranks))),
        "a worker": draw.sample(sorted(set(programs) - set(ranks)), min(1, len(programs) - len(ranks))),
        "the launcher": [leader],
        "its launch module": launch_module,
        "everything": list(members),
    }
    return found[target] or list(members)


def wait_for(process: "subprocess.Popen[str]", training: Training, draw: random.Random, *, saving: bool) -> Moment:
    """Until a random moment: at any time, or in training, or while a checkpoint is being written."""
    started, metrics = time.monotonic(), training.output / "metrics.jsonl"
    shortest = size(metrics)  # steps that are done again are cut off first

    def has_trained() -> bool:
        return size(metrics) > shortest

    def wait_until(condition: Callable[[], object]) -> None:
        nonlocal shortest
        while not condition() and process.poll() is None:
            time.sleep(0.001)
            shortest = min(shortest, size(metrics))

    if saving:
        now = time.time()  # the kill before may have left an unfinished one
        wait_until(lambda: any(changed_after(path, now) for path in training.output.glob(".*.unfinished")))
        time.sleep(draw.uniform(0, 0.05))
    elif draw.random() < 0.4:
        until = started + draw.uniform(0.3, 0.9 * training.whole)
        wait_until(lambda: time.monotonic() > until)
    else:
        wait_until(has_trained)
        time.sleep(draw.uniform(0, 0.2 * training.whole))
    return Moment(time.monotonic() - started, has_trained())


def size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def changed_after(path: Path, moment: float) -> bool:
    with contextlib.suppress(FileNotFoundError):  # it has been put in its place meanwhile
        return path.stat().st_mtime > moment
    return False


def see_the_end(process: "subprocess.Popen[str]", what: str, patience: float = PATIENCE) -> str:
    """Wait until all that belongs to a start is gone, whatever ended it; what it said of errors."""
    deadline = time.monotonic() + patience
    said = process.communicate(timeout=patience + 60)[1]
    while left := session_members(process.pid):
        assert time.monotonic() < deadline, f"{what}: {left} still run"
        time.sleep(0.1)
    return said


def kill(training: Training, target: str, draw: random.Random) -> Ending:
    """SIGKILL to some of a start's processes; the others have to end by themselves."""
    launcher = draw.choice(LAUNCHERS)
    process = training.start(launcher)
    moment = wait_for(process, training, draw, saving=target == "a rank that saves")
    try:
        found = victims(process.pid, target, draw)
    except (OSError, IndexError):  # a process ended while its entry was read
        found = [process.pid]
    killed = 0
    for pid in found if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    text = f"{target} of {launcher}, {killed} killed after {moment.after:.1f} s"
    see_the_end(process, text)
    return Ending(killed > 0, text)


def send_to_all(training: Training, number: signal.Signals, draw: random.Random) -> Ending:
    """A signal to the whole process group, as a terminal sends it: no step that was done is lost."""
    launcher = draw.choice(LAUNCHERS)
    process = training.start(launcher)
    moment = wait_for(process, training, draw, saving=False)
    runs = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)
    text = f"{number.name} to {launcher} and all below it after {moment.after:.1f} s"
    see_the_end(process, text, 2 * PATIENCE)  # a launcher of its own end doesn't wait for the last checkpoint
    reported, saved = training.steps()
    assert reported == saved or not moment.in_training, f"{text}: {saved} of {reported} steps are saved"
    return Ending(runs, text)


def close_the_pipe(training: Training, draw: random.Random) -> Ending:
    """Nobody reads any more what is printed; the training comes to its end all the same."""
    launcher = draw.choice(LAUNCHERS)
    process = training.start(launcher)
    moment = wait_for(process, training, draw, saving=False)
    runs = process.poll() is None
    for name in ("stdout", "stderr"):
        getattr(process, name).close()
        setattr(process, name, None)
    code = process.wait(timeout=LONGEST)
    text = f"the pipe of {launcher} closed after {moment.after:.1f} s"
    see_the_end(process, text)
    assert code == 0, f"{text}: it ended with code {code}"
    assert training.has_ended(), f"{text}: the training isn't done"
    return Ending(runs, text)


def start_twice(training: Training, draw: random.Random) -> Ending:
    """A second start while the first one runs, or may be about to; it waits and goes on, or is refused.

    The first one is killed, or comes to its end.
    """
    first = training.start(draw.choice(LAUNCHERS))
    offset = draw.uniform(0, 0.9 * training.whole)
    time.sleep(offset)
    runs, resumes, killed = first.poll() is None, draw.random() < 0.5, draw.random() < 0.5
    second = training.start(draw.choice(LAUNCHERS), resumes=resumes)
    text = f"two starts, {offset:.1f} s apart, the second {'with' if resumes else 'without'} --resume auto"
    if killed:
        time.sleep(draw.uniform(0, training.whole))
        killed = first.poll() is None
        for pid in session_members(first.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    see_the_end(first, text, LONGEST)
    said = see_the_end(second, text, LONGEST)
    if not killed:
        assert first.returncode == 0, f"{text}: the first one ended with code {first.returncode}"
    refused = not resumes and any(refusal in said for refusal in REFUSALS)
    assert second.returncode == 0 or refused, f"{text}: the second one ended with {second.returncode}:\n{said[-2000:]}"
    text += f"{', the first killed' if killed else ''}{', the second refused' if refused else ''}"
    return Ending(runs, text)


def edit_the_data(training: Training, draw: random.Random) -> Ending:
    """A start behind an edit of a caption is refused, and leaves the run as it is, which may have to begin first."""
    while not complete_checkpoints(training.output):
        kill(training, "everything", draw)
    path = training.root / "lxmert" / "mscoco_train.json"
    whole, before = path.read_bytes(), stamps(training.output)
    place = draw.choice([index for index in range(len(whole) - 5) if whole[index : index + 5] == b" the "])
    path.write_bytes(whole[:place] + b" one " + whole[place + 5 :])
    try:
        run = launch("launch/pretrain.py", training.flags_for(training.output), launcher="warm")
    finally:
        path.write_bytes(whole)
    assert run.code == 2, f"a run went on with other data, code {run.code}"
    assert len(run.errors) == 1, run.stderr
    assert "annotations" in run.errors[0], run.errors[0]
    assert stamps(training.output) == before, "a refused start changed the run's files"
    return Ending(True, "a caption edited and restored, a start between refused")


def stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and time of each file that is there to stay."""
    found = {
        path: path.stat() for path in folder.rglob("[!.]*") if not path.relative_to(folder).parts[0].startswith(".")
    }
    return {str(path): (status.st_size, status.st_mtime_ns) for path, status in found.items() if path.is_file()}


ENDINGS: dict[str, Callable[[Training, random.Random], Ending]] = {
    **{target: lambda training, draw, target=target: kill(training, target, draw) for target in KILLED},
    "Ctrl-C": lambda training, draw: send_to_all(training, signal.SIGINT, draw),
    "a closed terminal": lambda training, draw: send_to_all(training, signal.SIGHUP, draw),
    "a closed pipe": close_the_pipe,
    "two starts": start_twice,
    "edited data": edit_the_data,
}


def end(training: Training, name: str, draw: random.Random) -> Ending:
    """Start a training and end it in the named way; nothing of it may be left in /dev/shm."""
    before = in_shared_memory()
    ending = ENDINGS[name](training, draw)
    new = left_in_shared_memory(before)
    assert not new, f"{ending.text}: {sorted(new)} left in /dev/shm"
    return ending
