"""Kill trainings at random moments, and see that each next start goes on as if nothing had happened.

    python -m tests.kill --times 30

Two trainings take turns: one of many short epochs that leave micro-batches over, with two sentences to an image; and
one whose annotations take a while to prepare and, half of the times, have to be prepared again. Each start goes on with
--resume auto, and one rank, all ranks, a rank while it saves, a loading worker, the launcher or everything is ended by
SIGKILL. Afterwards all its processes have to end by themselves, and /dev/shm has to be as before. When a training has
got to its end, its metrics and weights have to be those, bit for bit, of one that nobody disturbed, and its folder has
to hold the same files.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint.manifest import complete_checkpoints, read_manifest
from engine.distributed.launchers import parent_of
from engine.synthetic.demo import write_demo
from tests.conftest import TINY_BERT, free_port, in_shared_memory, launch, left_in_shared_memory, session_members, start

TARGETS = ("one rank", "a rank that saves", "all ranks", "a worker", "deepspeed", "its launch module", "everything")
REPEATS = 1500  # of each scene's sentences in the second training: preparing them takes a second or two
PATIENCE = 20.0  # seconds in which what is left has to end by itself
SAVE_STEP, KEEP = 2, 2
# Of a report, what differs from run to run; so do warnings, some of which are about speed.
TIMES = ("images_per_second", "samples_per_second", "seconds_per_step", "seconds_left", "data_wait", "peak_memory_gb")


class Training:
    """A command that is started again and again until it gets to its end, and what it has to come to."""

    def __init__(self, folder: Path, repeats: int, flags: list[str]) -> None:
        self.root = folder
        self.output = folder / "run"
        write_data(folder, repeats)
        common = ["--recipe", "demo_stage_one", "--data_root", str(folder), "--bert", str(folder / "bert")]
        common += ["--report_step", "1", "--num_workers", "2", "--batchSize", "8", "--save_step", str(SAVE_STEP)]
        self.flags = [*common, "--keep", str(KEEP), *flags]
        self.port = free_port()
        self.whole = self.run_to_the_end(folder / "undisturbed")
        self.curve = read_curve(folder / "undisturbed")
        self.files = files(folder / "undisturbed")
        self.weights = read_weights(folder / "undisturbed")

    def flags_for(self, output: Path) -> list[str]:
        return [*self.flags, "--output", str(output), "--resume", "auto"]

    def start(self) -> "subprocess.Popen[str]":
        return start("launch/pretrain.py", self.flags_for(self.output), port=self.port)

    def run_to_the_end(self, output: Path, launcher: str = "deepspeed") -> float:
        """Seconds that it takes."""
        started = time.monotonic()
        run = launch("launch/pretrain.py", self.flags_for(output), port=self.port, launcher=launcher, timeout=180)
        assert run.code == 0, f"a training ended with code {run.code}:\n{run.stderr[-3000:]}"
        return time.monotonic() - started

    def has_ended(self) -> bool:
        latest = self.output / "latest"
        return (
            latest.exists()
            and (self.output / f"{latest.read_text()}_LXRT.pth").exists()
            and (len(read_curve(self.output)) == len(self.curve))
        )

    def check_the_end(self) -> None:
        """Let it come there if it hasn't, compare with the undisturbed one, and begin anew."""
        self.run_to_the_end(self.output, launcher="warm")  # whatever starts it, it has to be the same
        curve = read_curve(self.output)
        differing = [(ours, theirs) for ours, theirs in zip(curve, self.curve, strict=False) if ours != theirs]
        assert curve == self.curve, f"{len(curve)} of {len(self.curve)} reports, first difference: {differing[:1]}"
        weights = read_weights(self.output)
        assert set(weights) == set(self.weights)
        assert all(torch.equal(weights[name], self.weights[name]) for name in weights)
        assert files(self.output) == self.files
        assert len(complete_checkpoints(self.output)) == KEEP
        shutil.rmtree(self.output)


def write_data(root: Path, repeats: int) -> None:
    """A few scenes, perhaps many sentences, and a small BERT with dropout."""
    write_demo(root, train_scenes=40, valid_scenes=5, seed=1)
    config = json.loads((root / "bert" / "config.json").read_text())
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (root / "bert" / "config.json").write_text(json.dumps({**config, **TINY_BERT, **dropout}))
    path = root / "lxmert" / "mscoco_train.json"
    path.write_text(json.dumps(json.loads(path.read_text()) * repeats))


def read_curve(output: Path) -> list[dict[str, Any]]:
    """Reports and validations, without times."""
    lines = (output / "metrics.jsonl").read_text().splitlines() if (output / "metrics.jsonl").exists() else []
    records = [record for line in lines if (record := json.loads(line))["kind"] != "warning"]
    return [{key: value for key, value in record.items() if key not in TIMES} for record in records]


def read_weights(output: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(output / f"{(output / 'latest').read_text()}_LXRT.pth", weights_only=True))


