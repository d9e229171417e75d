"""A few steps and a checkpoint, to measure what a training takes before it is begun."""

import itertools
import shutil
import signal
import statistics
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator
from torch.utils.data import DataLoader

from engine.checkpoint.manifest import UNFINISHED
from engine.checkpoint.saving import Checkpoints
from engine.checkpoint.state import CONTENT
from engine.configuration.flags import TrainingConfig
from engine.data.loading import Batch, Collator
from engine.data.sampler import Sample, TrainingSampler
from engine.data.waiting import TimedLoader
from engine.distributed.device import forget_peak, peak_bytes
from engine.training.loop import Observer, TrainState, evaluate, micro_step, train
from engine.training.reports.metrics import Metrics

WARM_UP, FEWEST, MOST = 2, 3, 60  # optimiser steps: not timed, and timed
ENOUGH = 30.0  # seconds of timed steps after which no more are taken
VALIDATED = 4  # batches
SEARCHED = 2000  # batches of an epoch in which one of each orientation is looked for


@dataclass(frozen=True)
class Findings:
    """What a trial has shown; of several ranks, the slowest and the fullest."""

    seconds_per_step: float  # the median of `steps`
    steps: int
    data_wait: float  # share of the time in which a rank waited for its loader
    peak_bytes: int  # of a rank's device
    fullest_rank: int
    orientations: int
    seconds_of_save: float  # until the checkpoint is complete
    seconds_stopped: float  # of these, how long the training stands still
    checkpoint_bytes: int
    seconds_of_validation: float  # of one whole validation; 0 without


class Stopwatch(Observer):
    """Times optimiser steps, and asks to stop after enough of them, on all ranks after the same."""

    def __init__(self) -> None:
        self.last = time.monotonic()
        self.seconds: list[float] = []  # of each step

    def after_micro_step(self, state: TrainState, batch: Batch, at_boundary: bool) -> None:
        if not at_boundary:
            return
        get_accelerator().synchronize()
        now = time.monotonic()
        self.seconds.append(now - self.last)
        timed = self.seconds[WARM_UP:]
        enough = len(timed) >= MOST or (len(timed) >= FEWEST and sum(timed) > ENOUGH)
        self.stop_requested = bool(from_rank_0(enough))
        self.last = time.monotonic()

    @property
    def timed(self) -> list[float]:
        """Without the first ones, unless there are no others."""
        return self.seconds[WARM_UP:] or self.seconds


def from_rank_0(value: Any) -> Any:
    said = [value]
    dist.broadcast_object_list(said, src=0)
    return said[0]


def of_all_ranks(value: Any) -> list[Any]:
    said: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(said, value)
    return said


def try_out(
    engine: DeepSpeedEngine,
    batches: TimedLoader[Batch],
    validation_batches: DataLoader[Batch] | None,
    config: TrainingConfig,
    content: dict[str, Any],
    folder: Path,
    *,
    weights_file: bool,
) -> Findings:
    """A batch of each orientation, some steps of the training, part of a validation, and a checkpoint.

    Args:
        content: the training's own entry in a checkpoint.
        folder: to write to; what is written is removed.
    """
    device = engine.device
    engine.train()
    first = one_of_each_orientation(batches)
    for batch in first:
        micro_step(engine, batch.to(device), at_boundary=True)
    watch, metrics, waited = Stopwatch(), Metrics(device), batches.seconds
    started = time.monotonic()
    train(engine, batches, TrainState(), config, metrics, [watch])
    share = (batches.seconds - waited) / (time.monotonic() - started)
    validation = time_validation(engine, validation_batches) if validation_batches is not None else 0.0
    save, stopped, size = time_save(engine, content, folder, weights_file=weights_file)
    peaks = of_all_ranks(peak_bytes(device))
    return Findings(
        seconds_per_step=max(of_all_ranks(statistics.median(watch.timed))),
        steps=len(watch.timed),
        data_wait=max(of_all_ranks(share)),
        peak_bytes=max(peaks),
        fullest_rank=peaks.index(max(peaks)),
        orientations=max(of_all_ranks(len({batch.inputs["images"].shape for batch in first}))),
        seconds_of_save=save,
        seconds_stopped=stopped,
        checkpoint_bytes=size,
        seconds_of_validation=max(of_all_ranks(validation)),
    )


def one_of_each_orientation(batches: TimedLoader[Batch]) -> list[Batch]:
    """Two full batches, upright and broad, loaded here; twice the same kind where this rank's data have but one."""
    sampler: TrainingSampler = batches.batch_sampler  # type: ignore[assignment]
    dataset: Any = batches.dataset
    found: dict[bool, list[Sample]] = {}
    for samples in itertools.islice(sampler.batches(), SEARCHED):
        found.setdefault(dataset.is_landscape(samples[0].index), samples)
        if len(found) == 2:
            break
    first, last = next(iter(found.values())), next(reversed(found.values()))
    return [Collator(dataset)(dataset.__getitems__(samples)) for samples in (first, last)]


