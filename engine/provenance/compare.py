"""What differs between runs: between two of them as a table."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from engine.errors import UserError
from engine.provenance.history import RUN, RUNNING, read_starts
from engine.provenance.results import Results, each_record

CONFIG, METRICS = "config.yaml", "metrics.jsonl"
# Sections of the table, and where a start in run.json has them.
SECTIONS = {
    "flags": "configuration",
    "DeepSpeed settings": "deepspeed",
    "versions": "versions",
    "code": "code",
    "data": "data",
    "hosts": "hosts",
    "seeds": "seeds",
}
ABSENT = "-"
NO_END = "no end was written: it still runs, or was killed"


@dataclass
class Run:
    """One side of a comparison."""

    name: str
    about: Mapping[str, Any]  # by section; one that isn't recorded is missing
    results: dict[str, Any] = field(default_factory=dict)


class Comparison(NamedTuple):
    """What differs between runs."""

    differences: dict[str, list[tuple[str, ...]]]  # by section: a name, and its value in each run
    same: list[str]  # sections without a difference
    missing: list[str]  # sections that a run didn't record


def read_run(path: Path) -> Run:
    """A run from its folder, its run.json, or its config.yaml alone.

    Raises:
        UserError: if there is none, or it can't be read.
    """
    run = read_record(path)
    if path.is_dir() and (told := read_metrics(path / METRICS)):
        run.results |= flat(Results(told).to_dict())  # up to now, and also of a run that wrote no end
    return run


def read_record(path: Path) -> Run:
    """The same without metrics.jsonl."""
    file = next((path / name for name in (RUN, CONFIG) if (path / name).is_file()), None) if path.is_dir() else path
    if file is None:
        raise UserError(f"{path} holds neither {RUN} nor {CONFIG}, so it is no folder of a run")
    if file.suffix in (".yaml", ".yml"):
        about, results = {"configuration": _read_yaml(file)}, {}
    else:
        starts = _read_starts(file)
        about, results = starts[-1], _results_at(starts)
    return Run(str(path), about, results)


def compare(one: Run, other: Run) -> str:
    """The table: what differs in each section, and all results side by side."""
    found = compare_all([one, other])
    sections = {**found.differences, "results": results_of([one, other])}
    lines: list[tuple[str, ...]] = [("", one.name, other.name)]
    for title, rows in sections.items():
        if rows:
            lines += [(title, "", ""), *((f"  {name}", *values) for name, *values in rows)]
    notes = [f"no difference in {', '.join(found.same)}"] if found.same else []
    notes += [f"not recorded in both: {', '.join(found.missing)}"] if found.missing else []
    return "\n".join([*aligned(lines), *notes])


def compare_all(runs: Sequence[Run]) -> Comparison:
    """What differs between two runs or more, in each of SECTIONS."""
    found = Comparison({}, [], [])
    for title, key in SECTIONS.items():
        sides = [run.about.get(key) for run in runs]
        recorded = [flat(side) for side in sides if isinstance(side, Mapping)]
        if len(recorded) < len(sides):
            found.missing.append(title)
        elif rows := differences(recorded):
            found.differences[title] = rows
        else:
            found.same.append(title)
    return found


def results_of(runs: Sequence[Run]) -> list[tuple[str, ...]]:
    """Each result's name, and its value in each run."""
    names = dict.fromkeys(name for run in runs for name in run.results)
    return [(name, *(_shown(run.results, name) for run in runs)) for name in names]


def differences(sides: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Names of what isn't the same everywhere, and the value in each; what some lack differs."""
    names = dict.fromkeys(name for side in sides for name in side)
    differing = [name for name in names if any(side.get(name, ABSENT) != sides[0].get(name, ABSENT) for side in sides)]
    return [(name, *(_shown(side, name) for side in sides)) for name in differing]


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested entries under one name each, with dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Rows of three, in columns."""
    widths = [max(len(row[place]) for row in rows) for place in (0, 1)]
    return [f"{name:{widths[0]}}  {one:{widths[1]}}  {other}".rstrip() for name, one, other in rows]


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return ABSENT
    value = values[name]
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value)


def _results_at(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """How a run's last start ended, what it came to, and the time of all that wrote their end."""
    last, results = starts[-1], starts[-1].get("results")
    seconds = [start["seconds"] for start in starts if isinstance(start.get("seconds"), float | int)]
    ended = last.get("exit") != RUNNING
    return {
        "exit": last.get("exit") if ended else NO_END,
        "start": last.get("start"),
        "starts": len(starts),
        "step": last.get("step"),
        "seconds": sum(seconds) if seconds else None,
        **(flat(results) if isinstance(results, Mapping) else {}),
    }


def _read_starts(path: Path) -> list[dict[str, Any]]:
    try:
        return read_starts(path)
    except FileNotFoundError:
        raise UserError(f"{path} is neither a folder of a run nor a {RUN}: there is no such file") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path} can't be read ({type(error).__name__}); give another run") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is no configuration: settings, one `name: value` a line, were expected")
    return values


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines: the run may be writing the last one. None where there is no such file."""
    try:
        return [record for record in each_record(path) if record is not None]
    except OSError:
        return []
