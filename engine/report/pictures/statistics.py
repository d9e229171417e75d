"""How sure a mean is, and whether probabilities are what they say."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Z = 1.959964  # deviations of a normal distribution that hold 95% of it
BINS = 10


@dataclass(frozen=True)
class Mean:
    """A mean of scores from 0 to 1, and the ends of its 95% interval."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.1%}"

    @property
    def interval(self) -> str:
        return f"{self.low:.1%} to {self.high:.1%}"


def mean_of(scores: Sequence[float]) -> Mean:
    """The mean of one or more scores from 0 to 1, with Wilson's score interval.

    Wilson, "Probable inference, the law of succession, and statistical inference", 1927, has it for scores of 0 or 1.
    Scores between these vary less around the same mean, so theirs is rather too wide than too narrow. It counts the
    scores as independent of each other.
    """
    n, mean = len(scores), min(1.0, math.fsum(scores) / len(scores))
    centre = (mean + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(mean * (1 - mean) / n + Z**2 / (4 * n**2))
    return Mean(mean, min(mean, max(0.0, centre - half)), max(mean, min(1.0, centre + half)), n)


@dataclass(frozen=True)
class Bin:
    """Answers of similar probability."""

    probability: float  # the mean
    score: Mean


def calibration(probabilities: Sequence[float], scores: Sequence[float], bins: int = BINS) -> list[Bin]:
    """Answers in the order of their probability, in bins of equal counts, or counts that differ by one."""
    order = np.argsort(probabilities, kind="stable")
    parts = np.array_split(order, min(bins, len(order)))
    likely, worth = np.asarray(probabilities, float), np.asarray(scores, float)
    return [Bin(float(likely[part].mean()), mean_of(worth[part].tolist())) for part in parts]


def calibration_error(bins: Sequence[Bin]) -> float:
    """The expected calibration error: how far mean score and mean probability of a bin are apart, over all answers.

    Naeini et al., "Obtaining Well Calibrated Probabilities Using Bayesian Binning", 2015; there the bins have equal
    widths.
    """
    total = sum(group.score.count for group in bins)
    return math.fsum(group.score.count * abs(group.score.mean - group.probability) for group in bins) / total
