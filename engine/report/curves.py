"""metrics.jsonl, read once, as curves; and a curve of so many points as can be seen."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.errors import UserError
from engine.provenance.results import Results, each_record

LARGEST = 1 << 63
MOST_POINTS = 500  # of a line; a picture is not much broader, and each point may have a band of two more

Columns = dict[str, tuple["array[int]", "array[float]"]]  # steps and values, by the figure's name


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
    kinds: dict[str, Columns] = {"train": {}, "valid": {}}
    found = Curves({})
    last: dict[str, Any] = {}
    try:
        for number, record in enumerate(each_record(path), 1):
            if record is None or type(step := record.get("step")) is not int or not _is_number(step):
                found.damaged.append(number)
            elif record["kind"] == "warning":
                found.warnings.append(record)
            elif record["kind"] in kinds:
                _append(kinds[record["kind"]], record)
                if record["kind"] == "valid":
                    found.results.add(_numbers(record))
                else:
                    last = record
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}); mend that, or leave this run out") from None
    if last:
        found.results.add(_numbers(last))
    for kind, columns in kinds.items():
        found.kinds[kind] = {
            name: Curve(np.array(steps, np.int64), np.array(values, np.float64))
            for name, (steps, values) in columns.items()
        }
    return found


def _is_number(value: Any) -> bool:
    """Whether it is one that fits into 64 bits."""
    return type(value) is float or (type(value) is int and -LARGEST < value < LARGEST)


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"kind": record["kind"], **{name: value for name, value in record.items() if _is_number(value)}}


def _append(columns: Columns, record: Mapping[str, Any]) -> None:
    """Most of the seconds that a long file takes are spent here."""
    step = record["step"]
    for name, value in record.items():
        if type(value) is float or _is_number(value):
            column = columns.get(name)
            if column is None:
                column = columns[name] = (array("q"), array("d"))
            column[0].append(step)
            column[1].append(value)


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
