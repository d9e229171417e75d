"""The training loop, and a pass over data without training.

1. the loader yields micro-batches of this rank (its sampler knows the epoch)
2. the engine computes the loss, the gradients and, at the end of an accumulation, the optimiser step
3. the state moves on; (epoch, batches) is all that a resumed run has to know of its place
4. observers report, save, and validate; one may ask to stop
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from torch import nn
from torch.utils.data import DataLoader

from engine.configuration.flags import OptimizationConfig
from engine.data.loading import Batch, CopiedAhead
from engine.data.sampler import TrainingSampler
from engine.training.reports.metrics import Metrics


@dataclass
class TrainState:
    """How far training has come; the same on any number of ranks."""

    epoch: int = 0  # epochs that are done
    batches: int = 0  # micro-batches of the current epoch that are done, over all ranks
    step: int = 0  # optimiser steps, skipped ones included


class Observer:
    """What happens beside the training; the loop itself prints and writes nothing."""

    stop_requested = False  # the same on every rank, and heeded after an optimiser step

    def after_micro_step(self, state: TrainState, batch: Batch, at_boundary: bool) -> None: ...
    def after_epoch(self, state: TrainState) -> None: ...  # `epoch` still counts those before
    def after_training(self, state: TrainState) -> None: ...


def micro_step(engine: DeepSpeedEngine, batch: Batch, at_boundary: bool) -> Any:
    """Loss, gradients and, at the end of an accumulation, the optimiser step; returns the model's output."""
    engine.set_gradient_accumulation_boundary(at_boundary)
    output = engine(**batch.inputs)
    engine.backward(output.loss)
    engine.step()
    return output


def train(
    engine: DeepSpeedEngine,
    batches: DataLoader[Batch],
    state: TrainState,
    config: OptimizationConfig,
    metrics: Metrics,
    observers: Sequence[Observer],
) -> None:
    """Train from where `state` stands until the last epoch, `max_steps`, or an observer's wish.

    A left-over micro-batch at the end of an epoch takes no step; its gradients count towards the next epoch's first.
    """
    sampler: TrainingSampler = batches.batch_sampler  # type: ignore[assignment]

    def is_over() -> bool:
        done = config.max_steps is not None and state.step >= config.max_steps
        return done or any(observer.stop_requested for observer in observers)

    while state.epoch < config.last_epoch and not is_over():
        engine.train()
        sampler.set_epoch(state.epoch, state.batches)
        for number, batch in enumerate(CopiedAhead(batches, engine.device), start=1):
            at_boundary = number % config.gradient_accumulation_steps == 0
            output = micro_step(engine, batch, at_boundary)

            state.batches += sampler.world_size
            state.step += at_boundary
            metrics.add(output.metrics)

            for observer in observers:
                observer.after_micro_step(state, batch, at_boundary)
            if at_boundary and is_over():
                break
        if sampler.batches_left(state.batches) == 0:
            for observer in observers:
                observer.after_epoch(state)
            state.epoch, state.batches = state.epoch + 1, 0
    for observer in observers:
        observer.after_training(state)


@torch.compiler.set_stance("force_eager")  # the last batch is smaller: its size would be compiled, too
@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], on_batch: Callable[[Batch, Any], None] = lambda batch, output: None
) -> dict[str, float]:
    """Means over every sample of all ranks' batches, each counted once. Every rank has to call it.

    `on_batch` also sees each batch of this rank with the model's output.
    """
    model.eval()
    device = next(model.parameters()).device
    metrics = Metrics(device)
    for batch in batches:
        batch = batch.to(device)
        output = model(**batch.inputs)
        metrics.add(output.metrics)
        on_batch(batch, output)
    return metrics.means()
