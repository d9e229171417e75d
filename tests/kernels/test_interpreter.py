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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and Triton's half has run on it")
@pytest.mark.skipif(
    release("triton") < (3, 7) and release("numpy") >= (2, 4), reason="Triton 3.6 interprets with NumPy below 2.4 only"
)
def test_the_kernels_pass_these_tests_when_interpreted(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    slow = Path(__file__).with_name("test_grid_subsample.py")
    halves = [slow], [path for path in slow.parent.glob("test_*.py") if path not in (slow, Path(__file__))]
    outputs = [(tmp_path / f"{number}.log").open("w+") for number in range(2)]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp"]
    processes = [
        subprocess.Popen([*command, f"{output.name}.d", *files], cwd=ROOT, env=environment, stdout=output)
        for files, output in zip(halves, outputs, strict=True)
    ]
    codes = [process.wait() for process in processes]
    texts = [Path(output.name).read_text() for output in outputs]
    assert codes == [0, 0], "\n".join(texts)
    assert not any("skipped" in text for text in texts)
    # All of them, not merely those that were collected by chance: every test that takes `backend` ran.
    assert sum(int(re.search(r"(\d+) passed", text)[1]) for text in texts) > 140
