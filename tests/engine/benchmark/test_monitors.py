"""python -m engine.benchmark.run.monitors: windows in turns, what follows from times, and bad flags."""

import pytest

from engine.benchmark.run import monitors
from engine.benchmark.run.monitors import Seconds, compare, ratio
from engine.errors import UserError


def test_each_kind_of_window_is_the_first_in_turns() -> None:
    order: list[str] = []
    compare(4, lambda: order.append("on"), lambda: order.append("off"))
    assert order == ["on", "off", "off", "on"] * 2


def test_rounds_are_compared_one_by_one() -> None:
    assert ratio(off=[1.0, 4.0, 9.0], on=[2.0, 4.0, 10.0]) == 0.9


def test_a_step_gets_its_share_of_a_window() -> None:
    seconds, done = Seconds(), []
    seconds.time(lambda: done.append(sum(range(10**6))), 4, "cpu")
    assert len(done) == len(seconds.wall) == len(seconds.cpu) == 1
    assert 0 < seconds.cpu[0] < 10
    assert 0 < seconds.wall[0] < 10


@pytest.mark.parametrize("flags", [["--rounds", "0"], ["--steps", "30"], ["--report_step", "0"]])
def test_bad_flags_are_one_line(flags: list[str]) -> None:
    with pytest.raises(UserError, match=r"^--rounds has to be 1 or more, and --steps a multiple of each --report_step"):
        monitors.check_options(monitors.parse(flags))