def files(output: Path) -> set[str]:
    """Without the numbers of steps: a training that was asked to stop saved at other ones."""
    return {re.sub(r"Step\d+", "Step", str(path.relative_to(output))) for path in output.rglob("*")}


def victims(leader: int, target: str, draw: random.Random) -> list[int]:
    """The processes to kill; everything, while those asked for aren't there yet."""
    members = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().decode() for pid in session_members(leader)}
    launch = [pid for pid, line in members.items() if "deepspeed.launcher.launch" in line]
    programs = [pid for pid, line in members.items() if "pretrain.py\0--local_rank" in line]
    ranks = [pid for pid in programs if parent_of(pid) in launch]
    found = {
        "one rank": draw.sample(ranks, min(1, len(ranks))),
        "all ranks": ranks,
        "a rank that saves": draw.sample(ranks, min(1, len(ranks))),
        "a worker": draw.sample(sorted(set(programs) - set(ranks)), min(1, len(programs) - len(ranks))),
        "deepspeed": [leader],
        "its launch module": launch,
        "everything": list(members),
    }
    return found[target] or list(members)


def wait_for(process: "subprocess.Popen[str]", training: Training, target: str, draw: random.Random) -> str:
    """Until the random moment of a kill: at any time, or in training, or while a checkpoint is being written."""
    started = time.monotonic()
    metrics = training.output / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0

    def wait_until(condition: Callable[[], object]) -> None:
        while not condition() and process.poll() is None:
            time.sleep(0.001)

    if target == "a rank that saves":
        now = time.time()  # the kill before may have left an unfinished one
        wait_until(lambda: any(changed_after(path, now) for path in training.output.glob(".*.unfinished")))
        time.sleep(draw.uniform(0, 0.05))
    elif draw.random() < 0.4:
        time.sleep(draw.uniform(0.3, 0.9 * training.whole))
    else:
        wait_until(lambda: metrics.exists() and metrics.stat().st_mtime_ns > before)
        time.sleep(draw.uniform(0, 0.2 * training.whole))
    return f"after {time.monotonic() - started:.1f} s"


def changed_after(path: Path, moment: float) -> bool:
    with contextlib.suppress(FileNotFoundError):  # it has been put in its place meanwhile
        return path.stat().st_mtime > moment
    return False


def kill_once(training: Training, target: str, draw: random.Random) -> tuple[int, str]:
    """Start, kill, and wait until all that belonged to it is gone; how many the kill found, and when."""
    before = in_shared_memory()
    process = training.start()
    moment = wait_for(process, training, target, draw)
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
        assert time.monotonic() < deadline, f"{target} killed {moment}: {left} still run"
        time.sleep(0.1)
    new = left_in_shared_memory(before)
    assert not new, f"{target} killed {moment} left {sorted(new)} in /dev/shm"
    return len(killed), moment


def steps(training: Training) -> tuple[int, int]:
    """Optimiser steps that were reported, and those of the newest checkpoint."""
    reported = [record["step"] for record in read_curve(training.output)]
    saved = complete_checkpoints(training.output)
    return max(reported, default=0), read_manifest(saved[0])["step"] if saved else 0


def kills(times: int, seed: int) -> Iterator[str]:
    """A line for each kill.

    Raises:
        AssertionError: if one leaves something, or a training doesn't come to what it has to.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="clipvil-kill-") as folder:
        # Ten micro-batches an epoch, of which one is left over; and one part of a long epoch.
        flags = ["--epochs", "3", "--gradient_accumulation_steps", "3", "--sentences_per_image", "2"]
        short = Training(Path(folder, "short"), 1, flags)
        long = Training(Path(folder, "long"), REPEATS, ["--max_steps", "12"])
        yield f"undisturbed, the trainings take {short.whole:.1f} and {long.whole:.1f} s"
        hits, misses, ends = 0, 0, 0
        while hits < times:
            training, target = (short, long)[hits % 2], TARGETS[hits % len(TARGETS)]
            unprepared = training is long and draw.random() < 0.5
            if unprepared:
                shutil.rmtree(training.root / "cache", ignore_errors=True)
            killed, moment = kill_once(training, target, draw)
            reported, saved = steps(training)
            assert reported - saved <= 2 * SAVE_STEP, f"{reported} steps were done, the newest checkpoint is of {saved}"
            if killed:
                hits += 1
                state = ", without prepared annotations" if unprepared else ""
                yield f"{target}, {killed} killed {moment}{state}: {saved} of {reported} steps are saved"
            else:  # the training had ended
                misses += 1
                assert misses <= times + 10, f"{misses} of {misses + hits} trainings ended before they were killed"
            if training.has_ended():
                training.check_the_end()
                ends += 1
        for training in (short, long):
            if training.output.exists():
                training.check_the_end()
                ends += 1
        yield f"{ends} trainings came to their end, each equal to the undisturbed one"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for line in kills(options.times, options.seed):
        print(line, flush=True)
