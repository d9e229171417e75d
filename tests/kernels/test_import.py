"""Importing is free, and our name "kernels" upsets nobody. Who imports whom: tests/test_architecture.py."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_python(code, folder):
    """Run `code` in a new process that has the repository root on its path."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


def test_transformers_is_not_fooled_by_the_name_kernels(tmp_path):
    code = (
        "import kernels, transformers; from transformers import BertModel\n"
        "print(kernels.__file__, transformers.utils.is_kernels_available(), BertModel.__name__)"
    )
    assert run_python(code, tmp_path) == [str(ROOT / "kernels" / "__init__.py"), "False", "BertModel"]


def test_importing_kernels_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, kernels; print('torch' in sys.modules)\n"
        "import kernels.grid_subsample\n"
        "print('torch' in sys.modules, *{'engine', 'launch', 'transformers', 'deepspeed'} & sys.modules.keys())\n"
        "print(sys.modules['torch'].cuda.is_initialized())"
    )
    assert run_python(code, tmp_path) == ["False", "True", "False"]
