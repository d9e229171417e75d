"""Shared by the tests: a small drawn data set, and programs started as a user starts them."""

import atexit
import contextlib
import itertools
import json
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any
from unittest.mock import patch

import pytest

os.environ.setdefault("DS_ACCELERATOR", "cpu")  # these are a CPU's tests, on a machine with a GPU as well
os.environ.setdefault("OMP_NUM_THREADS", "1")  # small models gain nothing from more, and tests run side by side

from engine.data.images.places import image_path
from engine.distributed.leaving import SPEAKER
from engine.synthetic.demo import write_demo
from tests.warm import WarmProcess, WarmServer

STARTED: dict[int, str] = {}  # by the process that was started, the mark that all its descendants have
MARK = "CLIPVIL_TEST_START"  # a variable by which the processes of a start are known
ROOT = Path(__file__).resolve().parent.parent
TINY_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow ones first in each process's share, so that none is left alone with one at the end.

    `--dist worksteal` begins with shares of consecutive tests, and takes from a share's end what another one gets. The
    slow ones of a file stay together: what they have in common is made once.
    """
    slow = [item for item in items if item.get_closest_marker("slow")]
    quick = [item for item in items if not item.get_closest_marker("slow")]
    files = [list(tests) for _, tests in itertools.groupby(slow, key=lambda item: item.path)]
    processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    dealt: list[pytest.Item] = []
    for share in range(processes):
        dealt += itertools.chain(*files[share::processes])
        room = max(0, len(items) * (share + 1) // processes - len(dealt))
        dealt += quick[:room]
        del quick[:room]
    items[:] = dealt


@dataclass
class Run:
    """What became of one program."""

    code: int
    stdout: str
    stderr: str
    seconds_after_error: float  # from the line ": error: " to the launcher's end
    left: list[int]  # processes of it that outlived it

    @property
    def errors(self) -> list[str]:
        """Lines that are our own errors."""
        return [line for line in self.stderr.splitlines() if ": error: " in line]


@cache
def packaging() -> dict[str, Any]:
    """What setup.py tells setuptools."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    return dict(setup.call_args.kwargs)


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def environment() -> dict[str, str]:
    """Of a program that runs on the CPU, from this checkout. PYTHONPATH may have more, such as DeepSpeed."""
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(place for place in places if place)
    # DeepSpeed's launcher sets CUDA_VISIBLE_DEVICES anew; who is asked for its accelerator heeds the other one.
    return {**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


@cache
def warm_server() -> WarmServer:
    """Of this test session, or of this worker of several."""
    server = WarmServer(environment(), ROOT)
    atexit.register(server.close)
    return server


def start(
    script: str,
    flags: list[str],
    *,
    ranks: int = 2,
    launcher: str = "deepspeed",
    port: str | None = None,
    folder: Path = ROOT,
) -> "subprocess.Popen[str]":
    """Start a script under a launcher, which one rank doesn't need, in a folder and a session of its own."""
    port = port or free_port()
    programs = {
        "deepspeed": [
            *(sys.executable, "-m", "deepspeed.launcher.runner"),
            *("--num_gpus", str(ranks), "--master_port", port),
        ],
        "torchrun": [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)),
            *("--master-port", port),
        ],
        "python": [sys.executable],
    }
    mark = f"{os.getpid()}-{len(STARTED)}"
    process = subprocess.Popen(
        [*programs["python" if ranks == 1 else launcher], str(ROOT / script), *flags],
        cwd=folder,
        env={**environment(), MARK: mark},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    STARTED[process.pid] = mark
    return process


def launch(
    script: str,
    flags: list[str],
    *,
    ranks: int = 2,
    launcher: str = "deepspeed",
    port: str | None = None,
    folder: Path = ROOT,
    timeout: float = 240,
) -> Run:
    """Start a script in a folder and wait for its end.

    Args:
        launcher: deepspeed, torchrun, or python for one rank, as a user starts it; or warm, which saves the seconds of
            the imports: see tests/warm.py.
    """
    process: subprocess.Popen[str] | WarmProcess
    if launcher == "warm":
        process = warm_server().start(str(ROOT / script), flags, environment(), ranks, port or free_port(), str(folder))
    else:
        process = start(script, flags, ranks=ranks, launcher=launcher, port=port, folder=folder)
    assert process.stdout is not None
    assert process.stderr is not None
    output: dict[str, list[str]] = {"stdout": [], "stderr": []}
    error_at: list[float] = []

    def collect(stream: IO[str], name: str) -> None:
        for line in stream:
            output[name].append(line)
            if ": error: " in line:
                error_at.append(time.monotonic())

    readers = [
        threading.Thread(target=collect, args=(process.stdout, "stdout")),
        threading.Thread(target=collect, args=(process.stderr, "stderr")),
    ]
    for reader in readers:
        reader.start()
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"{script} was still running after {timeout} s:\n" + "".join(output["stderr"])[-4000:])
    ended = time.monotonic()
    left = session_members(process.pid)
    while any(map(is_ending, left)) and time.monotonic() < ended + 5:
        time.sleep(0.01)
        left = session_members(process.pid)
    for member in left:
        os.kill(member, signal.SIGKILL)
    for reader in readers:
        reader.join()
    seconds = ended - error_at[0] if error_at else 0.0
    return Run(code, "".join(output["stdout"]), "".join(output["stderr"]), seconds, left)


