"""What a whole training will do, and what its checkpoints take on the disk."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint.space import Files, check_space
from engine.configuration.flags import TrainingConfig
from engine.tasks.task import Task


@dataclass(frozen=True)
class Plan:
    """Counts of a training from its first step to its last."""

    steps: int
    epochs: int  # begun
    saves: int
    weights_files: int  # files or folders with weights alone that are there at the end

    @classmethod
    def of(cls, config: TrainingConfig, task: Task[Any], batches_per_epoch: int) -> "Plan":
        """`batches_per_epoch`: micro-batches of a rank."""
        steps_per_epoch = max(1, batches_per_epoch // config.gradient_accumulation_steps)
        steps = min(config.max_steps or sys.maxsize, steps_per_epoch * config.last_epoch)
        epochs = -(-steps // steps_per_epoch)
        saves = epochs + (steps // config.save_step if config.save_step else 0)
        weights_files = epochs * task.epoch_weights + 3 * task.best_and_last  # BEST, LAST, and one that replaces it
        return cls(steps, epochs, saves, weights_files)

    def bytes_on_disk(self, files: Files, keep: int | None) -> int:
        """At most: older checkpoints go when a newer one is complete."""
        kept = self.saves if keep is None else min(keep + 1, self.saves)
        return kept * files.state + self.weights_files * files.weights


def files_of(config: TrainingConfig, model: Any) -> Files:
    """What a training's checkpoints take."""
    itemsize = 4 if config.precision == "fp32" else 2
    backbone_moments = 2 if config.use_adam_for_visual else int(config.sgd_momentum > 0)
    return Files.of(model, itemsize=itemsize, backbone_moments=backbone_moments)


def check_disk(config: TrainingConfig, folder: Path, files: Files, plan: Plan) -> str:
    """What to say of a disk that is too small for all checkpoints, or ""; UserError if it is for those that stay."""
    return check_space(folder, files, saves=plan.saves, keep=config.keep, weights_files=plan.weights_files)
