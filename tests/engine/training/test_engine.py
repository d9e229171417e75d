"""ZeRO's norm of all gradients, as engine/training/engine.py has it taken."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.training import engine
from engine.training.engine import measure_gradients_once

ROUNDING = 2.0**-24


@pytest.fixture
def zero(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What measure_gradients_once needs of ZeRO, on one rank; one gradient is as large as the word embeddings'."""
    monkeypatch.setattr(engine.dist, "get_world_size", lambda group: 1)
    noise = torch.Generator().manual_seed(0)
    gradients = {0: [torch.randn(23_440_896, generator=noise)], 1: [torch.randn(1000, generator=noise)]}
    methods = {"check_overflow": None, "scaled_global_norm": None}
    return SimpleNamespace(
        compute_grad_norm=True, cpu_offload=False, averaged_gradients=gradients, dp_process_group=None, **methods
    )


def test_the_norm_loses_no_digits(zero: Any) -> None:
    """A sum in fp64 is off by far less than one rounding of fp32; one in fp32 loses 1e-3 on a CPU."""
    exact = torch.cat([gradient for group in zero.averaged_gradients.values() for gradient in group]).double().norm()
    measure_gradients_once(zero)
    assert abs(zero.scaled_global_norm() / exact - 1) < ROUNDING


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_one_infinity_makes_it_infinite(zero: Any, bad: float) -> None:
    zero.averaged_gradients[1][0][7] = bad
    measure_gradients_once(zero)
    assert not zero.scaled_global_norm().isfinite()
