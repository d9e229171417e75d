"""Which of its limits ends a training, and who says so."""

from types import SimpleNamespace
from typing import Any

import pytest

from engine.tasks.pretraining import PretrainConfig
from engine.training.loop import TrainState
from engine.training.observers.ending import ending
from engine.training.observers.reporter import Reporter


@pytest.mark.parametrize(
    ("limits", "step", "reason"),
    [
        ({}, 30, "--epochs 3 ends it"),
        ({"max_steps": 30}, 30, "--epochs 3 ends it"),
        ({"max_steps": 7}, 7, "--max_steps 7 ends it, within the 30 steps of --epochs 3"),
        ({"max_steps": 41}, 30, "--epochs 3 ends it, before --max_steps 41, which takes 5 epochs"),
        ({"stop_after_epoch": 3}, 30, "--epochs 3 ends it"),
        (
            {"stop_after_epoch": 1},
            10,
            "--stop_after_epoch 1 ends it; the learning rates are laid out for --epochs 3",
        ),
        (
            {"stop_after_epoch": 2, "max_steps": 30},
            20,
            "--stop_after_epoch 2 ends it, before --max_steps 30, which takes 3 epochs; the learning rates are laid "
            "out for --epochs 3",
        ),
        (
            {"stop_after_epoch": 2, "max_steps": 9},
            9,
            "--max_steps 9 ends it, within the 20 steps of --stop_after_epoch 2",
        ),
    ],
)
def test_the_first_limit_ends_it(limits: dict[str, int], step: int, reason: str) -> None:
    assert ending(PretrainConfig(epochs=3, **limits), steps_per_epoch=10) == (step, reason)


@pytest.mark.parametrize(
    ("step", "words"),
    [
        (0, "trains to step 1,030: --epochs 3 ends it"),
        (1030, "nothing is left to train after step 1,030: --epochs 3 ends it; a larger number goes on"),
    ],
)
def test_it_is_said_at_the_start(step: int, words: str) -> None:
    said: list[str] = []
    reporter: Any = Reporter.__new__(Reporter)
    reporter.total_steps, reporter.ending = 1030, "--epochs 3 ends it"
    reporter.console = SimpleNamespace(say=said.append)
    reporter.begin(TrainState(step=step))
    assert said == [words]
