"""Validation in the course of a training."""

import itertools
import time

from torch.utils.data import DataLoader
from tqdm import tqdm

from engine.data.pretraining import Batch
from engine.reporter import Progress, Reporter, as_line, with_total_loss
from engine.saver import Saver
from engine.trainer import Observer, TrainState, evaluate


class Validator(Observer):
    """A validation after each epoch, told by the reporter. One that a signal cuts short is left to the resumed run."""

    def __init__(self, reporter: Reporter, saver: Saver, batches: DataLoader[Batch]) -> None:
        self.reporter, self.saver, self.batches = reporter, saver, batches

    def after_epoch(self, state: TrainState) -> None:
        engine, preemption = self.reporter.engine, self.saver.preemption
        batches = tqdm(self.batches, desc="validation", leave=False, disable=engine.global_rank != 0)
        until_a_signal = itertools.takewhile(lambda batch: preemption.received is None, batches)
        means = evaluate(engine.module, until_a_signal, on_batch=self.reporter.count_unreadable)
        self.saver.agree()
        if self.saver.stop_requested:
            return
        record = {"kind": "valid", "epoch": state.epoch + 1, "step": state.step, **with_total_loss(means)}
        self.reporter.file.write(record)
        self.reporter.say(as_line(record))
        self.reporter.window = Progress(time.monotonic())
