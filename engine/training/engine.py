"""DeepSpeed's engine around a model: both optimisers and schedules under ZeRO-1 or ZeRO-2."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import DeepSpeedConfigError, DeepSpeedEngine
from deepspeed.utils import safe_set_full_fp32_param
from torch import Tensor, nn

from engine.configuration.flags import OptimizationConfig
from engine.errors import UserError
from engine.optim.hybrid import HybridOptimizer, parameter_groups
from engine.optim.schedules import hybrid_schedule, length_in_steps


def groups_of(model: nn.Module, config: OptimizationConfig) -> list[dict[str, Any]]:
    """The parameters of both optimisers, with the recipe's rates and decays."""
    return parameter_groups(
        model,
        lr=config.lr,
        weight_decay=config.weight_decay,
        adam_epsilon=config.adam_epsilon,
        sgd_lr=config.sgd_lr,
        sgd_momentum=config.sgd_momentum,
        sgd_weight_decay=config.sgd_weight_decay,
        use_adam_for_visual=config.use_adam_for_visual,
    )


def build_engine(
    model: nn.Module, config: OptimizationConfig, settings: dict[str, Any], batches_per_epoch: int
) -> DeepSpeedEngine:
    """Both optimisers and schedules under ZeRO. The model holds its starting weights already.

    The schedules are laid out in optimiser steps: those of all epochs, and for the milestones those of one.

    Raises:
        UserError: if DeepSpeed refuses the settings of one's own file.
    """
    optimizer = HybridOptimizer(groups_of(model, config))
    total_steps = length_in_steps(batches_per_epoch, config.epochs, config.gradient_accumulation_steps)
    schedule = hybrid_schedule(
        optimizer,
        warmup_steps=total_steps * config.warmup_ratio,
        total_steps=total_steps,
        steps_per_epoch=batches_per_epoch // config.gradient_accumulation_steps,
        milestones=config.milestones,
    )
    # DeepSpeed casts the model before it makes its fp32 weights.
    copies = {
        name: parameter.detach().clone()
        for name, parameter in model.named_parameters()
        if config.precision != "fp32" or not parameter.requires_grad
    }
    frozen = {name: copies.pop(name) for name, p in model.named_parameters() if not p.requires_grad}
    # To look at our optimiser, DeepSpeed imports one of its own that torch.compile decorates, and so torch's whole
    # compiler: two seconds and 100 MB of each rank, for nothing.
    with patch.dict(os.environ, TORCHDYNAMO_DISABLE="1"), refusals_told(config.deepspeed_config):
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=schedule, config=settings)
    engine.frozen_weights = frozen  # in fp32: ZeRO keeps no such digits of what isn't trained
    if config.precision == "fp32" and not engine.optimizer.cpu_offload:
        share_masters(engine)
    restore_masters(engine, copies)
    measure_gradients_once(engine.optimizer)
    return engine


@contextmanager
def refusals_told(path: str | None) -> Iterator[None]:
    """What DeepSpeed refuses of one's own file at `path`, in one line. Most is found before any data are read."""
    try:
        yield
    except (AssertionError, ValueError, TypeError, DeepSpeedConfigError) as error:
        if path is None:
            raise
        raise UserError(
            f"DeepSpeed doesn't take {path}: {(str(error) or repr(error)).splitlines()[0]}; change that key"
        ) from error


def share_masters(engine: DeepSpeedEngine) -> None:
    """Put ZeRO's fp32 weights, which it copies from the model's even if these are fp32, in the memory of the latter.

    Each rank updates its share of the model in place, and the other ranks get it from there as before.
    """
    zero = engine.optimizer
    partitions = zip(zero.single_partition_of_fp32_groups, zero.parallel_partitioned_bit16_groups, strict=True)
    for masters, shares in partitions:
        masters.data = shares[dist.get_rank()]
    zero._link_all_hp_params()  # what the parameters know of their fp32 weights


def restore_masters(engine: DeepSpeedEngine, weights: dict[str, Tensor]) -> None:
    """Give ZeRO's fp32 weights the digits that a cast to fp16 or bf16 took from them.

    DeepSpeed makes them from the model after it has cast that.

    Raises:
        AssertionError: if one of them isn't what it should be, in the model's dtype.
    """
    for name, parameter in engine.module.named_parameters():
        if name in weights:
            value = weights[name].to(parameter.device)
            assert torch.equal(parameter.detach(), value.to(parameter.dtype)), name
            safe_set_full_fp32_param(parameter, value.float())


def measure_gradients_once(zero: Any) -> None:
    """Have ZeRO's norm of all gradients also tell whether they are finite, in a few kernels and one wait for them.

    DeepSpeed looks for infinities in each gradient, with twelve kernels for each, and then has the host read its norm
    several times. But a gradient that isn't finite makes the norm so, on every rank. The norm comes as a tensor on the
    CPU, where reading it again, and computing with it, waits for nothing.

    Raises:
        AttributeError: if this version of DeepSpeed has no such methods.
    """
    if not zero.compute_grad_norm or zero.cpu_offload:
        return  # as a user's own configuration may say: without a norm nothing else would find an infinity

    def scaled_global_norm(norm_type: int = 2) -> Tensor:
        gradients = [gradient for group in zero.averaged_gradients.values() for gradient in group]
        norms = torch._foreach_norm(gradients, norm_type, torch.float64)  # a CPU's sum in fp32 is off by a thousandth
        square = torch.stack(norms).square().sum()
        if dist.get_world_size(zero.dp_process_group) > 1:
            dist.all_reduce(square, group=zero.dp_process_group)
        return square.sqrt().cpu()

    for name, method in {"check_overflow": lambda **_: None, "scaled_global_norm": scaled_global_norm}.items():
        getattr(zero, name)
        setattr(zero, name, method)
