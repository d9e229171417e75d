"""When gradients that aren't finite end a run."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.errors import UserError
from engine.training.observers.reporter import Reporter


def check(*, overflow: bool, norm: float, fp16: bool = False, scale: float = 8.0, stop_on: str | None = None) -> None:
    reporter: Any = Reporter.__new__(Reporter)
    scaler = SimpleNamespace(dynamic=True, min_scale=1.0)
    reporter.config = SimpleNamespace(fp16=fp16, stop_on=stop_on)
    reporter.engine = SimpleNamespace(
        optimizer=SimpleNamespace(overflow=overflow, loss_scaler=scaler, loss_scale=scale),
        module=torch.nn.Linear(1, 1),
        skipped_steps=3,
        get_global_grad_norm=lambda: torch.tensor(norm),
    )
    reporter._check_finite(SimpleNamespace(inputs={"input": torch.ones(1, 1)}))


@pytest.mark.parametrize("stop_on", [None, "nonfinite"])
def test_finite_gradients_go_on(stop_on: str | None) -> None:
    check(overflow=False, norm=1.0, stop_on=stop_on)
    check(overflow=False, norm=1.0, fp16=True, scale=1.0, stop_on=stop_on)


def test_a_loss_scale_may_fall_unless_the_run_is_to_stop_at_once() -> None:
    check(overflow=True, norm=math.inf, fp16=True)
    with pytest.raises(UserError, match=r"not finite, and the loss scale is now 8, after 3 skipped steps: the outputs"):
        check(overflow=True, norm=math.inf, fp16=True, stop_on="nonfinite")
    with pytest.raises(UserError, match="loss scale is now 1"):
        check(overflow=True, norm=math.inf, fp16=True, scale=1.0)


def test_what_deepspeed_was_told_not_to_look_for() -> None:
    """bf16.check_grad_overflow false in a configuration of one's own: the norm tells it all the same."""
    check(overflow=False, norm=math.nan)
    with pytest.raises(UserError, match=r"the gradients are not finite, after 3 skipped steps: the outputs are finite"):
        check(overflow=False, norm=math.nan, stop_on="nonfinite")
