"""The two learning-rate schedules, as factors of the base rate by optimiser step."""

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


def hybrid_schedule(
    optimizer: Optimizer, *, warmup_steps: float, total_steps: int, steps_per_epoch: int, milestones: Sequence[int]
) -> LambdaLR:
    """One scheduler over a HybridOptimizer's groups: warm-up and decay, or milestones for the backbone's."""
    schedules = {
        "warmup": lambda step: linear_warmup_decay(step, warmup_steps, total_steps),
        "milestones": lambda step: epoch_decay(step, steps_per_epoch, milestones),
    }
    return LambdaLR(optimizer, [schedules[group["schedule"]] for group in optimizer.param_groups])
