"""When gradients that aren't finite end a run."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.errors import UserError
from engine.training.observers.reporter import Reporter


def check(*, overflow: bool, norm: float, fp16: bool = False, scale: float = 8.0, stop_on: str | None = None) -> int:
    """How often the model was run again, to find where the gradients come from."""
    module, passes = torch.nn.Linear(1, 1), []
    module.register_forward_hook(lambda *_: passes.append(1))
    reporter: Any = Reporter.__new__(Reporter)
    scaler = SimpleNamespace(dynamic=True, min_scale=1.0)
    reporter.config = SimpleNamespace(fp16=fp16, stop_on=stop_on)
    reporter.engine = SimpleNamespace(
        optimizer=SimpleNamespace(overflow=overflow, loss_scaler=scaler, loss_scale=scale),
        module=module,
        skipped_steps=3,
        get_global_grad_norm=lambda: torch.tensor(norm),
    )
    reporter._check_finite(SimpleNamespace(inputs={"input": torch.ones(1, 1)}))
    return len(passes)


@pytest.mark.parametrize("stop_on", [None, "nonfinite"])
def test_finite_gradients_go_on(stop_on: str | None) -> None:
    assert check(overflow=False, norm=1.0, stop_on=stop_on) == 0
    assert check(overflow=False, norm=1.0, fp16=True, scale=1.0, stop_on=stop_on) == 0


def test_a_loss_scale_may_fall_unless_the_run_is_to_stop_at_once() -> None:
    assert check(overflow=True, norm=math.inf, fp16=True) == 0
    with pytest.raises(UserError, match=r"not finite, and the loss scale is now 8, after 3 skipped steps: the outputs"):
        check(overflow=True, norm=math.inf, fp16=True, stop_on="nonfinite")
    with pytest.raises(UserError, match="loss scale is now 1"):
        check(overflow=True, norm=math.inf, fp16=True, scale=1.0)


def test_what_deepspeed_was_told_not_to_look_for() -> None:
    """bf16.check_grad_overflow false in a configuration of one's own: the norm tells it all the same."""
    assert check(overflow=False, norm=math.nan) == 0
    with pytest.raises(UserError, match=r"the gradients are not finite, after 3 skipped steps: the outputs are finite"):
        check(overflow=False, norm=math.nan, stop_on="nonfinite")
