import os
import select
import signal
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import patch

import deepspeed
import pytest
import torch
import torch.distributed
from deepspeed.accelerator import cuda_accelerator
from deepspeed.comm.torch import build_shm_op

import engine.distributed.device
import engine.distributed.launchers
from engine.distributed.device import agree_on_threads, pick_device
from engine.distributed.joining import join
from engine.distributed.ranks import ALONE, Ranks
from engine.errors import UserError
from tests.conftest import ROOT, environment, session_members


@pytest.fixture
def two_gpus(monkeypatch):
    """An accelerator that notes which device it is told to use."""
    chosen = []
    accelerator = SimpleNamespace(
        device_name=lambda index=None: "cuda" if index is None else f"cuda:{index}",
        device_count=lambda: 2,
        set_device=chosen.append,
    )
    monkeypatch.setattr(engine.distributed.device, "get_accelerator", lambda: accelerator)
    return chosen


def test_each_rank_has_the_gpu_of_its_local_rank(two_gpus):
    """On the second of two nodes, global and local rank differ."""
    assert pick_device(Ranks(rank=3, world_size=4, local_rank=1, local_world_size=2)) == torch.device("cuda:1")
    assert two_gpus == [1]


def test_more_ranks_than_gpus_are_refused(two_gpus):
    with pytest.raises(UserError, match="3 ranks were started on this machine, which has 2 GPUs"):
        pick_device(Ranks(rank=2, world_size=3, local_rank=2, local_world_size=3))
    assert two_gpus == []


def test_fp16_goes_by_what_the_accelerator_supports(two_gpus, monkeypatch):
    """Which of today's CPUs say yes differs, so both answers are put here."""
    monkeypatch.setattr(engine.distributed.device, "fp16_is_supported", lambda: True)
    assert pick_device(ALONE, fp16=True) == torch.device("cuda:0")
    monkeypatch.setattr(engine.distributed.device, "fp16_is_supported", lambda: False)
    with pytest.raises(UserError) as error:
        pick_device(ALONE, fp16=True)
    expected = "--fp16 needs a GPU; on a CPU use --bf16, or neither for fp32 (with a recipe: --fp16 false)"
    assert str(error.value) == expected


@pytest.mark.parametrize("ids", ["GPU-5d2f7c1e,GPU-90ab12cd", "MIG-3c6e51f0", "0,1"])
def test_free_memory_is_known_whatever_ids_a_gpu_goes_by(ids, monkeypatch):
    """DeepSpeed's accelerator, as on a GPU with nvidia-ml-py, knows it for numbers alone."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ids)
    nvml = SimpleNamespace(
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetMemoryInfo=lambda handle: SimpleNamespace(free=handle),
    )
    monkeypatch.setattr(cuda_accelerator, "pynvml", nvml)
    accelerator = cuda_accelerator.CUDA_Accelerator()
    if ids != "0,1":
        with pytest.raises(ValueError, match="invalid literal for int"):
            accelerator.available_memory(0)
    monkeypatch.setattr(engine.distributed.device, "get_accelerator", lambda: accelerator)
    for name, value in (("device_count", 2), ("set_device", None), ("mem_get_info", (7 << 30, 9 << 30))):
        monkeypatch.setattr(torch.cuda, name, lambda *index, value=value: value)
    pick_device(ALONE)
    assert accelerator.available_memory() == accelerator.available_memory(0) == 7 << 30


def test_no_operator_is_tried_and_warned_of(monkeypatch, capfd):
    """Where there is no nvcc, DeepSpeed would print a warning for each that it can't compile, on every rank."""
    monkeypatch.delitem(vars(deepspeed.ops), "__compatible_ops__", raising=False)
    monkeypatch.setattr(deepspeed.ops, "_probe_compatible_ops", lambda: pytest.fail("it looks what can be compiled"))
    monkeypatch.setattr(deepspeed, "init_distributed", lambda **options: build_shm_op())
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    with patch.dict(os.environ):  # which join completes
        join()
    assert build_shm_op() is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("launcher", "expected"),
    [
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}, Ranks(5, 8, 1, 4)),
        ({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}, Ranks(5, 8, 1, 4)),
        ({}, Ranks(0, 1, 0, 1)),
    ],
    ids=["deepspeed", "torchrun", "alone"],
)
def test_ranks_are_read_from_each_launchers_environment(monkeypatch, launcher, expected):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    assert Ranks.from_environment() == expected


# --- ranks whose launcher dies

