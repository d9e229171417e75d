"""launch/pretrain.py that notes which sentences it saw, and saves what it has restored before it goes on.

SEEN_DIRECTORY/RANKS.STEP.RANK.json holds a list of [epoch, sentence]; the checkpoint is called Restored. Each rank that
reads annotations adds its number to SEEN_DIRECTORY/prepared.
"""

import json
import os
from pathlib import Path

from engine.tasks import task
from engine.training.observers.saver import Saver
from launch.pretrain import main

seen: list[tuple[int, int]] = []
read_split = task.read_split
restore, after_micro_step, after_training = Saver.restore, Saver.after_micro_step, Saver.after_training


def note_and_read(*arguments, **options):
    with Path(os.environ["SEEN_DIRECTORY"], "prepared").open("a") as prepared:
        prepared.write(os.environ.get("RANK", "0") + "\n")
    return read_split(*arguments, **options)


def restore_and_save(self, checkpoint):
    state = restore(self, checkpoint)
    name, weights = self.saved, self.saved_weights
    self._save("Restored", state)
    self._finish()
    self.saved, self.saved_weights = name, weights
    return state


def record(self, state, batch, at_boundary):
    seen.extend((state.epoch, number) for number in batch.numbers)
    after_micro_step(self, state, batch, at_boundary)


def write(self, state):
    after_training(self, state)
    rank, ranks = os.environ["RANK"], os.environ["WORLD_SIZE"]
    Path(os.environ["SEEN_DIRECTORY"], f"{ranks}.{state.step}.{rank}.json").write_text(json.dumps(seen))


task.read_split = note_and_read
Saver.restore, Saver.after_micro_step, Saver.after_training = restore_and_save, record, write

if __name__ == "__main__":
    main()
