"""Triton's half of the tests in this folder, where there is no GPU: in a process that interprets the kernels."""

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

pytest.importorskip("triton", reason="Triton isn't installed")


def release(package: str) -> tuple[int, ...]:
    return tuple(int(part) for part in importlib.metadata.version(package).split(".")[:2])


GRID_SUBSAMPLE = Path(__file__).with_name("test_grid_subsample.py")
OTHERS = [path for path in GRID_SUBSAMPLE.parent.glob("test_*.py") if path not in (GRID_SUBSAMPLE, Path(__file__))]
# All of them, not merely those that were collected by chance: how many tests take `backend`.
PARTS = [
    pytest.param([GRID_SUBSAMPLE], "not slow", 114, id="grid_subsample"),
    pytest.param(OTHERS, "not slow", 124, id="others"),
    pytest.param([GRID_SUBSAMPLE, *OTHERS], "slow", 18, id="slow", marks=pytest.mark.slow),
]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and Triton's half has run on it")
@pytest.mark.skipif(
    release("triton") < (3, 7) and release("numpy") >= (2, 4), reason="Triton 3.6 interprets with NumPy below 2.4 only"
)
@pytest.mark.parametrize(("files", "chosen", "number"), PARTS)
def test_the_kernels_pass_these_tests_when_interpreted(files, chosen, number, tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "below")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [*command, "-m", chosen, *files], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout
    assert "skipped" not in run.stdout
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) == number
