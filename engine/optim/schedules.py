"""The two learning-rate schedules, as factors of the base rate by optimiser step."""

import math
from collections.abc import Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def linear_warmup_decay(step: int, warmup_steps: float, total_steps: int) -> float:
    """0 to 1 over the warm-up, whose length need not be whole, then 1 to 0 at `total_steps`; step 0 has factor 0."""
    if step < warmup_steps:
        return step / max(1.0, warmup_steps)
    return max(0.0, (total_steps - step) / max(1.0, total_steps - warmup_steps))


def epoch_decay(step: int, steps_per_epoch: int, milestones: Sequence[int]) -> float:
    """x 0.1 at the start of each epoch in `milestones`."""
    epoch = step // max(1, steps_per_epoch)
    return 0.1 ** sum(epoch >= milestone for milestone in milestones)


def length_in_steps(batches_per_epoch: int, epochs: int, accumulation: int) -> int:
    """Optimiser steps that warm-up and decay take, as in the original: those of all epochs' micro-batches together."""
    return batches_per_epoch * epochs // accumulation


def course(rate: float, peak: float, step: int, warmup_steps: float, total_steps: int) -> str:
    """What becomes of a rate where a schedule of another length takes over at a step, in words."""
    told = f"goes from {rate:.4g} to {peak * linear_warmup_decay(step, warmup_steps, total_steps):.4g} at once"
    if step < warmup_steps:
        told += f", rises to {peak:.4g} until step {math.ceil(warmup_steps):,}"
    return f"{told}, and falls to 0 until step {total_steps:,}"


def hybrid_schedule(
    optimizer: Optimizer, *, warmup_steps: float, total_steps: int, steps_per_epoch: int, milestones: Sequence[int]
) -> LambdaLR:
    """One scheduler over a HybridOptimizer's groups: warm-up and decay, or milestones for the backbone's."""
    schedules = {
        "warmup": lambda step: linear_warmup_decay(step, warmup_steps, total_steps),
        "milestones": lambda step: epoch_decay(step, steps_per_epoch, milestones),
    }
    return LambdaLR(optimizer, [schedules[group["schedule"]] for group in optimizer.param_groups])
