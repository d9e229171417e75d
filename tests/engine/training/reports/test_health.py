"""Warnings: each sign is told, told once, told again after it was over, and not told of a healthy run."""

import math
from typing import Any

import pytest

from engine.training.reports.health import ENOUGH, IN_A_ROW, LASTING_STEPS, LEARNT_AFTER, SKIPPED_STEPS, Health
from engine.training.reports.pace import Share

HEALTHY = {
    **{"kind": "train", "loss": 2.0, "grad_norm": 1.0, "loss_scale": 65536.0, "skipped_steps": 0},
    **{"samples_per_second": 100.0, "data_wait": 0.05, "mask_lm_accuracy": 0.5},
}


def share(forward: float = 0.02, waited: float = 0.5) -> Share:
    """Of 100 micro-batches in 10 s."""
    return Share(10.0, 1000, 1000, 100, waited, forward, 1.0)


class Course:
    """A run's reports, 100 steps apart."""

    def __init__(self, chance: dict[str, float] | None = None, scale_floor: float | None = None) -> None:
        self.health, self.step = Health(chance or {}, scale_floor), 0
        self.told: list[dict[str, Any]] = []

    def report(self, times: int = 1, shares: list[Share] | None = None, **values: float) -> list[dict[str, Any]]:
        """What these reports, all alike, have told."""
        told = []
        for _ in range(times):
            self.step += 100
            told += self.health.warnings({**HEALTHY, "step": self.step, **values}, shares or [share(), share()])
        return told


def texts(told: list[dict[str, Any]]) -> list[str]:
    return [warning["text"] for warning in told]


def test_a_healthy_run_has_no_warning() -> None:
    """Noise, a report that a checkpoint slowed down, spikes of the gradients, losses that fall, speed that grows."""
    course = Course({"mask_lm_accuracy": 0.1}, scale_floor=1.0)
    for number in range(60):
        noise = 1 + 0.4 * math.sin(7 * number)
        assert not course.report(
            loss=10 / (1 + number) * noise,
            grad_norm=30.0 if number % 20 == 19 else noise,
            samples_per_second=20.0 if number % 15 == 14 else 90 + number,
            skipped_steps=min(number, 16),
            mask_lm_accuracy=0.05 if number < 5 else 0.2,
            shares=[share(0.02 * noise), share(0.02, waited=0.6)],
        )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"loss": math.nan}, "the loss is nan: lower --lr"),
        ({"loss": math.inf, "grad_norm": math.nan}, "the loss is inf: lower --lr"),
        ({"grad_norm": math.inf}, "the norm of the gradients is inf though the loss is finite: lower --lr"),
    ],
)
def test_what_is_not_finite_is_told_at_once_and_once(values: dict[str, float], expected: str) -> None:
    course = Course()
    [warning] = course.report(**values)
    assert warning["text"].startswith(f"step 100: {expected}")
    assert (warning["kind"], warning["step"], warning["rank"]) == ("warning", 100, None)
    assert not course.report(3, **values)
    assert not course.report()
    assert len(course.report(**values)) == 1


def test_infinite_gradients_of_fp16_are_no_news() -> None:
    course = Course(scale_floor=1.0)
    assert not course.report(5, grad_norm=math.inf)
    [text] = texts(course.report(loss=math.nan))
    assert "fp16 holds no more than 65,504; train in --bf16" in text


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_what_explodes_is_told_after_three_reports(name: str) -> None:
    course = Course()
    course.report(ENOUGH)
    assert not course.report(IN_A_ROW - 1, **{name: 10.1 * HEALTHY[name]})
    [text] = texts(course.report(**{name: 10.1 * HEALTHY[name]}))
    assert f"its median was {HEALTHY[name]:.4g}: the training diverges" in text
    assert not course.report(5, **{name: 10.1 * HEALTHY[name]})
    assert not course.report()
    assert len(course.report(IN_A_ROW, **{name: 10.1 * HEALTHY[name]})) == 1