def session_members(leader: int) -> list[int]:
    """Processes of a session that are alive, and those that its leader brought about in others, as torchrun does.

    Zombies that wait for their parent aren't alive.
    """
    mark, members = f"{MARK}={STARTED.get(leader)}".encode(), []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
            variables = stat.with_name("environ").read_bytes().split(b"\0")
        except (OSError, IndexError):
            continue
        if (int(fields[3]) == leader or mark in variables) and fields[0] != "Z":
            members.append(int(stat.parent.name))
    return members


def in_shared_memory() -> set[str]:
    return set(os.listdir("/dev/shm"))


def left_in_shared_memory(before: set[str], seconds: float = 120) -> set[str]:
    """What is new in /dev/shm and stays there. Tests that run beside this one have names there for a while."""
    left, deadline = in_shared_memory() - before, time.monotonic() + seconds
    while left and time.monotonic() < deadline:
        time.sleep(0.1)
        left &= in_shared_memory()
    return left


def is_ending(pid: int) -> bool:
    """Whether a process needs no more than a moment to be gone.

    Python's tracker of spawned workers' semaphores ends when it sees that their owner has, some milliseconds later, and
    what says a rank's error last, when its launcher has ended. A process that is being taken down has no command line
    any more.
    """
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return True
    return not command or b"multiprocessing.resource_tracker" in command or SPEAKER.encode() in command


def read_metrics(folder: Path, kind: str = "train") -> list[dict[str, Any]]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if record["kind"] == kind]


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root of 40 scenes (160 sentences) for training and 15 for validation, and a BERT of one small layer."""
    root = tmp_path_factory.mktemp("scenes")
    write_demo(root, train_scenes=40, valid_scenes=15, seed=1)
    config = json.loads((root / "bert" / "config.json").read_text())
    (root / "bert" / "config.json").write_text(json.dumps({**config, **TINY_BERT}))
    return root


@pytest.fixture
def flags(scenes: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Flags of a training of a few steps on the small scenes; more may follow and override."""

    def build(*more: str) -> list[str]:
        common = ["--recipe", "demo_stage_one", "--data_root", str(scenes), "--bert", str(scenes / "bert")]
        return [*common, "--num_workers", "0", "--output", str(tmp_path / "run"), *more]

    return build


def fp16_flags(folder: Path) -> list[str]:
    """Flags of fp16 with a loss scale that the small model bears from its first step: its random weights are drawn wide
    (0.08), so its gradients are of the order of 1, and 2^16 times that is more than fp16 holds."""
    settings = json.loads((ROOT / "ds_configs" / "zero2_fp16.json").read_text())
    settings["fp16"]["initial_scale_power"] = 12
    path = folder / "zero2_fp16.json"
    path.write_text(json.dumps(settings))
    return ["--fp16", "true", "--deepspeed_config", str(path)]


@pytest.fixture
def damaged(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the small scenes that a test may change, without what other tests have left in their cache."""
    return Path(shutil.copytree(scenes, tmp_path / "damaged", ignore=shutil.ignore_patterns("cache")))


def write_question_files(root: Path) -> None:
    """All of VQA's files for the small scenes: nominival gets 5 of minival's 15 images, and `test` 3 of its own,
    unlabelled.

    Each image has two questions.
    """
    questions = json.loads((root / "vqa" / "minival.json").read_text())
    test = []
    for number, question in enumerate(questions[:6]):
        img_id = f"COCO_test2015_{number // 2:012d}"
        path = root / image_path(img_id)
        path.parent.mkdir(exist_ok=True)
        shutil.copy(root / image_path(question["img_id"]), path)
        test.append({"question_id": 2 * 10**9 + number, "img_id": img_id, "sent": question["sent"]})
    for name, items in {"nominival": questions[:10], "minival": questions[10:], "test": test}.items():
        (root / "vqa" / f"{name}.json").write_text(json.dumps(items))


@pytest.fixture
def question_files(damaged: Path) -> Path:
    """Such a copy with all of VQA's files."""
    write_question_files(damaged)
    return damaged


@contextlib.contextmanager
def small_tmpfs(folder: Path, size: str, *options: str) -> Iterator[None]:
    """A small file system at a folder, for full disks and ones that can't be written; only root can have it."""
    folder.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
