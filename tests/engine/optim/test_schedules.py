import pytest
import torch
from torch.optim import SGD
from transformers import get_linear_schedule_with_warmup

from engine.optim.schedules import course, epoch_decay, linear_warmup_decay


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 0.0), (1, 0.25), (4, 1.0), (8, 0.5), (12, 0.0), (13, 0.0)],
    ids=["starts_at_zero", "warming_up", "peak", "half_way_down", "end", "past_the_end"],
)
def test_warm_up_of_4_of_12_steps(step, factor):
    assert linear_warmup_decay(step, 4, 12) == factor


@pytest.mark.parametrize(
    ("step", "factor"), [(0, 0.0), (2, 0.8), (3, 7 / 7.5), (9, 1 / 7.5)], ids=["zero", "below", "after", "last"]
)
def test_warm_up_need_not_be_whole(step, factor):
    assert linear_warmup_decay(step, 2.5, 10) == factor


def test_warm_up_shorter_than_a_step_still_starts_at_zero():
    assert linear_warmup_decay(0, 0.25, 10) == 0.0
    assert linear_warmup_decay(1, 0.25, 10) == 9 / 9.75


def test_no_warm_up_starts_at_the_peak():
    assert linear_warmup_decay(0, 0.0, 10) == 1.0


def test_warm_up_to_the_end_never_falls():
    assert [linear_warmup_decay(step, 4, 4) for step in range(6)] == [0.0, 0.25, 0.5, 0.75, 0.0, 0.0]


@pytest.mark.parametrize("warmup_steps", [0, 3, 2.5, 0.25, 20], ids=str)
def test_warm_up_is_transformers(warmup_steps):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps, 20)
    for step in range(23):
        assert optimizer.param_groups[0]["lr"] == linear_warmup_decay(step, warmup_steps, 20)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(
    ("step", "factor"),
    [(0, 1.0), (119, 1.0), (120, 0.1), (169, 0.1), (170, 0.01), (500, 0.01)],
    ids=["start", "before_first", "first", "before_second", "second", "end"],
)
def test_epoch_decay_at_the_start_of_epochs_12_and_17(step, factor):
    assert epoch_decay(step, 10, [12, 17]) == pytest.approx(factor, rel=1e-15)  # 0.1 squared rounds once


def test_epoch_decay_without_milestones_stays():
    assert {epoch_decay(step, 3, []) for step in range(50)} == {1.0}


def test_epoch_shorter_than_an_optimiser_step_counts_as_one_step():
    assert [epoch_decay(step, 0, [2]) for step in range(4)] == [1.0, 1.0, 0.1, 0.1]


@pytest.mark.parametrize(
    ("rate", "step", "warmup_steps", "words"),
    [
        (0.0, 566, 12.0, "goes from 0 to 0.5 at once, and falls to 0 until step 1,120"),
        (0.5, 60, 112.5, "goes from 0.5 to 0.5333 at once, rises to 1 until step 113, and falls to 0 until step 1,120"),
    ],
    ids=["behind the warm-up", "within the warm-up"],
)
def test_what_a_longer_schedule_makes_of_a_rate_is_told(rate, step, warmup_steps, words):
    assert course(rate, 1.0, step, warmup_steps, 1120) == words
