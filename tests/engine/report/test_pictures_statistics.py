"""Means with intervals, calibration, and which examples are taken."""

import itertools
import math

import pytest

from engine.report.pictures.held_out import spread_evenly, told_part
from engine.report.pictures.statistics import Z, calibration, calibration_error, mean_of


def test_wilsons_interval_of_shares() -> None:
    half = mean_of([1.0, 0.0] * 5)
    # By hand, for 5 of 10: the centre is 1/2, and half the width Z / (1 + Z^2 / 10) * sqrt(1 / 40 + Z^2 / 400).
    width = Z / (1 + Z**2 / 10) * math.sqrt(1 / 40 + Z**2 / 400)
    assert (half.mean, half.count) == (0.5, 10)
    assert half.low == pytest.approx(0.5 - width)
    assert half.high == pytest.approx(0.5 + width)
    assert half.interval == "23.7% to 76.3%"  # as tables of Wilson's interval have it
    # Of n that are all right, the lower end is n / (n + Z^2).
    alone = mean_of([1.0] * 3)
    assert (alone.mean, alone.high) == (1, 1)
    assert alone.low == pytest.approx(3 / (3 + Z**2))
    assert mean_of([0.0] * 3).high == pytest.approx(1 - 3 / (3 + Z**2))


def test_soft_scores_count_as_shares_of_the_same_mean() -> None:
    soft, exact = mean_of([0.3, 0.6, 0.6, 0.5]), mean_of([1.0, 0.0, 1.0, 0.0])
    assert (soft.low, soft.high) == pytest.approx((exact.low, exact.high))


def test_an_interval_holds_its_mean() -> None:
    """Else matplotlib refuses it; the ends are rounded otherwise than the mean is."""
    for count in range(1, 200):
        for right in (0, 1, count - 1, count):
            found = mean_of([1.0] * right + [0.0] * (count - right))
            assert 0 <= found.low <= found.mean <= found.high <= 1


def test_bins_have_equal_counts_and_the_order_of_probabilities() -> None:
    probabilities = [number / 103 for number in reversed(range(103))]
    bins = calibration(probabilities, [1.0] * 103)
    assert [each.score.count for each in bins] == [11] * 3 + [10] * 7
    assert bins[0].probability == pytest.approx(sum(range(11)) / 11 / 103)
    assert [each.probability for each in bins] == sorted(each.probability for each in bins)
    assert [each.score.count for each in calibration([0.5, 0.1], [1.0, 0.0])] == [1, 1]


def test_the_expected_calibration_error() -> None:
    # Two bins: of probability 0.15 with a score of 1/2, and of 0.9 with a score of 3/4.
    bins = calibration([0.9, 0.1, 1.0, 0.2, 0.8, 0.1, 0.9, 0.2], [1, 0, 0.5, 1, 0.5, 1, 1, 0], bins=2)
    assert [(each.probability, each.score.mean) for each in bins] == [
        (pytest.approx(0.15), 0.5),
        (pytest.approx(0.9), 0.75),
    ]
    assert calibration_error(bins) == pytest.approx((0.35 + 0.15) / 2)
    # A model that says what is so has none: of four answers of probability 0.75, three are right.
    assert calibration_error(calibration([0.75] * 4, [1, 1, 0, 1], bins=1)) == 0


@pytest.mark.parametrize(("items", "most"), [(10, 10), (11, 10), (1000, 500), (7, 3), (3, 7), (0, 3)])
def test_examples_are_spread_evenly(items: int, most: int) -> None:
    for seed in range(20):
        chosen = spread_evenly(range(items), most, seed)
        assert len(chosen) == min(items, most)
        assert chosen == sorted(set(chosen))
        gaps = {after - before for before, after in itertools.pairwise(chosen)}
        assert gaps <= {max(1, items // most), -(-items // most)}
    assert len({tuple(spread_evenly(range(1000), 10, seed)) for seed in range(5)}) > 1


def test_how_many_is_told() -> None:
    assert told_part(3, 3, "questions of minival") == "all 3 questions of minival"
    assert told_part(500, 1000, "questions") == "500 of the 1,000 questions, spread evenly over them"
