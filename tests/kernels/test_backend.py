"""Which implementation runs, and what happens where Triton is missing or broken."""

import os
import subprocess
import sys
import textwrap
import warnings

import pytest
import torch

from kernels import backend, gather, sampling
from kernels.grid_subsample import grid_subsample
from tests.conftest import ROOT


@pytest.fixture
def call():
    def run(device="cpu"):
        features = torch.arange(24.0, device=device).view(1, 2, 3, 4)
        return grid_subsample(features, None, None, torch.tensor([1, 2, 0], device=device), 5)[0].sum()

    return run


@pytest.mark.parametrize("choice", [None, "", "auto", "torch"])
def test_a_cpu_tensor_never_reaches_triton(choice, call, monkeypatch):
    if choice is None:
        monkeypatch.delenv("KERNELS_BACKEND", raising=False)
    else:
        monkeypatch.setenv("KERNELS_BACKEND", choice)
    for module, name in (
        (gather, "forward_rows_kernel"),
        (gather, "forward_planes_kernel"),
        (sampling, "sample_cells_kernel"),
    ):
        monkeypatch.setattr(module, name, None)  # launching it would raise
    cells, _ = sampling.sample_cells_twin(torch.tensor([1, 2, 0]), 1, 12, 5)
    assert call() == 2 * cells.sum() + 5 * 12  # the second channel's values are the first's and 12


def test_triton_for_a_cpu_tensor_is_refused(call, monkeypatch):
    monkeypatch.setenv("KERNELS_BACKEND", "triton")
    with pytest.raises(ValueError, match="KERNELS_BACKEND=triton, but the tensors are on cpu; unset it or move them"):
        call()


def test_an_unknown_choice_is_refused(call, monkeypatch):
    monkeypatch.setenv("KERNELS_BACKEND", "trition")
    with pytest.raises(ValueError, match="KERNELS_BACKEND=trition is none of auto, triton, torch"):
        call()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_tensor_takes_triton_and_without_warning(call, monkeypatch):
    monkeypatch.delenv("KERNELS_BACKEND", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert backend.use_triton("cuda")
        call("cuda")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_that_finds_no_gpu_is_reported_once(monkeypatch):
    monkeypatch.setenv("KERNELS_BACKEND", "auto")
    backend._warn.cache_clear()
    with pytest.warns(UserWarning, match="the slower PyTorch implementation runs instead") as caught:
        assert [backend.use_triton("cuda") for _ in range(3)] == [False] * 3
    assert len(caught) == 1
    monkeypatch.setenv("KERNELS_BACKEND", "triton")
    with pytest.raises(RuntimeError, match="KERNELS_BACKEND=triton, but Triton doesn't work here"):
        backend.use_triton("cuda")


@pytest.mark.parametrize(
    ("contents", "problem"),
    [
        (None, "ModuleNotFoundError"),
        ("raise OSError('libtriton.so: undefined symbol')", "OSError: libtriton.so: undefined symbol"),
        ("def jit(", "SyntaxError"),
    ],
    ids=["missing", "broken_library", "broken_file"],
)
def test_without_a_working_triton_the_twin_runs(contents, problem, tmp_path):
    if contents is not None:
        (tmp_path / "triton").mkdir()
        (tmp_path / "triton" / "__init__.py").write_text(contents)
    code = f"""
        import os, sys, warnings
        if {contents is None}:
            sys.modules["triton"] = None
        import torch
        from kernels.backend import use_triton
        from kernels.gather import gather_cells_twin
        from kernels.grid_subsample import grid_subsample

        features = torch.randn(2, 3, 4, 5, requires_grad=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            tokens, positions = grid_subsample(features, None, None, torch.tensor([1, 2, 0]), 5)
            tokens.sum().backward()
            assert torch.equal(tokens, gather_cells_twin(features, None, None, positions))
            print(len(caught))  # nothing is said where Triton wouldn't have run anyway
            print(use_triton("cuda"), use_triton("cuda"), len(caught), caught[0].message)
        os.environ["KERNELS_BACKEND"] = "triton"
        try:
            grid_subsample(features, None, None, torch.tensor([1, 2, 0]), 5)
        except RuntimeError as error:
            print(error)
    """
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    quiet, fallback, refusal = result.stdout.splitlines()
    assert quiet == "0"
    assert fallback.startswith(f"False False 1 Triton doesn't work here ({problem}")
    assert refusal.startswith(f"KERNELS_BACKEND=triton, but Triton doesn't work here ({problem}")
