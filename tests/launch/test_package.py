"""What pip installs: an archive and a wheel that lack nothing, and programs that work without a checkout."""

import importlib
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from configparser import ConfigParser
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import engine
from engine import commands
from engine.provenance.history import read_starts
from tests.conftest import ROOT, TINY_BERT, environment, free_port

# Both build in this environment, since another one would have to be fetched.
BUILD_ARCHIVE = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
WHEEL = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]


class Built(NamedTuple):
    tracked: list[str]  # files of the checkout
    archive: Path
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The archive, from a copy of what git tracks, and the wheel, from the archive: as somebody else makes it."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        pytest.skip("no git that knows which files are the project's")
    folder, tracked = tmp_path_factory.mktemp("built"), listed.stdout.splitlines()
    (folder / "copy").mkdir()
    subprocess.run(["cp", "--parents", "-t", folder / "copy", *tracked], cwd=ROOT, check=True)
    python(["-c", BUILD_ARCHIVE, str(folder)], folder / "copy")
    [archive] = folder.glob("*.tar.gz")
    python([*WHEEL, str(folder), str(archive)], folder)
    [wheel] = folder.glob("*.whl")
    return Built(tracked, archive, wheel)


@pytest.fixture(scope="module")
def scripts(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of a fresh environment that has the wheel, and the packages of this one but for what is editable here."""
    folder = tmp_path_factory.mktemp("installed")
    python(["-m", "venv", "--without-pip", str(folder)], folder)
    interpreter = folder / "bin" / "python"
    python(["-m", "pip", "--python", str(interpreter), "install", "--quiet", "--no-deps", str(built.wheel)], folder)
    [packages] = folder.glob("lib/python*/site-packages")
    shared = [place for place in sys.path if place.endswith("-packages")]
    (packages / "shared.pth").write_text("\n".join(shared))
    return folder / "bin"


def python(arguments: list[str], folder: Path) -> None:
    run = subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]


def test_nothing_is_missing(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as wheel:
        assert {name for name in wheel.namelist() if ".dist-info/" not in name} == {
            name for name in built.tracked if name.startswith(("ds_configs/", "engine/", "kernels/", "launch/"))
        }
        [metadata] = [name for name in wheel.namelist() if name.endswith("/METADATA")]
        assert f"\nVersion: {engine.__version__}\n" in wheel.read(metadata).decode()
    with tarfile.open(built.archive) as archive:
        inside = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {name for name in built.tracked if not name.startswith(".")} - inside == set()


def test_each_command_tells_flags_and_versions(
    built: Built, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, as an installed copy does, which has no files of programs to name."""
    monkeypatch.setattr(commands, "IN_CHECKOUT", False)
    with zipfile.ZipFile(built.wheel) as wheel:
        [listed] = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
        found = ConfigParser(delimiters="=")
        found.read_string(wheel.read(listed).decode())
    started = dict(found["console_scripts"])
    names = {path.stem for path in (ROOT / "launch").glob("[!_]*.py")} - {"finetune_vqa", "predict_vqa"}
    assert started.keys() == {f"clipvil-{name.replace('_', '-')}" for name in names}
    for name, place in started.items():
        module, function = place.split(":")
        main: Any = getattr(importlib.import_module(module), function)
        for flags in (["--help"], ["--no_such_flag", "--version"]):
            monkeypatch.setattr(sys, "argv", [f"/env/bin/{name}", *flags])
            try:
                code = main()
            except SystemExit as ending:
                code = ending.code
            assert not code
            told = capsys.readouterr().out
            assert ".py" not in told
            assert "--version" in told or told.startswith(f"clipvil-engine  {engine.__version__}"), told
            assert name in told or f"--module {module}" in told or flags != ["--help"]
            assert f"deepspeed       {version('deepspeed')}\n" in told or flags == ["--help"]


@pytest.mark.slow
def test_an_installed_copy_trains_and_predicts(scripts: Path, tmp_path: Path) -> None:
    """From a folder that has no data/ or snap/ yet; each time started in another way."""
    variables = {name: value for name, value in environment().items() if name != "PYTHONPATH"}
    (tmp_path / "engine.py").touch()  # somebody else's, which `python -m` finds first

    def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        command, env = [str(scripts / words[0]), *words[1:]], {**variables, **more}
        ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr[-3000:]
        return ended

    config = ["--recipe", "rn50_stage_one", "--data_root", "dä", "--print_config"]
    listed = run("clipvil-pretrain", *config, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0").stdout
    assert yaml.safe_load(listed)["output"] == "snap/pretrain/clip_rn50_stage_one"
    assert yaml.safe_load(listed)["data_root"] == "dä"
    run("clipvil-prepare", "demo", "--train_scenes", "40", "--valid_scenes", "15")
    bert = tmp_path / "data" / "demo" / "bert" / "config.json"
    bert.write_text(json.dumps({**json.loads(bert.read_text()), **TINY_BERT}))

    model = ["--bert", "data/demo/bert", "--num_workers", "0", "--batch_size", "16"]
    pretrain = ["--recipe", "demo_stage_one", *model, "--global_batch_size", "32"]
    launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", free_port(), "--module"]
    told = run("python", *launcher, "launch.pretrain", *pretrain, "--max_steps", "10").stdout
    assert "\nnext: deepspeed --num_gpus 2 --module launch.pretrain --recipe demo_stage_two --load snap/demo/" in told
    # Warnings are errors; those that can't be raised, as of a file that is left open, are printed.
    script = [str(scripts / "clipvil-pretrain"), *pretrain, "--max_steps", "12", "--resume", "auto"]
    assert "Warning" not in run("python", "-W", "error", *script).stderr
    starts = read_starts(tmp_path / "snap" / "demo" / "stage_one" / "run.json")
    assert [start["step"] for start in starts] == [10, 12]
    for start in starts:
        assert start["command"]["argv"][0].startswith(f"{scripts.parent}{os.sep}")
        assert start["versions"]["clipvil-engine"] == engine.__version__
        assert start["code"] is None  # no checkout

    weights = ["--load_lxmert_qa", "", "--load_lxmert", "snap/demo/stage_one", "--max_steps", "2"]
    run("python", "-m", "launch.finetune", "--task", "vqa", "--recipe", "demo_vqa", *model, *weights)
    predict = ["--load", "snap/demo/vqa/BEST", "--test", "minival", "--data_root", "data/demo", "--num_workers", "0"]
    run("clipvil-predict", "--task", "vqa", *predict)
    assert (tmp_path / "snap" / "demo" / "vqa" / "minival_predict.json").is_file()
