"""What run.json says of a training's results."""

from collections.abc import Mapping, Sequence
from typing import Any

from engine.provenance.results import Results
from engine.training.observers.reporter import Listener


class Recorder(Listener):
    """Adds each report and validation to the results, those before a resumed run as well."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def hear(self, record: Mapping[str, Any]) -> None:
        self.results.add(record)

    def restart(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            self.results.add(record)
