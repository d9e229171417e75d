"""What a program runs on."""

import subprocess
from pathlib import Path

import pytest

from engine.provenance.environment import by_host, checkout, driver_version


def git(folder: Path, *arguments: str) -> None:
    author = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "-C", str(folder), *author, *arguments], check=True, capture_output=True)


def test_a_checkout_is_clean_until_a_file_of_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path.resolve()
    assert checkout(root) is None
    git(root, "init")
    assert checkout(root) is None  # nothing is committed
    (root / "code.py").write_text("1\n")
    git(root, "add", "code.py")
    git(root, "commit", "-m", "One.")
    found = checkout(root)
    assert found is not None
    assert found["clean"] is True
    assert len(found["commit"]) == 40
    (root / "notes").write_text("no part of it\n")
    assert checkout(root) == found
    (root / "code.py").write_text("2\n")
    assert checkout(root) == {**found, "clean": False}
    (root / "installed").mkdir()
    assert checkout(root / "installed") is None  # code that lies in another's checkout
    monkeypatch.setenv("PATH", "")
    assert checkout(root) is None  # no git


def test_the_driver_names_itself(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert driver_version(file) is None
    file.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build  (builder)\n")
    assert driver_version(file) == "550.54.15"
    file.write_text("something else\n")
    assert driver_version(file) is None


def test_ranks_and_gpus_are_listed_by_host() -> None:
    places = [
        {"rank": rank, "host": "ab"[rank // 2], "gpu": f"GPU {rank}", "cpu": "C", "cores": 8 + rank // 2}
        for rank in range(4)
    ]
    places[3]["gpu"] = None
    assert by_host(places) == {
        "a": {"cpu": "C", "cores": 8, "ranks": [0, 1], "gpus": ["GPU 0", "GPU 1"]},
        "b": {"cpu": "C", "cores": 9, "ranks": [2, 3], "gpus": ["GPU 2"]},
    }