def largest_measured(
    engine: DeepSpeedEngine, batches: TimedLoader[Batch], config: TrainingConfig, limit: float
) -> tuple[int, int] | None:
    """Samples of the largest micro-batch whose measured peak is within `limit` bytes, and that peak; None for none.

    Memory grows evenly with the samples. So sizes are doubled as long as twice as many should fit, then one is tried
    that should just do so; after the first two, none is tried that is expected to fail.
    """
    unit, device = config.sentences_per_image, engine.device
    most = len(batches.batch_sampler.groups) // unit * unit  # type: ignore[union-attr]
    measured: dict[int, int] = {}

    def measure(samples: int) -> int:
        forget_peak(device)
        batch = batch_of(batches, samples).to(device)
        for number in reversed(range(min(2, config.gradient_accumulation_steps))):  # two show what accumulation takes
            micro_step(engine, batch, at_boundary=number == 0)
        measured[samples] = max(of_all_ranks(peak_bytes(device)))
        return measured[samples]

    half = measure(unit)
    if half > limit or 2 * unit > most:
        return None if half > limit else (unit, half)
    size, peak = 2 * unit, measure(2 * unit)
    while peak + 2 * (peak - half) <= limit and 2 * size <= most:
        size, half, peak = 2 * size, peak, measure(2 * size)
    per_sample = max(1.0, (peak - half) / (size - size // 2))
    fitting = min(most, int(size + (limit - peak) / per_sample) // unit * unit)
    while fitting > size and measure(fitting) > limit:
        fitting = min(fitting - unit, int(0.95 * fitting)) // unit * unit
    return max((samples, peak) for samples, peak in measured.items() if peak <= limit)


def batch_of(batches: TimedLoader[Batch], samples: int) -> Batch:
    """So many of an epoch's first samples whose images are as high and broad as the first one's."""
    dataset: Any = batches.dataset
    sampler: TrainingSampler = batches.batch_sampler  # type: ignore[assignment]
    every = itertools.chain.from_iterable(sampler.batches())
    first = next(every)
    alike = (s for s in every if dataset.is_landscape(s.index) == dataset.is_landscape(first.index))
    taken = [first, *itertools.islice(alike, samples - 1)]
    return Collator(dataset)(dataset.__getitems__(list(itertools.islice(itertools.cycle(taken), samples))))


def time_validation(engine: DeepSpeedEngine, batches: DataLoader[Batch]) -> float:
    """Seconds that a whole validation will take, from a few of its batches."""
    ends: list[float] = []

    def note(batch: Batch, output: Any) -> None:
        get_accelerator().synchronize()
        ends.append(time.monotonic())

    started = time.monotonic()
    evaluate(engine.module, itertools.islice(batches, VALIDATED), on_batch=note)
    if len(ends) < 2:
        return time.monotonic() - started
    return (ends[-1] - ends[0]) / (len(ends) - 1) * len(batches)


def time_save(
    engine: DeepSpeedEngine, content: dict[str, Any], folder: Path, *, weights_file: bool
) -> tuple[float, float, int]:
    """Seconds of a checkpoint until it is complete, those in which the training stands still, and its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    dist.barrier()
    checkpoints, started = Checkpoints(engine, folder, keep=None), time.monotonic()
    checkpoints.save("trial", 0, {CONTENT: content}, weights_file=weights_file)
    stopped = time.monotonic() - started
    checkpoints.finish()
    seconds = time.monotonic() - started
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return from_rank_0(seconds), max(of_all_ranks(stopped)), from_rank_0(size)


@contextmanager
def trial_folder(output: Path) -> Iterator[Path]:
    """A folder in --output for what a trial writes; both are as they were afterwards. A killed trial's is swept.

    All ranks call it, and get the same one.
    """
    folder = output / f".trial-{from_rank_0(uuid.uuid4().hex[:8])}{UNFINISHED}"
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # by way of what follows
    with folders_as_before(output):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            signal.signal(signal.SIGTERM, before)


@contextmanager
def folders_as_before(folder: Path) -> Iterator[None]:
    """Remove a folder and those above it afterwards, as far as they weren't there and hold nothing."""
    made = [path for path in (folder.absolute(), *folder.absolute().parents) if not path.exists()]
    try:
        yield
    finally:
        for path in made:
            with suppress(OSError):
                path.rmdir()