def test_frequent_reports_have_to_agree_for_longer() -> None:
    course = Course()
    course.report(ENOUGH)
    bad = {**HEALTHY, "loss": 30.0}
    told = [course.health.warnings({**bad, "step": 2000 + step}, [share()]) for step in range(LASTING_STEPS + 1)]
    assert [len(warnings) for warnings in told] == [0] * LASTING_STEPS + [1]


def test_nothing_is_compared_before_there_is_a_median() -> None:
    course = Course()
    course.report(ENOUGH - IN_A_ROW)
    assert not course.report(IN_A_ROW, loss=1000.0, samples_per_second=1.0)


def test_the_loss_scale_at_its_floor() -> None:
    course = Course(scale_floor=1.0)
    assert not course.report(loss_scale=2.0)
    [text] = texts(course.report(3, loss_scale=1.0))
    assert "loss scale has fallen to its floor of 1" in text
    assert not Course().report(5, loss_scale=1.0)  # as bf16's and fp32's always is


def test_many_skipped_steps() -> None:
    """More than a tenth of at least 200 steps, counted from where the run was then."""
    course = Course(scale_floor=1.0)
    assert not course.report(skipped_steps=16)
    assert not course.report(SKIPPED_STEPS // 100, skipped_steps=16 + 20)
    [text] = texts(course.report(2, skipped_steps=16 + 20 + 21))
    assert text.startswith(f"step {course.step - 100}: 21 of the last 200 steps were skipped")
    assert not course.report(3, skipped_steps=16 + 20 + 21)


@pytest.mark.parametrize(
    ("data_wait", "cause"), [(0.4, "wait for data 40% of the time (5% before)"), (0.1, "not for want of data")]
)
def test_a_run_that_becomes_slower(data_wait: float, cause: str) -> None:
    course = Course()
    course.report(ENOUGH)
    assert not course.report(IN_A_ROW, samples_per_second=67.0, data_wait=data_wait)
    [text] = texts(course.report(2 * IN_A_ROW, samples_per_second=66.0, data_wait=data_wait))
    assert "66 samples/s, and the median was " in text
    assert cause in text


@pytest.mark.parametrize(
    ("slow", "cause"),
    [
        (share(forward=0.09), "0.09 s of it in the forward pass"),
        (share(waited=6.0), "0.06 s of it for its loader"),
    ],
)
def test_a_rank_that_holds_up_the_others(slow: Share, cause: str) -> None:
    course = Course()
    shares = [share(), share(), slow, share()]
    assert not course.report(IN_A_ROW - 1, shares=shares)
    [warning] = course.report(5, shares=shares)
    assert warning["rank"] == 2
    assert f"step {100 * IN_A_ROW}, rank 2: this rank holds up the others" in warning["text"]
    assert cause in warning["text"]
    assert not course.report(5, shares=[slow, slow])  # nobody waits for anybody
    assert not Course().report(5, shares=[slow])


def test_a_rank_may_differ_by_what_nobody_notices() -> None:
    """Twice the others' time, but a twentieth of a micro-batch of 0.1 s."""
    assert not Course().report(5, shares=[share(0.005, 0.0), share(0.010, 0.0)])


def test_nothing_learnt() -> None:
    chance = {"mask_lm_accuracy": 0.1}
    course = Course(chance)
    assert not course.report(LEARNT_AFTER // 100 - 1, mask_lm_accuracy=0.1)
    [text] = texts(course.report(5, mask_lm_accuracy=0.11))
    assert text.startswith(f"step {LEARNT_AFTER + 200}: mask_lm_accuracy is 0.11 after {LEARNT_AFTER + 200} steps")
    course = Course(chance)
    assert not course.report(20, mask_lm_accuracy=0.12)


def test_a_resumed_run_knows_its_losses_and_no_speeds() -> None:
    course = Course()
    records = [{**HEALTHY, "step": 100 * number} for number in range(ENOUGH)]
    course.health.restart([*records, {"kind": "valid", "loss": 1.0}])
    told = texts(course.report(IN_A_ROW, loss=30.0, samples_per_second=10.0))
    assert len(told) == 1
    assert "the loss is 30, and its median was 2" in told[0]
