"""Who hears each record that goes into metrics.jsonl."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.provenance.results import Results


class Listener:
    """Hears every record, on every rank."""

    def hear(self, record: Mapping[str, Any]) -> None: ...

    def restart(self, records: Sequence[Mapping[str, Any]]) -> None:
        """A resumed run goes on after these records (none on other ranks than 0); later ones are heard once more."""


class Recorder(Listener):
    """Adds each report and validation to the results of a run."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def hear(self, record: Mapping[str, Any]) -> None:
        self.results.add(record)

    def restart(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            self.results.add(record)
