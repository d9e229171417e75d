"""The runs of a report: what their folders tell."""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import UserError
from engine.provenance.compare import CONFIG, METRICS, NO_END, Run, flat, read_record
from engine.provenance.history import RUN, is_in_use
from engine.report.curves import Curves, read_curves


@dataclass
class ReportedRun:
    """A run of a report."""

    folder: Path
    name: str  # short, and another one for each run
    record: Run
    curves: Curves

    def recorded(self, *names: str) -> Any:
        """An entry of its last start in run.json, or None: `recorded("code", "commit")`."""
        value: Any = self.record.about
        for name in names:
            value = value.get(name) if isinstance(value, Mapping) else None
        return value

    @property
    def end(self) -> str:
        """How it ended, or that it hasn't."""
        reason = self.record.results.get("exit")
        if reason != NO_END:
            return "not recorded" if reason is None else str(reason)
        if is_in_use(self.folder):
            return "it is running"
        if self.recorded("rank_0", "host") == socket.gethostname():
            return "it was killed: no end was written, and no process uses its folder"
        return NO_END


def read_runs(folders: Sequence[str]) -> list[ReportedRun]:
    """Raises UserError if one of them is no run, or is damaged."""
    paths = [Path(folder) for folder in folders]
    return [_read(folder, name) for folder, name in zip(paths, _names(paths), strict=True)]


def _read(folder: Path, name: str) -> ReportedRun:
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder; give one that a training has written (--output)")
    if any((folder / file).is_file() for file in (RUN, CONFIG)):
        record = read_record(folder)
    elif (folder / METRICS).is_file():
        record = Run(str(folder), {})
    else:
        raise UserError(f"{folder} holds neither {RUN}, {CONFIG} nor {METRICS}, so it is no folder of a run")
    curves = read_curves(folder / METRICS)
    if curves.reports:
        record.results |= flat(curves.results.to_dict())  # up to now, and also of a run that wrote no end
    return ReportedRun(folder, name, record, curves)


def _names(folders: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as tell them apart; of several runs, behind a number."""
    paths = [Path(os.path.abspath(folder)) for folder in folders]
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            break
    return names if len(names) == 1 else [f"{number}: {name}" for number, name in enumerate(names, 1)]
