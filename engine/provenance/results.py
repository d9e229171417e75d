"""What came out of a run, as metrics.jsonl tells it."""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

TIMES = ("time", "seconds")  # when a record was written: in UTC, and since training began at this start
SCORE = "score"  # in validations that have one, more is better; in others, a smaller loss is


class Results:
    """The last report, the last validation and the best one, without tables and times."""

    def __init__(self, records: Iterable[Mapping[str, Any]] = ()) -> None:
        self.train: dict[str, Any] = {}
        self.valid: dict[str, Any] = {}
        self.best: dict[str, Any] = {}  # the latest of equal ones
        self.first: dict[str, Any] = {}  # validation
        for record in records:
            self.add(record)

    def add(self, record: Mapping[str, Any]) -> None:
        left_out = ("kind", *TIMES)
        values = {k: v for k, v in record.items() if k not in left_out and not isinstance(v, Mapping)}
        if record["kind"] == "train":
            self.train = values
        elif record["kind"] == "valid":
            self.valid, self.first = values, self.first or values
            if not self.best or is_better_or_equal(values, self.best):
                self.best = values

    def to_dict(self) -> dict[str, dict[str, Any]]:
        return {"train": self.train, "valid": self.valid, "best": self.best}


def is_better_or_equal(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a validation is no worse than another of the same run; what isn't a number is worse than any other."""
    if SCORE in one and SCORE in other:
        return bool(one[SCORE] >= other[SCORE])
    loss, least = (float(values.get("loss", math.inf)) for values in (one, other))
    return loss <= least or math.isnan(least)


def each_record(path: Path) -> Iterator[dict[str, Any] | None]:
    """The records of metrics.jsonl, one after another, and None for a line that is none: a run may be writing its last.

    Raises:
        OSError: if there is no such file, or it can't be read.
    """
    with path.open("rb") as file:
        for line in file:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                record = None
            yield record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None
