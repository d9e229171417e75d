"""Validation in the course of a training, and the models that are kept for its sake."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.utils.data import DataLoader

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.checkpoint.manifest import BEST, LAST, read_manifest
from engine.checkpoint.saving import full_state
from engine.data.loading import Batch
from engine.data.trained_on import TrainedOn
from engine.errors import UserError
from engine.progress import Bar
from engine.tasks.task import Judge
from engine.training.loop import Observer, TrainState, evaluate
from engine.training.observers.reporter import Reporter, with_total_loss
from engine.training.observers.saver import Saver


class ModelKeeper(Observer):
    """BEST and LAST in the run's folder: models to predict with, as engine.checkpoint.load_pretrained loads them.

    Of equal scores, the later one's model is BEST: it has trained for longer.
    """

    def __init__(self, saver: Saver, folder: Path, description: ModelDescription, trained_on: TrainedOn) -> None:
        self.saver, self.folder = saver, folder
        self.description, self.trained_on = description, trained_on
        self.best = float("-inf")
        if (folder / BEST).exists():  # of the run that this one goes on with
            try:
                self.best = read_manifest(folder / BEST).get("score", self.best)
            except UserError as error:
                self.saver.reporter.say(f"{error}; it is replaced by the next validation's")

    def after_validation(self, state: TrainState, metric: str, score: float, epoch: float) -> None:
        if score >= self.best:
            self.best = score
            self._save(BEST, state, {"metric": metric, "score": score, "epoch": epoch})

    def after_training(self, state: TrainState) -> None:
        if not self.saver.stop_requested:
            self._save(LAST, state, {})

    def _save(self, name: str, state: TrainState, notes: Mapping[str, Any]) -> None:
        weights = full_state(self.saver.engine)
        if self.saver.engine.global_rank == 0:
            told = "".join(f", {key} {value:.4g}" for key, value in notes.items() if isinstance(value, float | int))
            origin = f"a run of this engine, after step {state.step}{told}"
            save_pretrained(
                self.folder / name,
                weights,
                {},
                self.description,
                origin,
                trained_on=self.trained_on,
                notes={**notes, "step": state.step},
                replace=True,
            )
        self.saver.reporter.say(f"saved {self.folder / name}")


class Validator(Observer):
    """A validation after each epoch and at the end, told by the reporter.

    One that is told already isn't made again, and one that a signal cuts short is left to the resumed run.
    """

    def __init__(
        self,
        reporter: Reporter,
        saver: Saver,
        batches: DataLoader[Batch],
        judge: Judge,
        keeper: ModelKeeper | None = None,
    ) -> None:
        self.reporter, self.saver, self.batches = reporter, saver, batches
        self.judge, self.keeper = judge, keeper

    def after_epoch(self, state: TrainState) -> None:
        if self.reporter.validated != (state.epoch + 1, state.step):
            self._validate(state, state.epoch + 1)

    def after_training(self, state: TrainState) -> None:
        _, validated_step = self.reporter.validated
        if state.step != validated_step and not self.saver.stop_requested:
            self._validate(state, self.reporter.epoch(state))

    def _validate(self, state: TrainState, epoch: float) -> None:
        engine, preemption = self.reporter.engine, self.saver.preemption
        for buffer in engine.module.buffers():  # ranks saw different batches: rank 0's statistics stand for all
            dist.broadcast(buffer, src=0)
        batches = Bar(self.batches, desc="validation", leave=False, disable=engine.global_rank != 0)
        until_a_signal = itertools.takewhile(lambda batch: preemption.received is None, batches)
        means = evaluate(engine.module, until_a_signal, on_batch=self._see)
        self.saver.agree()
        if self.saver.stop_requested:
            return
        more, text = self.judge.report()
        record = {"kind": "valid", "epoch": epoch, "step": state.step, **with_total_loss(means), **more}
        if self.keeper is not None and self.judge.metric is not None:
            self.keeper.after_validation(state, self.judge.metric, record[self.judge.metric], epoch)
        self.reporter.tell(record, text)  # last: a run that was killed before makes this validation again
        self.reporter.pace.start()

    def _see(self, batch: Batch, output: Any) -> None:
        self.reporter.count_unreadable(batch)
        self.judge.see(batch, output)
