"""Where the programs of launch/ find the engine, and what the demo starts."""

import builtins
import errno
import importlib
import resource
import runpy
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

import engine
from engine.configuration.parsing import parse
from engine.distributed import leaving
from engine.errors import UserError
from engine.provenance import tested
from engine.tasks.pretraining import PretrainConfig
from engine.tasks.vqa import VqaConfig
from launch import demo
from tests.conftest import ROOT, environment

PROGRAMS = sorted(path.name for path in (ROOT / "launch").glob("[!_]*.py"))


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_imports_from_its_own_checkout(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has to be installed; and where another checkout is, this one still comes first."""
    first_places: list[str] = []
    import_as_ever = builtins.__import__

    def note(name: str, *more: Any) -> Any:
        if name.split(".")[0] in ("engine", "launch", "kernels"):
            first_places.append(sys.path[0])
        return import_as_ever(name, *more)

    monkeypatch.setattr(sys, "path", ["elsewhere", *(place for place in sys.path if place not in ("", str(ROOT)))])
    monkeypatch.setattr(builtins, "__import__", note)
    runpy.run_path(str(ROOT / "launch" / program))
    assert sys.path[0] == str(ROOT)
    assert set(first_places) <= {str(ROOT)}
    assert first_places


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_module_leaves_the_path_as_it_is(program: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a command that pip installed would find its own site-packages before PYTHONPATH and Python's library."""
    name, before = f"launch.{program.removesuffix('.py')}", list(sys.path)
    monkeypatch.delitem(sys.modules, name, raising=False)  # as if nothing had imported it
    runpy.run_module(name)
    assert sys.path == before


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_python_without_the_packages_is_told_what_to_do(program: str) -> None:
    """-I and -S: neither this environment's packages nor this folder."""
    command = [sys.executable, "-I", "-S", str(ROOT / "launch" / program), "--help"]
    run = subprocess.run(command, cwd="/", capture_output=True, text=True, check=False)
    assert run.returncode == 2
    [line] = run.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} lacks torch, deepspeed, ")
    assert "run `make setup` and `source .venv/bin/activate`" in line


@pytest.mark.parametrize(
    ("flags", "code"),
    [(["--help"], 0), (["--recipe", "rn50_stage_one", "--print_config"], 0), (["--bacthSize", "8"], 2)],
    ids=["help", "print_config", "wrong flag"],
)
@pytest.mark.parametrize("program", ["pretrain.py", "finetune_vqa.py"])
def test_flags_are_answered_at_once(program: str, flags: list[str], code: int, seconds_of_torch: float) -> None:
    """Sooner than torch alone could be imported; in seconds of the process's own, as other processes slow it down."""
    recipe = ["vqa_rn50" if flag == "rn50_stage_one" and program == "finetune_vqa.py" else flag for flag in flags]
    assert own_seconds([str(ROOT / "launch" / program), *recipe], code) < seconds_of_torch


@pytest.fixture(scope="module")
def seconds_of_torch() -> float:
    return own_seconds(["-c", "import torch"], 0)


def own_seconds(arguments: list[str], code: int) -> float:
    """Of the CPU, for one start of Python that ends with a code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run = subprocess.run([sys.executable, *arguments], env=environment(), capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run.returncode == code, run.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_text_is_utf8_in_every_locale() -> None:
    """Where Python would take it for ASCII, a path comes as bytes that tokenizers and safetensors refuse."""
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, str(ROOT / "launch" / "pretrain.py"), "--data_root", "dä", "--print_config"]
    run = subprocess.run(command, env={**environment(), **locale}, capture_output=True, check=False)
    assert run.returncode == 0, run.stderr
    assert yaml.safe_load(run.stdout)["data_root"] == "dä"


@pytest.mark.parametrize("gpus", [None, 1, 8])
def test_the_demo_needs_no_launcher_for_one_rank(gpus: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks on a CPU, one a GPU on up to two GPUs."""
    accelerator = SimpleNamespace(device_name=lambda: "cuda" if gpus else "cpu", device_count=lambda: gpus)
    monkeypatch.setattr("deepspeed.accelerator.get_accelerator", lambda: accelerator)
    commands: list[list[str]] = []
    ended = SimpleNamespace(returncode=0)
    monkeypatch.setattr(subprocess, "run", lambda command, check, env: commands.append(command) or ended)
    demo.run_program("pretrain", ["--epochs", "1"])
    [[python, *launcher, program, flag, value]] = commands
    assert (python, program, flag, value) == (sys.executable, str(ROOT / "launch/pretrain.py"), "--epochs", "1")
    assert launcher[:4] == ([] if gpus == 1 else ["-m", "deepspeed.launcher.runner", "--num_gpus", "2"])


@pytest.mark.parametrize(
    ("recipe", "config_class"),
    [("demo_stage_one", PretrainConfig), ("demo_stage_two", PretrainConfig), ("demo_vqa", VqaConfig)],
)
def test_the_demo_takes_the_same_steps_on_one_rank_as_on_two(recipe: str, config_class: Any) -> None:
    """One that takes twice the accumulation; two take the recipe's own."""
    flags = ["--recipe", recipe, *demo.training_flags(demo.DemoConfig())]
    for ranks, accumulation in ((1, 2), (2, 1)):
        config, _ = parse(config_class, flags, demo.RECIPES)
        config.check(ranks)
        assert (config.batch_size, config.gradient_accumulation_steps) == (32, accumulation)
    assert parse(config_class, flags[:2], demo.RECIPES)[0].gradient_accumulation_steps == accumulation


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ends a program, without its end."""
    errors: list[str] = []
    monkeypatch.setattr(leaving, "exit_with", lambda error: errors.append(str(error)))
    return errors


def test_every_program_refuses_a_library_that_is_too_old(said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it looks at its flags; in Python, before it looks for a model."""
    monkeypatch.setattr(tested, "TESTED", {"numpy": ("99", "99.1")})
    old = f'numpy {np.__version__} is older than 99, the oldest that works; run `pip install "numpy>=99"`'
    for program in PROGRAMS:
        importlib.import_module(f"launch.{program.removesuffix('.py')}").main()
    assert said == [old] * len(PROGRAMS)
    with pytest.raises(UserError, match="older than 99"):
        engine.load_pretrained("nowhere")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "what is written: No space left on device; make room, or "),
        (PermissionError(errno.EACCES, "Permission denied", "data"), "data: Permission denied; start from a folder "),
    ],
)
def test_what_a_disk_refuses_is_one_line(error: OSError, line: str, said: list[str]) -> None:
    with leaving.telling_errors():
        raise error
    assert [each.startswith(line) for each in said] == [True]


def test_other_faults_of_the_system_keep_their_traceback(said: list[str]) -> None:
    with pytest.raises(FileNotFoundError), leaving.telling_errors():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "data")
    assert said == []
