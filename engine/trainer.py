"""The engine's making, the training loop, and validation.

1. the loader yields micro-batches of this rank (its sampler knows the epoch)
2. the engine computes the loss, the gradients and, at the end of an accumulation, the optimiser step
3. the state moves on; (epoch, micro_step) is all that a resumed run has to know of its place
4. now and then: a report, at the end of an epoch a checkpoint and a validation
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import deepspeed
import torch
from deepspeed import DeepSpeedEngine
from torch import nn
from torch.utils.data import DataLoader

from engine.config import OptimizationConfig
from engine.data.pretraining import Batch
from engine.metrics import Metrics
from engine.optim.hybrid import HybridOptimizer, parameter_groups
from engine.optim.schedules import hybrid_schedule


@dataclass
class TrainState:
    """How far training has come."""

    epoch: int = 0  # epochs that are done
    micro_step: int = 0  # micro-batches of the current epoch that are done
    step: int = 0  # optimiser steps, skipped ones included


class Observer(Protocol):
    """What happens beside the training; the loop itself prints and writes nothing."""

    def after_micro_step(self, state: TrainState, batch: Batch, at_boundary: bool) -> None: ...
    def after_epoch(self, state: TrainState) -> None: ...  # or after the part of one that max_steps allows


def build_engine(
    model: nn.Module, config: OptimizationConfig, settings: dict[str, Any], batches_per_epoch: int
) -> DeepSpeedEngine:
    """Both optimisers and schedules under ZeRO-2. The model holds its starting weights already.

    The schedules are laid out in optimiser steps as in the original: all epochs' micro-batches divided by the
    accumulation, and for the milestones those of one epoch.
    """
    optimizer = HybridOptimizer(
        parameter_groups(
            model,
            lr=config.lr,
            weight_decay=config.weight_decay,
            adam_epsilon=config.adam_epsilon,
            sgd_lr=config.sgd_lr,
            sgd_momentum=config.sgd_momentum,
            sgd_weight_decay=config.sgd_weight_decay,
        )
    )
    total_steps = batches_per_epoch * config.epochs // config.gradient_accumulation_steps
    schedule = hybrid_schedule(
        optimizer,
        warmup_steps=total_steps * config.warmup_ratio,
        total_steps=total_steps,
        steps_per_epoch=batches_per_epoch // config.gradient_accumulation_steps,
        milestones=config.milestones,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=settings)
    return engine


def train(
    engine: DeepSpeedEngine,
    batches: DataLoader[Batch],
    state: TrainState,
    config: OptimizationConfig,
    metrics: Metrics,
    observer: Observer,
) -> None:
    """Train until the last epoch or `max_steps`, whichever comes first.

    A left-over micro-batch at the end of an epoch takes no step; its gradients count towards the next epoch's first.
    """
    while state.epoch < config.last_epoch and state.step != config.max_steps:
        engine.train()
        batches.batch_sampler.set_epoch(state.epoch)  # type: ignore[union-attr]
        for batch in batches:
            batch = batch.to(engine.device)
            at_boundary = (state.micro_step + 1) % config.gradient_accumulation_steps == 0

            engine.set_gradient_accumulation_boundary(at_boundary)
            output = engine(**batch.inputs)

            engine.backward(output.loss)
            engine.step()

            state.micro_step += 1
            state.step += at_boundary
            metrics.add(output.metrics)

            observer.after_micro_step(state, batch, at_boundary)
            if state.step == config.max_steps:
                break
        if state.micro_step == len(batches):
            state.epoch, state.micro_step = state.epoch + 1, 0
        observer.after_epoch(state)


@torch.no_grad()
def evaluate(
    model: nn.Module, batches: Iterable[Batch], on_batch: Callable[[Batch], None] = lambda batch: None
) -> dict[str, float]:
    """Means over every sample of all ranks' batches, each counted once. Every rank has to call it."""
    model.eval()
    device = next(model.parameters()).device
    metrics = Metrics(device)
    for batch in batches:
        batch = batch.to(device)
        metrics.add(model(**batch.inputs).metrics)
        on_batch(batch)
    return metrics.means()
