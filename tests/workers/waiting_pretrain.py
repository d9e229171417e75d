"""launch/pretrain.py that notes where its host would wait for a GPU; fp16 passes on this CPU.

waiting_pretrain.py REPORT.json FLAGS: a list of {place: waits} for each micro-batch, from the one's end to the next's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import engine.training.run
from engine.benchmark.counting import HostWaits
from engine.data.loading import Batch
from engine.distributed.ranks import Ranks
from engine.training.loop import Observer, TrainState, train
from launch.pretrain import main
from tests.workers import fp16_pretrain  # noqa: F401  fp16 passes on this CPU

report = Path(sys.argv.pop(1))


class Counting(Observer):
    """The last of the observers."""

    def __init__(self, waits: HostWaits) -> None:
        self.waits = waits
        self.records: list[dict[str, int]] = []

    def after_micro_step(self, state: TrainState, batch: Batch, at_boundary: bool) -> None:
        self.records.append(dict(self.waits.places))
        self.waits.places.clear()


def counted(*arguments: Any) -> None:
    with HostWaits() as waits:
        counting = Counting(waits)
        train(*arguments[:-1], [*arguments[-1], counting])
    if Ranks.from_environment().rank == 0:
        report.write_text(json.dumps(counting.records))


engine.training.run.train = counted

if __name__ == "__main__":
    main()
