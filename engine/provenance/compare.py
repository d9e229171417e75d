"""What differs between two runs, as a table."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.errors import UserError
from engine.provenance.history import RUN, RUNNING, read_starts
from engine.provenance.results import Results

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


def read_run(path: Path) -> Run:
    """A run from its folder, its run.json, or its config.yaml alone.

    Raises:
        UserError: if there is none, or it can't be read.
    """
    folder = path if path.is_dir() else path.parent
    file = next((path / name for name in (RUN, CONFIG) if (path / name).is_file()), None) if path.is_dir() else path
    if file is None:
        raise UserError(f"{path} holds neither {RUN} nor {CONFIG}, so it is no folder of a run")
    if file.suffix in (".yaml", ".yml"):
        about, results = {"configuration": _read_yaml(file)}, {}
    else:
        starts = _read_starts(file)
        about, results = starts[-1], _results_of(starts)
    if path.is_dir() and (told := read_metrics(folder / METRICS)):
        results |= flat(Results(told).to_dict())  # up to now, and also of a run that wrote no end
    return Run(str(path), about, results)


def compare(one: Run, other: Run) -> str:
    """The table: what differs in each section, and all results side by side."""
    lines, same, missing = [("", one.name, other.name)], [], []
    for title, key in SECTIONS.items():
        if one.about.get(key) is None or other.about.get(key) is None:
            missing.append(title)
        elif rows := differences(flat(one.about[key]), flat(other.about[key])):
            lines += [(title, "", ""), *rows]
        else:
            same.append(title)
    names = list(dict.fromkeys([*one.results, *other.results]))
    if names:
        lines.append(("results", "", ""))
        lines += [(f"  {name}", _shown(one.results, name), _shown(other.results, name)) for name in names]
    notes = [f"no difference in {', '.join(same)}"] if same else []
    notes += [f"not recorded in both: {', '.join(missing)}"] if missing else []
    return "\n".join([*aligned(lines), *notes])


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Names and both values of what isn't the same; what only one has differs."""
    names = dict.fromkeys([*one, *other])
    shown = [(f"  {name}", _shown(one, name), _shown(other, name)) for name in names]
    return [row for row, name in zip(shown, names, strict=True) if one.get(name, ABSENT) != other.get(name, ABSENT)]


def flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Nested entries under one name each, with dots."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{name}.")
        else:
            found[f"{before}{name}"] = value
    return found


def aligned(rows: list[tuple[str, str, str]]) -> list[str]:
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


def _results_of(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """How a run's last start ended, what it came to, and the time of all that wrote their end."""
    last = starts[-1]
    seconds = [start["seconds"] for start in starts if start.get("seconds") is not None]
    ended = last.get("exit") != RUNNING
    return {
        "exit": last.get("exit") if ended else NO_END,
        "start": last.get("start"),
        "starts": len(starts),
        "step": last.get("step"),
        "seconds": sum(seconds) if seconds else None,
        **flat(last.get("results") or {}),
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
    """All whole lines: the run may be writing the last one."""
    records = []
    try:
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if isinstance(record, dict) and "kind" in record:
                records.append(record)
    except (OSError, ValueError):
        pass
    return records