# Starts what follows it on the command line, as launchers do, and waits.
PARENT = "import subprocess, sys; subprocess.run(sys.argv[1:])"
RANK = """
import os, sys, time
from engine.distributed.launchers import end_with_launcher
if "DELAY" in os.environ:
    print(os.getpid(), flush=True)
    time.sleep(float(os.environ["DELAY"]))
end_with_launcher()
print(os.getpid(), flush=True)
time.sleep(60)
"""


class Family:
    """A rank below some scripts, the first of them on top, in a session of their own."""

    def __init__(self, folder, *names, delay=None):
        commands = []
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(PARENT)
            commands += [sys.executable, str(folder / name)]
        self.top = subprocess.Popen(
            [*commands, sys.executable, "-c", RANK],
            cwd=ROOT,
            env={**environment(), **({} if delay is None else {"DELAY": str(delay)})},
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.rank = int(self.top.stdout.readline())
        self.rank_end = os.pidfd_open(self.rank)

    def rank_ends_within(self, seconds):
        return bool(select.select([self.rank_end], [], [], seconds)[0])

    def close(self):
        for pid in session_members(self.top.pid):
            os.kill(pid, signal.SIGKILL)
        self.top.wait()
        self.top.stdout.close()
        os.close(self.rank_end)


@pytest.fixture
def family(tmp_path):
    """Starts one Family, and ends it."""
    started = []

    def start(*names, delay=None):
        started.append(Family(tmp_path, *names, delay=delay))
        return started[-1]

    yield start
    for each in started:
        each.close()


MODULE = "python\0-u\0-m\0deepspeed.launcher.launch\0--world_info=e30=\0launch/pretrain.py\0"


@pytest.mark.parametrize(
    ("above", "expected"),
    [
        ([MODULE, "/usr/bin/python\0/opt/bin/deepspeed\0--num_gpus\0002\0", "bash\0"], 2),
        ([MODULE, "python\0-m\0deepspeed.launcher.runner\0--num_gpus\0002\0", "bash\0"], 2),
        (["/usr/bin/python\0/opt/bin/torchrun\0launch/pretrain.py\0", "sh\0-c\0torchrun\0"], 2),
        (["python\0-m\0torch.distributed.run\0launch/pretrain.py\0", "make\0demo\0"], 1),
        (["python\0launch/demo.py\0", "/opt/bin/deepspeed\0"], 0),
    ],
    ids=["deepspeed", "deepspeed_as_a_module", "torchrun", "torchrun_as_a_module", "none"],
)
def test_launchers_are_known_by_their_commands(monkeypatch, above, expected):
    """Those right above a rank; what is above another program is not the rank's."""
    commands = dict(enumerate(above, start=10))
    monkeypatch.setattr(os, "getppid", lambda: 10)
    monkeypatch.setattr(engine.distributed.launchers, "_command", lambda pid: commands[pid].encode())
    monkeypatch.setattr(engine.distributed.launchers, "parent_of", lambda pid: pid + 1 if pid + 1 in commands else 0)
    assert list(engine.distributed.launchers.launchers()) == list(commands)[:expected]


@pytest.mark.parametrize(
    "names",
    [("deepspeed",), ("torchrun",), ("deepspeed", "other/torchrun")],
    ids=["deepspeed", "torchrun", "launcher_of_the_launcher"],
)
def test_a_rank_ends_with_its_launcher(family, names):
    """However that ends: SIGKILL leaves it no time to tell anyone. The one on top is killed, those between live on."""
    started = family(*names)
    assert not started.rank_ends_within(0.5)
    started.top.send_signal(signal.SIGKILL)
    assert started.rank_ends_within(5)


def test_a_rank_outlives_parents_that_are_no_launchers(family):
    """Such as a shell whose user logs out: nohup has to work."""
    started = family("something")
    started.top.send_signal(signal.SIGKILL)
    started.top.wait()
    assert not started.rank_ends_within(1.5)


def test_a_launcher_above_another_program_is_not_the_ranks(family):
    """A launcher may itself start a program that starts a run of its own."""
    started = family("deepspeed", "something")
    started.top.send_signal(signal.SIGKILL)
    started.top.wait()
    assert not started.rank_ends_within(1.5)


def test_a_rank_whose_launcher_died_before_it_could_watch_ends_at_once(family, monkeypatch):
    """Importing torch and DeepSpeed takes seconds; who is killed meanwhile has left an orphan."""
    monkeypatch.setenv("CROSS_RANK", "0")
    started = family("deepspeed", delay=1.0)
    started.top.send_signal(signal.SIGKILL)
    assert started.rank_ends_within(5)


def test_a_launcher_that_a_person_left_alone_keeps_its_ranks(tmp_path, monkeypatch):
    """As with `nohup deepspeed ... &` when its shell has gone: an orphan, and nobody has to end."""
    monkeypatch.setenv("CROSS_RANK", "0")
    (tmp_path / "deepspeed").write_text(PARENT)
    shell = subprocess.Popen(
        ["sh", "-c", '"$@" & exit', "sh", sys.executable, str(tmp_path / "deepspeed"), sys.executable, "-c", RANK],
        cwd=ROOT,
        env={**environment(), "DELAY": "0.5"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rank = int(shell.stdout.readline())
    shell.wait()
    with open(os.pidfd_open(rank)) as end:
        assert not select.select([end], [], [], 2)[0]
    for pid in session_members(shell.pid):
        os.kill(pid, signal.SIGKILL)
    shell.stdout.close()


def test_the_end_with_the_launcher_is_a_sigterm(tmp_path):
    """So the launcher's own, still living, part sees a rank that was ended, not one that finished."""
    (tmp_path / "deepspeed").write_text(PARENT)
    # The rank's own parent lives and reports how it ended; it is called a launcher, too, and has one above it.
    between = tmp_path / "torchrun"
    between.write_text("import subprocess, sys; print(subprocess.run(sys.argv[1:]).returncode, flush=True)")
    top = subprocess.Popen(
        [*(sys.executable, str(tmp_path / "deepspeed")), *(sys.executable, str(between)), sys.executable, "-c", RANK],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert int(top.stdout.readline()) > 0
    top.kill()
    assert int(top.stdout.readline()) == -signal.SIGTERM
    top.wait()
    top.stdout.close()


@pytest.mark.parametrize("above", ["nobody", "a script"])
def test_a_rank_whose_torchrun_went_while_it_started_ends(above: str) -> None:
    """torchrun begins a session for each rank; for one that a script starts it has begun the script's."""
    program = "from engine.distributed.launchers import end_with_launcher; end_with_launcher(); print('lives')"
    rank = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**environment(), "TORCHELASTIC_RUN_ID": "none"},
        start_new_session=above == "nobody",
        capture_output=True,
        text=True,
    )
    assert (rank.returncode, rank.stdout) == ((-signal.SIGTERM, "") if above == "nobody" else (0, "lives\n"))


THREADS = "from engine.distributed.launchers import threads_are_given; print(threads_are_given())"
# Gives its rank one thread, as torchrun does where nobody has said how many.
TORCHRUN = """
import os, subprocess, sys
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TORCHELASTIC_RUN_ID"] = "1"
subprocess.run([sys.executable, "-c", sys.argv[1]])
"""


@pytest.mark.parametrize("given", [None, "1", "4"])
@pytest.mark.parametrize("name", ["torchrun", "none"])
def test_threads_that_torchrun_gave_unasked_are_not_a_persons(tmp_path, name, given):
    (tmp_path / name).write_text(TORCHRUN)
    others = {key: value for key, value in environment().items() if key != "OMP_NUM_THREADS"}
    command = [sys.executable, str(tmp_path / name), THREADS] if name == "torchrun" else [sys.executable, "-c", THREADS]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env={**others, **({"OMP_NUM_THREADS": given} if given else {})},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == f"{given is not None}\n"


def test_a_cpus_ranks_have_the_threads_of_the_one_with_fewest(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda threads, op: threads.clamp_(max=3))
    try:
        torch.set_num_threads(8)
        assert agree_on_threads(torch.device("cpu")) == "cpu with 3 threads a rank"
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert agree_on_threads(torch.device("cuda:1")) == "cuda"


FAILING_RANK = """
import sys
sys.argv = ["launch/pretrain.py"]
from engine.distributed.leaving import exit_with
from engine.errors import UserError
exit_with(UserError("something is wrong"))
"""
LAUNCHER = """
import subprocess, sys, time
code = subprocess.run([sys.executable, "-c", sys.argv[1]]).returncode
time.sleep(0.5)
print("noise", flush=True)
sys.exit(code)
"""


@pytest.mark.parametrize("name", ["torchrun", "wrapper"])
def test_the_error_is_the_last_line_under_a_launcher(name, tmp_path):
    """What the launcher says of a rank that failed comes before it; behind other parents nobody has to wait."""
    (tmp_path / name).write_text(LAUNCHER)
    command = [sys.executable, str(tmp_path / name), FAILING_RANK]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    lines = [line for line in run.stdout.splitlines() if line]
    error = "pretrain.py: error: something is wrong"
    assert lines == (["noise", error] if name == "torchrun" else [error, "noise"])
    assert run.returncode == 2
