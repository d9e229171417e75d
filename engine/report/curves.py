"""metrics.jsonl, read once, as curves; and a curve of so many points as can be seen."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.provenance.results import Results, each_record

MOST_POINTS = 500  # of a line; a picture is not much broader, and each point may have a band of two more


@dataclass
class Curve:
    """A figure by optimiser step, in the order of the reports."""

    steps: np.ndarray  # int64 (N,)
    values: np.ndarray  # float64 (N,); NaN and infinities are as they were reported

    @property
    def finite(self) -> np.ndarray:
        """bool (N,)"""
        return np.isfinite(self.values)


@dataclass
class Curves:
    """All that metrics.jsonl tells."""

    kinds: dict[str, dict[str, Curve]]  # by "train" or "valid", then by the figure's name
    warnings: list[dict[str, Any]] = field(default_factory=list)
    results: Results = field(default_factory=Results)
    damaged: list[int] = field(default_factory=list)  # numbers of lines, the first being 1

    @property
    def reports(self) -> int:
        return max((len(curve.steps) for curves in self.kinds.values() for curve in curves.values()), default=0)


def read_curves(path: Path) -> Curves:
    """Of a file that isn't there, none; lines that can't be read are left out and noted.

    Raises:
        UserError: if the file can't be read.
    """
    columns: dict[str, dict[str, tuple[array[int], array[float]]]] = {"train": {}, "valid": {}}
    found = Curves({})
    try:
        for number, record in enumerate(each_record(path), 1):
            if record is None or not _is_number(record.get("step")):
                found.damaged.append(number)
            elif record["kind"] == "warning":
                found.warnings.append(record)
            elif record["kind"] in columns:
                numbers = {name: value for name, value in record.items() if _is_number(value)}
                found.results.add({"kind": record["kind"], **numbers})
                _append(columns[record["kind"]], numbers)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); mend that, or leave this run out") from None
    for kind, named in columns.items():
        found.kinds[kind] = {
            name: Curve(np.array(steps, np.int64), np.array(values, np.float64))
            for name, (steps, values) in named.items()
        }
    return found


def _is_number(value: Any) -> bool:
    """Whether it is one that fits into 64 bits."""
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63)


def _append(columns: dict[str, tuple["array[int]", "array[float]"]], numbers: Mapping[str, float]) -> None:
    for name, value in numbers.items():
        if name != "step":
            steps, values = columns.setdefault(name, (array("q"), array("d")))
            steps.append(int(numbers["step"]))
            values.append(float(value))


@dataclass
class Line:
    """A curve to draw: means, and the smallest and largest of what each is the mean of, all (M,)."""

    steps: np.ndarray
    means: np.ndarray  # NaN where no report was finite
    lowest: np.ndarray
    highest: np.ndarray
    reports: int  # that a point stands for, at most


def thinned(curve: Curve, most: int = MOST_POINTS) -> Line:
    """The curve itself, or means of as many reports in a row as it takes. No spike is lost: the band reaches to it."""
    each = max(1, -(-len(curve.steps) // most))
    starts = np.arange(0, len(curve.steps), each)
    counts = np.add.reduceat(curve.finite.astype(np.int64), starts)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        means = np.add.reduceat(np.where(curve.finite, curve.values, 0.0), starts) / counts
    lowest = np.minimum.reduceat(np.where(curve.finite, curve.values, np.inf), starts)
    highest = np.maximum.reduceat(np.where(curve.finite, curve.values, -np.inf), starts)
    none = counts == 0
    lowest[none], highest[none] = np.nan, np.nan
    ends = np.minimum(starts + each, len(curve.steps)) - 1
    return Line((curve.steps[starts] + curve.steps[ends]) / 2, means, lowest, highest, each)
