"""launch/pretrain.py that notes what it sends; fp16 passes on this CPU.

counting_pretrain.py REPORT.json FLAGS: the values that are trained, and a list of {collective: [bytes]} for each
micro-batch, from the one's end to the next's.
"""

import json
import sys
from pathlib import Path
from typing import Any

import engine.training.run
from engine.benchmark.counting import Collectives
from engine.data.loading import Batch
from engine.distributed.ranks import Ranks
from engine.optim.hybrid import trained_values
from engine.training.loop import Observer, TrainState, train
from launch.pretrain import main
from tests.workers import fp16_pretrain  # noqa: F401  fp16 passes on this CPU

report = Path(sys.argv.pop(1))


class Counting(Observer):
    """The last of the observers."""

    def __init__(self, collectives: Collectives) -> None:
        self.collectives = collectives
        self.records: list[dict[str, list[int]]] = []

    def after_micro_step(self, state: TrainState, batch: Batch, at_boundary: bool) -> None:
        self.records.append(dict(self.collectives.messages))
        self.collectives.messages.clear()


def counted(deepspeed_engine: Any, *arguments: Any) -> None:
    with Collectives() as collectives:
        counting = Counting(collectives)
        train(deepspeed_engine, *arguments[:-1], [*arguments[-1], counting])
    if Ranks.from_environment().rank == 0:
        values = sum(trained_values(deepspeed_engine.module))
        report.write_text(json.dumps({"values": values, "records": counting.records}))


engine.training.run.train = counted

if __name__ == "__main__":
    main()
