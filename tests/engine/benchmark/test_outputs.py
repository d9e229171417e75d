"""python -m engine.benchmark.run.outputs: times that are printed beside those of reports, and bad flags."""

import pytest

from engine.benchmark.run import outputs
from engine.benchmark.run.outputs import theirs_over_ours
from engine.errors import UserError


def test_steps_of_a_report_are_compared_with_it() -> None:
    """Three reports, of one step, of two and of one; DeepSpeed also prints lines about micro-batches."""
    times = [(900, 50, 50), (20, 60, 10), (40, 60, 10), (30, 50, 10)]
    printed = "\n".join(
        f"[Rank 0] time (ms) | fwd_microstep: 1.00 | bwd_microstep: 2.00 | step_microstep: 3.00\n"
        f"[Rank 0] time (ms) | fwd: {fwd}.00 | bwd: {bwd}.00 | bwd_inner: 4.00 | bwd_allreduce: 5.00 | step: {step}.00"
        for fwd, bwd, step in times
    )
    reports = [
        {"step": 1, "seconds_per_step": 2.0, "data_wait": 0.5},
        {"step": 3, "seconds_per_step": 0.25, "data_wait": 0.6},
        {"step": 4, "seconds_per_step": 0.1, "data_wait": 0.0},
    ]
    assert theirs_over_ours(printed, reports) == pytest.approx([1.0, 0.9])


@pytest.mark.parametrize(("flag", "least"), [("--ranks", 1), ("--max_steps", 10), ("--rounds", 1)])
def test_bad_flags_are_one_line(flag: str, least: int) -> None:
    with pytest.raises(UserError, match=rf"^{flag} {least - 1}: {least} or more is needed$"):
        outputs.check_options(outputs.parse([flag, str(least - 1)]))
