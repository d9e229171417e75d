"""A training from its flags, which program.py has checked, to its last checkpoint, whatever the task.

1. prepared         all that it needs: prepared.py
2. training         epochs of micro-batches; reports, checkpoints and validations beside them
"""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.checkpoint.saving import Checkpoints
from engine.configuration.deepspeed import monitor_settings
from engine.configuration.flags import TrainingConfig
from engine.data.waiting import StallWatch
from engine.distributed.leaving import INTERRUPTED
from engine.distributed.ranks import Ranks
from engine.provenance.record import RunRecord, describe_start
from engine.tasks.task import Task
from engine.training.loop import Observer, train
from engine.training.observers.conclusion import Conclusion
from engine.training.observers.reporter import Reporter
from engine.training.observers.saver import Saver
from engine.training.observers.validator import ModelKeeper, Validator
from engine.training.preemption import Preemption
from engine.training.preflight.memory import explained
from engine.training.prepared import Prepared, prepare
from engine.training.reports.listener import Recorder
from engine.training.reports.metrics import Metrics
from engine.training.reports.monitors import Monitors


def run(config: TrainingConfig, task_class: Callable[..., Task[Any]], ranks: Ranks, settings: dict[str, Any]) -> None:
    """Train to the end, which run.json tells, whatever it is.

    Args:
        config: checked.
        settings: DeepSpeed's, from engine.configuration.deepspeed.
    """
    with RunRecord(Path(config.output), ranks.rank) as record:
        prepared = prepare(config, task_class, ranks, settings)
        begin(record, prepared)
        with Monitors(monitor_settings(config) if ranks.rank == 0 else {}, prepared.folder.path) as monitors:
            asked_by = train_prepared(prepared, record, monitors)
        prepared.leave()
    if asked_by == signal.SIGINT.name:
        sys.exit(INTERRUPTED)


def begin(record: RunRecord, prepared: Prepared) -> None:
    """This start's entry in run.json. All ranks call it."""
    config, task, resumed = prepared.config, prepared.task, prepared.resumed
    splits = {"train": task.training.split, "valid": task.validation.split if task.validation else None}
    about = describe_start(config, prepared.settings, prepared.device, splits, task.answers, prepared.came_from)
    record.begin(about, resumed=resumed is not None)


def train_prepared(prepared: Prepared, record: RunRecord, monitors: Monitors) -> str | None:
    """What happens beside the loop, and the loop.

    Returns:
        the name of the signal that asked this rank to stop, if one ended the training.
    """
    config, task, engine, folder = prepared.config, prepared.task, prepared.engine, prepared.folder.path
    batches, validation_batches = prepared.batches, prepared.validation_batches
    metrics, preemption = Metrics(prepared.device), Preemption(says=engine.global_rank == 0)
    reporter = Reporter(engine, config, batches, metrics, [Recorder(record.results), monitors], task.chance())
    checkpoints = Checkpoints(engine, folder, keep=config.keep)
    saver = Saver(
        *(engine, config, batches, prepared.description, reporter, checkpoints, preemption, prepared.trained_on),
        digests=prepared.digests,
        weights_files=task.epoch_weights,
    )
    observers: list[Observer] = [reporter, saver]
    keeper = ModelKeeper(saver, folder, prepared.description, prepared.trained_on) if task.best_and_last else None
    if validation_batches is not None:
        observers.append(Validator(reporter, saver, validation_batches, task.judge(), keeper))
    if keeper is not None:
        observers.append(keeper)
    observers.append(Conclusion(task, saver, record.results, reporter.ending))

    state = prepared.restore(saver)
    record.state = state
    reporter.begin(state)
    StallWatch([loader for loader in (batches, validation_batches) if loader], engine.global_rank, lambda: state.step)
    with explained(config, prepared.device):
        train(engine, batches, state, config, metrics, observers)
    asked_by = preemption.received or "a signal to another rank"
    record.end(f"asked to stop by {asked_by}" if saver.stop_requested else "finished")
    return preemption.received if saver.stop_requested else None
