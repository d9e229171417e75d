"""Kill trainings at random moments, and see that nothing is left and the next one works.

    python -m tests.kill --times 20

Each time a two-rank training starts, half of the times with its annotations still to be prepared, and one rank, all
ranks, a loading worker, the launcher or everything is ended by SIGKILL. Afterwards all its processes have to end by
themselves, /dev/shm has to be as before, and a whole training of the same port has to run to its end.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from engine.data.demo import write_demo
from engine.distributed import _parent
from tests.conftest import TINY_BERT, free_port, session_members, start

TARGETS = ("one rank", "all ranks", "a worker", "deepspeed", "its launch module", "everything")
REPEATS = 1500  # of each scene's sentences: preparing them takes a second or two
PATIENCE = 20.0  # seconds in which what is left has to end by itself


def write_data(root: Path) -> None:
    """A few scenes, many sentences."""
    write_demo(root, train_scenes=40, valid_scenes=5, seed=1)
    config = json.loads((root / "bert" / "config.json").read_text())
    (root / "bert" / "config.json").write_text(json.dumps({**config, **TINY_BERT}))
    path = root / "lxmert" / "mscoco_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * REPEATS))


def start_training(root: Path, port: str) -> "subprocess.Popen[str]":
    flags = ["--recipe", "demo_stage_one", "--data_root", str(root), "--bert", str(root / "bert")]
    flags += ["--output", str(root / "run"), "--max_steps", "20", "--report_step", "5", "--num_workers", "2"]
    return start("launch/pretrain.py", flags, port=port)


def victims(leader: int, target: str, draw: random.Random) -> list[int]:
    """The processes to kill; everything, while those asked for aren't there yet."""
    members = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in session_members(leader)}
    launch = [pid for pid, line in members.items() if "deepspeed.launcher.launch" in line]
    programs = [pid for pid, line in members.items() if "pretrain.py\0--local_rank" in line]
    ranks = [pid for pid in programs if _parent(pid) in launch]
    found = {
        "one rank": draw.sample(ranks, min(1, len(ranks))),
        "all ranks": ranks,
        "a worker": draw.sample(sorted(set(programs) - set(ranks)), min(1, len(programs) - len(ranks))),
        "deepspeed": [leader],
        "its launch module": launch,
        "everything": list(members),
    }
    return found[target] or list(members)


def in_shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def run_whole(root: Path, port: str) -> float:
    """A training that nobody disturbs; its seconds."""
    started = time.monotonic()
    process = start_training(root, port)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, f"a training after a kill ended with code {process.returncode}:\n{errors[-3000:]}"
    return time.monotonic() - started


def kill_once(root: Path, port: str, target: str, after: float, draw: random.Random) -> list[int]:
    """Start, kill, and wait until all that belonged to it is gone; the processes that the kill found."""
    before = in_shared_memory()
    process = start_training(root, port)
    time.sleep(after)
    try:
        found = victims(process.pid, target, draw)
    except (OSError, IndexError):  # a process ended while its entry was read
        found = [process.pid]
    killed = []
    for pid in found if process.poll() is None else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            killed.append(pid)
    deadline = time.monotonic() + PATIENCE
    process.communicate(timeout=PATIENCE + 60)
    while left := session_members(process.pid):
        assert time.monotonic() < deadline, f"{target} killed after {after:.1f} s: {left} still run"
        time.sleep(0.1)
    new = in_shared_memory() - before
    assert not new, f"{target} killed after {after:.1f} s left {sorted(new)} in /dev/shm"
    return killed


def kills(times: int, seed: int) -> Iterator[str]:
    """A line for each kill.

    Raises:
        AssertionError: if one leaves something or keeps the next training from running.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="clipvil-kill-") as folder:
        root, port = Path(folder), free_port()
        write_data(root)
        whole = run_whole(root, port)
        yield f"a whole training takes {whole:.1f} s"
        hits, misses = 0, 0
        while hits < times:
            target = TARGETS[hits % len(TARGETS)]
            if unprepared := draw.random() < 0.5:
                shutil.rmtree(root / "cache")
            after = draw.uniform(0.3, 0.95 * whole)
            killed = kill_once(root, port, target, after, draw)
            if not killed:  # the training had ended: the machine is faster than it was
                whole, misses = 0.9 * whole, misses + 1
                assert misses <= times + 10, f"{misses} of {misses + hits} trainings ended before they were killed"
                continue
            hits += 1
            whole = run_whole(root, port)
            stores = sorted(path.suffix for path in (root / "cache").iterdir())
            assert stores == [".store", ".store"], f"the cache holds {stores}"
            state = "annotations unprepared" if unprepared else "annotations prepared"
            yield f"{target} ({len(killed)}) killed after {after:.1f} s, {state}; the next took {whole:.1f} s"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for line in kills(options.times, options.seed):
        print(line, flush=True)
