"""Where the training loop ends."""

from types import SimpleNamespace
from typing import Any

import pytest

from engine.configuration.flags import OptimizationConfig
from engine.training.loop import Observer, TrainState, train


@pytest.mark.parametrize("max_steps", [7, 12])
def test_a_run_that_has_got_as_far_as_it_is_asked_to_takes_no_step(max_steps: int) -> None:
    """Also one that was to go further before."""
    told: list[int] = []

    class Ending(Observer):
        def after_training(self, state: TrainState) -> None:
            told.append(state.step)

    nothing: Any = SimpleNamespace(batch_sampler=None)  # what a step would need isn't there
    config = OptimizationConfig(epochs=3, max_steps=max_steps)
    train(nothing, nothing, TrainState(epoch=1, batches=4, step=12), config, nothing, [Ending()])
    assert told == [12]
