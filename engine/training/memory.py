"""How much of a device's memory a training takes, and how many samples fit."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from engine.model.memory import pass_bytes
from engine.optim.hybrid import BACKBONE

DEFAULT_BUCKET_SIZE = 500_000_000  # elements; DeepSpeed's default of reduce_bucket_size
RESERVE = 0.1  # of a device: for its context, cuDNN's work space, and fragments between allocations


def training_bytes(
    model: nn.Module, inputs: Mapping[str, Any], settings: Mapping[str, Any], *, on_gpu: bool = True
) -> dict[str, int]:
    """What a training on one device takes at its peak, and the parts of it, in bytes.

    Args:
        model: a model for pre-training or fine-tuning on the meta device, its parameters in the training's dtype.
        settings: DeepSpeed's, ZeRO-2, with fused optimisers.

    Returns:
        state: weights, fp32 weights, AdamW's moments, buffers. buckets: ZeRO's, for gradients. passes: pass_bytes.
        peak: the state, the buckets, and the passes or, where these are small, two copies of all gradients behind them.

    Not counted: cuDNN's work space, fragments, and the device's own context.
    """
    parameters = dict(model.named_parameters())
    weights = sum(p.nbytes for p in parameters.values())
    fp32 = sum(p.numel() * (4 if BACKBONE in name else 12) for name, p in parameters.items())
    state = weights + fp32 + sum(buffer.nbytes for buffer in model.buffers())
    zero = settings["zero_optimization"]
    itemsize = next(iter(parameters.values())).itemsize
    number = 2 if zero.get("overlap_comm") else 1
    buckets = number * itemsize * int(zero.get("reduce_bucket_size", DEFAULT_BUCKET_SIZE))
    passes = pass_bytes(model, inputs, on_gpu=on_gpu)
    return {
        "state": state,
        "buckets": buckets,
        "passes": passes,
        "peak": state + buckets + max(passes, 2 * weights),
    }


def straight_line(count: Callable[[int], int], few: int, many: int) -> tuple[float, float]:
    """What a count grows by with each sample, and what it begins with, through two numbers of samples."""
    less, more = count(few), count(many)
    slope = (more - less) / (many - few)
    return slope, less - slope * few
