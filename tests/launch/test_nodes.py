"""Trainings on two machines, which are two network namespaces of this one with a cable between them.

Each has a host name and an address of its own, and no way to the other but the cable. The disk is common to both.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.checkpoint.manifest import complete_checkpoints, read_manifest
from engine.distributed.leaving import SPEAKER
from engine.distributed.meeting import SILENCE
from tests.conftest import ROOT, environment, free_port, launch
from tests.kill.training import read_curve

Flags = Callable[..., list[str]]
pytestmark = pytest.mark.slow
REMOTE = ROOT / "tests" / "launch" / "remote"  # what stands in for ssh and pdsh
CABLE = "cable"  # each machine's network interface
WITHIN = 60.0  # seconds in which a machine has to notice that the other is gone
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
# Each step is reported. Annotations of both tasks, so that swapped captions are drawn, too.
COMMON = ["--task_matched", "true", "--batchSize", "4", "--report_step", "1", "--epochs", "20"]


class Node:
    """A machine: a network namespace of its own."""

    def __init__(self, number: int) -> None:
        self.name, self.address = f"node{number}-{os.getpid()}", f"10.97.3.{number + 1}"

    def start(self, command: list[str], log: Path, **more: str) -> "subprocess.Popen[bytes]":
        """Start a program here; `more` comes to its environment."""
        inside = [
            "ip",
            "netns",
            "exec",
            self.name,
            "unshare",
            "--uts",
            "sh",
            "-c",
            'hostname "$0"; exec "$@"',
            self.name,
        ]
        with log.open("wb") as output:
            return subprocess.Popen(
                [*inside, *command],
                cwd=ROOT,
                env={**environment(), "GLOO_SOCKET_IFNAME": CABLE, **more},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        return [int(pid) for pid in ip("netns", "pids", self.name).split()]

    def kill(self) -> None:
        """As when its power fails."""
        while pids := self.pids():
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)

    def wait_for_speakers(self) -> None:
        """A rank's error is written by a process that waits for the launcher's end, and so outlives it a little."""
        deadline = time.monotonic() + 10
        while any(is_speaker(pid) for pid in self.pids()):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def unplug(self) -> None:
        ip("-n", self.name, "link", "set", CABLE, "down")


def is_speaker(pid: int) -> bool:
    try:
        return SPEAKER in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:  # it ended meanwhile
        return False


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def nodes() -> Iterator[tuple[Node, Node]]:
    first, second = Node(0), Node(1)
    try:
        for node in (first, second):
            ip("netns", "add", node.name)
        ip("-n", first.name, "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", second.name)
        for node in (first, second):
            ip("-n", node.name, "address", "add", f"{node.address}/24", "dev", CABLE)
            ip("-n", node.name, "link", "set", CABLE, "up")
            ip("-n", node.name, "link", "set", "lo", "up")
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or error
        remove(first, second)
        pytest.skip(f"two network namespaces with a cable between them can't be made here: {said}")
    yield first, second
    remove(first, second)


def remove(*nodes: Node) -> None:
    for node in nodes:
        if Path("/run/netns", node.name).exists():
            node.kill()
            ip("netns", "delete", node.name)


def torchrun(nodes: tuple[Node, Node], tmp_path: Path, arguments: list[str]) -> list["subprocess.Popen[bytes]"]:
    """One rank on each; what they print goes to tmp_path/0 and 1."""
    common = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", nodes[0].address, "--master-port", "29500"]
    return [
        node.start([*TORCHRUN, *common, "--node-rank", str(number), *arguments], tmp_path / f"{number}")
        for number, node in enumerate(nodes)
    ]


def wait(processes: list["subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    """Until all have ended well."""
    for number, process in enumerate(processes):
        assert process.wait(120) == 0, (tmp_path / f"{number}").read_text()[-3000:]


def wait_for_step(output: Path, step: int, processes: list["subprocess.Popen[bytes]"], tmp_path: Path) -> None:
    deadline = time.monotonic() + 120
    while not (curve := read_curve(output)) or curve[-1]["step"] < step:
        assert all(process.poll() is None for process in processes), (tmp_path / "0").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


def errors_in(log: Path) -> list[str]:
    return [line for line in log.read_text().splitlines() if line.startswith("pretrain.py: ")]


def test_a_machine_that_dies_ends_the_other_and_one_machine_goes_on_and_two_again(
    nodes: tuple[Node, Node], flags: Flags, tmp_path: Path
) -> None:
    """Two ranks all the time: on two machines under torchrun, then on one, then on two; bit for bit as on one alone."""
    output = tmp_path / "run"
    common = flags(*COMMON, "--resume", "auto", "--output", str(output))
    processes = torchrun(nodes, tmp_path, ["launch/pretrain.py", *common, "--save_step", "3"])
    wait_for_step(output, 7, processes, tmp_path)  # by then the first checkpoint is whole
    nodes[1].kill()
    killed = time.monotonic()
    assert processes[0].wait(WITHIN) == 1
    assert time.monotonic() - killed < WITHIN
    nodes[0].wait_for_speakers()
    assert errors_in(tmp_path / "0") == ["pretrain.py: rank 0 ends, another one is gone"]
    assert "2 ranks on cpu with 1 thread a rank, fp32" in (tmp_path / "0").read_text()
    assert nodes[0].pids() == []

    done = read_manifest(complete_checkpoints(output)[0])["step"]
    run = launch("launch/pretrain.py", [*common, "--max_steps", str(done + 2)], launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    wait(torchrun(nodes, tmp_path, ["launch/pretrain.py", *common, "--max_steps", str(done + 4)]), tmp_path)
    assert f", after step {done + 2}\n" in (tmp_path / "0").read_text()
    assert "warning: " not in run.stdout + (tmp_path / "0").read_text()

    alone = tmp_path / "alone"
    run = launch(
        "launch/pretrain.py",
        flags(*COMMON, "--max_steps", str(done + 4), "--output", str(alone)),
        launcher="warm",
    )
    assert run.code == 0, run.stderr[-3000:]
    assert read_curve(alone)[-1]["step"] == done + 4
    ended_earlier = {"kind": "valid", "step": done + 2}  # and so has a validation there
    assert [record for record in read_curve(output) if not ended_earlier.items() <= record.items()] == read_curve(alone)


def test_a_hostfile_of_unequal_machines(
    nodes: tuple[Node, Node], flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DeepSpeed's, over pdsh: two ranks on one machine and one on the other, then one rank alone on the first."""
    output, hostfile, settings = tmp_path / "run", tmp_path / "hostfile", tmp_path / "deepspeed_env"
    hostfile.write_text(f"{nodes[0].name} slots=2\n{nodes[1].name} slots=1\n")
    # All that reaches the machines, as with ssh, is what DeepSpeed takes there: PYTHONPATH, and this file.
    taken = {"GLOO_SOCKET_IFNAME": CABLE, "DS_ACCELERATOR": "cpu", "SEEN_DIRECTORY": str(tmp_path)}
    settings.write_text("".join(f"{name}={value}\n" for name, value in taken.items()))
    monkeypatch.setenv("SEEN_DIRECTORY", str(tmp_path))
    common = flags(*COMMON, "--global_batch_size", "12", "--output", str(output))
    run = subprocess.run(
        [
            *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)),
            *("--master_port", free_port(), "tests/workers/recording_pretrain.py", *common, "--max_steps", "6"),
        ],
        cwd=ROOT,
        env={**environment(), "PATH": f"{REMOTE}:{os.environ['PATH']}", "DS_ENV_FILE": str(settings)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=150,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-3000:]
    threads = max(1, len(os.sched_getaffinity(0)) // 2)  # the rank that has a machine for itself came with more
    first = (
        f"3 ranks on cpu with {threads} thread{'s' * (threads > 1)} a rank, fp32, kernels of torch, 4 x 1 x 3 samples"
    )
    assert first in run.stdout
    splits = 2  # to train and to validate on
    assert Counter((tmp_path / "prepared").read_text().split()) == {"0": splits, "2": splits}  # once on each machine
    assert sorted(path.name for path in tmp_path.glob("*.json")) == [f"3.6.{rank}.json" for rank in range(3)]
    assert json.loads((output / "Step000006" / "manifest.json").read_text())["world_size"] == 3

    more = [*common, "--resume", "auto", "--stop_after_epoch", "1"]
    run = launch("tests/workers/recording_pretrain.py", more, ranks=1, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    shares = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    seen = Counter(number for share in shares for epoch, number in share if epoch == 0)
    assert len(shares) == 4
    assert seen == Counter(range(160))


def test_a_cable_that_is_pulled_ends_both_machines(nodes: tuple[Node, Node], flags: Flags, tmp_path: Path) -> None:
    """Nothing tells either of them: what they send is lost. The ranks are started as srun does."""
    output = tmp_path / "run"
    step = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
    }
    step |= {"SLURM_STEP_NODELIST": f"{nodes[0].address},{nodes[1].address}", "SLURM_LOCALID": "0"}
    processes = [
        node.start(
            [sys.executable, "launch/pretrain.py", *flags(*COMMON, "--output", str(output))],
            tmp_path / f"{number}",
            **{**step, "SLURM_PROCID": str(number), "SLURM_NODEID": str(number)},
        )
        for number, node in enumerate(nodes)
    ]
    wait_for_step(output, 2, processes, tmp_path)
    nodes[1].unplug()
    unplugged = time.monotonic()
    for number, process in enumerate(processes):
        assert process.wait(WITHIN) == 1
        assert SILENCE - 5 < time.monotonic() - unplugged < WITHIN  # not for another reason
        other = f"rank {1 - number} on {nodes[1 - number].name}"
        [error] = errors_in(tmp_path / f"{number}")
        assert error.startswith(f"pretrain.py: error: {other} can't be heard any more: it ended, as its own message")


PRIVATE = """
mount -t tmpfs -o size=64k tmpfs /dev/shm && mount -t tmpfs tmpfs "$0" && exec "$@"
"""  # what one machine has for itself


def test_problems_of_two_machines_are_told_in_one_list(
    nodes: tuple[Node, Node], flags: Flags, damaged: Path, tmp_path: Path
) -> None:
    """The second one has no room for batches, another --output, and no images; and the port of both is taken."""
    disk = tmp_path / "disk"
    disk.mkdir()
    (damaged / "mscoco" / "val2014").rename(damaged / "elsewhere")
    data = ["--data_root", str(damaged), "--num_workers", "1", "--memory_limit", "0.02"]
    program = [sys.executable, str(ROOT / "launch" / "pretrain.py"), *flags(*COMMON[:-4], *data, "--batchSize", "32")]
    program += ["--output", str(disk / "run"), "--dry_run"]
    taken = [sys.executable, "-m", "http.server", "29500"]
    places = {"WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_SIZE": "1"}
    places |= {"MASTER_ADDR": nodes[0].address, "MASTER_PORT": "29500"}
    nodes[0].start(taken, tmp_path / "taken")
    time.sleep(2)  # until it listens
    private = ["unshare", "--mount", "sh", "-c", PRIVATE, str(disk), *program]
    first = nodes[0].start(program, tmp_path / "0", RANK="0", **places)
    second = nodes[1].start(private, tmp_path / "1", RANK="1", **places)
    assert (first.wait(120), second.wait(120)) == (2, 2)
    told = (tmp_path / "0").read_text()
    parts = [
        "5 things keep this training from running:",
        "--batch_size 32 takes",
        "val2014 can't be read",
        f"on {nodes[1].name}: /dev/shm has 0 MB free",
        "port 29500, where the ranks were to meet, is taken",
        f"rank 1 on {nodes[1].name} doesn't see what rank 0 on {nodes[0].name} writes to --output",
    ]
    for part in parts:
        assert told.count(part) == 1, told
    assert list(disk.iterdir()) == []
