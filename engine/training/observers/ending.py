"""Which of its limits ends a training."""

from typing import NamedTuple

from engine.configuration.flags import OptimizationConfig


class Ending(NamedTuple):
    """Where a training ends by itself."""

    step: int
    reason: str  # the flag that says so, and what others would


def ending(config: OptimizationConfig, steps_per_epoch: int) -> Ending:
    """By --epochs, --stop_after_epoch or --max_steps, whichever comes first.

    Args:
        steps_per_epoch: optimiser steps that an epoch comes to.
    """
    is_early = config.last_epoch < config.epochs
    flag = f"--stop_after_epoch {config.last_epoch}" if is_early else f"--epochs {config.epochs}"
    steps, most = steps_per_epoch * config.last_epoch, config.max_steps
    if most is not None and most < steps:
        return Ending(most, f"--max_steps {most} ends it, within the {steps:,} steps of {flag}")
    reason = f"{flag} ends it"
    if most is not None and most > steps:
        reason += f", before --max_steps {most}, which takes {-(-most // steps_per_epoch):,} epochs"
    if is_early:
        reason += f"; the learning rates are laid out for --epochs {config.epochs}"
    return Ending(steps, reason)
