"""Triton's half of the tests in this folder, where there is no GPU: in a process that interprets the kernels."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and Triton's half has run on it")
def test_the_kernels_pass_these_tests_when_interpreted(tmp_path):
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "inner")]
    result = subprocess.run(
        [*command, Path(__file__).parent], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    print(result.stdout)
    # All of them, not merely those that were collected by chance: every test that takes `backend` ran.
    assert int(re.search(r"(\d+) passed", result.stdout)[1]) > 60
    assert "skipped" not in result.stdout
