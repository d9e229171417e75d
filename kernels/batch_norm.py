"""Batch norm, shortcut, ReLU, 2x2 average pooling and a convolution, as one step that keeps little.

Between two convolutions of a ResNet, PyTorch keeps the result of the first for the batch norm's gradient, and the
batch norm's, after its ReLU, for that of the second. Here only the former is kept, and the backward pass computes the
other again: to read it back from memory would take as long.

kernels/normalise.py has the arithmetic: kernels in Triton and a twin in PyTorch. Here it becomes operators of torch and
three functions.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from kernels.backend import use_triton
from kernels.normalise import (
    PerChannel,
    apply_torch,
    apply_triton,
    backward_torch,
    backward_triton,
    statistics_torch,
    statistics_triton,
)


@torch.library.custom_op("clipvil::batch_statistics", mutates_args=("running_mean", "running_var"))
def batch_statistics(
    features: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance (C,) of channels_last features (B, C, H, W); running ones, fp32, move towards them."""
    if not use_triton(features.device.type, features.dtype):
        return statistics_torch(features, running_mean, running_var, momentum)
    with torch.cuda.device_of(features):
        return statistics_triton(features, running_mean, running_var, momentum)


@batch_statistics.register_fake
def _(features: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(features.dtype, torch.float32)
    return features.new_empty(features.shape[1], dtype=wide), features.new_empty(features.shape[1], dtype=wide)


@torch.library.custom_op("clipvil::normalise", mutates_args=())
def normalise(
    features: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    shift: Tensor,
    shortcut: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    """Normalised, scaled and shifted features, plus a shortcut, through a ReLU: all channels_last (B, C, H, W)."""
    if not use_triton(features.device.type, features.dtype):
        return apply_torch(features, (mean, var, scale, shift), shortcut, eps, relu)
    with torch.cuda.device_of(features):
        return apply_triton(features, (mean, var, scale, shift), shortcut, eps, relu)


@normalise.register_fake
def _(features: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(features)


@torch.library.custom_op("clipvil::normalise_backward", mutates_args=())
def normalise_backward(
    d_out: Tensor,
    d_again: Tensor | None,
    features: Tensor,
    mean: Tensor,
    var: Tensor,
    scale: Tensor,
    shift: Tensor,
    out: Tensor | None,
    eps: float,
    relu: bool,
    by_batch: bool,
    has_shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of features, shortcut, scale and shift; that of no shortcut is an empty tensor.

    Args:
        d_again: another term of the gradient of `out`, where there is a shortcut.
        out: what `normalise` gave; needed with a shortcut, else computed again where it isn't at hand.
        by_batch: whether mean and variance are those of these features.
    """
    d_out = d_out.contiguous(memory_format=torch.channels_last)
    if d_again is not None:
        d_again = d_again.contiguous(memory_format=torch.channels_last)
    per_channel = (mean, var, scale, shift)
    backward = backward_triton if use_triton(features.device.type, features.dtype) else backward_torch
    with torch.cuda.device_of(features):
        d_features, d_shortcut, d_scale, d_shift = backward(
            d_out, d_again, features, per_channel, out, eps, relu, by_batch, has_shortcut
        )
    return d_features, d_shortcut, d_scale.to(scale.dtype), d_shift.to(shift.dtype)


@normalise_backward.register_fake
def _(
    d_out: Tensor, d_again: Tensor | None, features: Tensor, mean: Tensor, var: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale, shift, *_, has_shortcut = rest
    d_shortcut = torch.empty_like(features) if has_shortcut else d_out.new_empty(0)
    return torch.empty_like(features), d_shortcut, torch.empty_like(scale), torch.empty_like(shift)


class Norm(NamedTuple):
    """How features are normalised: by running statistics, or by their own, towards which running ones move."""

    scale: Tensor  # (C,), fp16, bf16 or fp32
    shift: Tensor  # (C,)
    running_mean: Tensor | None  # (C,), fp32; None leaves no trace of a batch
    running_var: Tensor | None
    by_batch: bool
    momentum: float = 0.1
    eps: float = 1e-5

    def per_channel(self, features: Tensor) -> PerChannel:
        """Mean, variance, scale and shift; running statistics move."""
        if self.by_batch:
            statistics = batch_statistics(features, self.running_mean, self.running_var, self.momentum)
            return *statistics, self.scale, self.shift
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean, self.running_var, self.scale, self.shift


class _Normalised(torch.autograd.Function):
    """Batch norm, ReLU and pooling where asked; keeps the features. `norm` has `scale` and `shift`, too."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, scale: Tensor, shift: Tensor, norm: Norm, relu: bool, pool: int) -> Tensor:
        per_channel = norm.per_channel(features)
        ctx.save_for_backward(features, *per_channel)
        ctx.norm, ctx.relu, ctx.pool = norm, relu, pool
        return _pooled(normalise(features, *per_channel, None, norm.eps, relu), pool)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        features, *per_channel = ctx.saved_tensors
        d_out = _unpooled(d_out, features, ctx.pool)
        d_features, _, d_scale, d_shift = normalise_backward(
            d_out, None, features, *per_channel, None, ctx.norm.eps, ctx.relu, ctx.norm.by_batch, False
        )
        return d_features, d_scale, d_shift, None, None, None


class _Added(torch.autograd.Function):
    """Batch norm, shortcut, ReLU; keeps the features and the result, which comes twice, each with its gradient."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, scale: Tensor, shift: Tensor, shortcut: Tensor, norm: Norm
    ) -> tuple[Tensor, Tensor]:
        per_channel = norm.per_channel(features)
        out = normalise(features, *per_channel, shortcut, norm.eps, True)
        ctx.save_for_backward(features, out, *per_channel)
        ctx.norm = norm
        ctx.set_materialize_grads(False)
        return out, out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor | None, d_again: Tensor | None) -> tuple[Tensor | None, ...]:
        features, out, *per_channel = ctx.saved_tensors
        if d_out is None:
            d_out, d_again = d_again, None
        if d_out is None:
            return (None,) * 5
        d_features, d_shortcut, d_scale, d_shift = normalise_backward(
            d_out, d_again, features, *per_channel, out, ctx.norm.eps, True, ctx.norm.by_batch, True
        )
        return d_features, d_scale, d_shift, d_shortcut, None


class _NormalisedThenConvolved(torch.autograd.Function):
    """Batch norm, ReLU, pooling where asked, convolution; keeps the features and nothing in between."""

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, scale: Tensor, shift: Tensor, weight: Tensor, norm: Norm, pool: int, padding: int
    ) -> Tensor:
        per_channel = norm.per_channel(features)
        ctx.save_for_backward(features, weight, *per_channel)
        ctx.norm, ctx.pool, ctx.padding = norm, pool, padding
        out = _pooled(normalise(features, *per_channel, None, norm.eps, True), pool)
        return F.conv2d(out, weight, padding=padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        features, weight, *per_channel = ctx.saved_tensors
        out = normalise(features, *per_channel, None, ctx.norm.eps, True)
        convolved = _pooled(out, ctx.pool)
        d_out, d_weight = _convolution_backward(d_out, convolved, weight, ctx.padding, ctx.needs_input_grad[3])
        del convolved
        d_out = _unpooled(d_out, features, ctx.pool)
        # The kernel takes the sign from the features, which it reads anyway; the twin would need another pass for it.
        signs = out if features.is_cpu and not use_triton("cpu", features.dtype) else None
        d_features, _, d_scale, d_shift = normalise_backward(
            d_out, None, features, *per_channel, signs, ctx.norm.eps, True, ctx.norm.by_batch, False
        )
        return d_features, d_scale, d_shift, d_weight, None, None, None


def _convolution_backward(
    d_out: Tensor, features: Tensor, weight: Tensor, padding: int, needs_weight: bool
) -> tuple[Tensor, Tensor | None]:
    """Gradients of features and weight."""
    options = (None, [1, 1], [padding] * 2, [1, 1], False, [0, 0], 1)
    backward = torch.ops.aten.convolution_backward
    if padding and features.device.type == "cpu" and needs_weight:
        # oneDNN takes up to four times as long for the weights' gradient of a 3x3 convolution in channels_last as for
        # that in NCHW with both copies; for all else channels_last is no slower.
        d_weight = backward(d_out.contiguous(), features.contiguous(), weight, *options, [False, True, False])[1]
        return backward(d_out, features, weight, *options, [True, False, False])[0], d_weight
    return backward(d_out, features, weight, *options, [True, needs_weight, False])[:2]


def _pooled(features: Tensor, pool: int) -> Tensor:
    return F.avg_pool2d(features, pool) if pool > 1 else features


def _unpooled(d_pooled: Tensor, features: Tensor, pool: int) -> Tensor:
    if pool == 1:
        return d_pooled
    return torch.ops.aten.avg_pool2d_backward(d_pooled, features, [pool] * 2, [pool] * 2, [0, 0], False, True, None)


def batch_norm(features: Tensor, norm: Norm, *, relu: bool = False, pool: int = 1) -> Tensor:
    """Normalise, apply ReLU, and average `pool` x `pool` pixels.

    Args:
        features: (B, C, H, W), fp16, bf16 or fp32; laid out as channels_last if they aren't.

    Returns:
        (B, C, H / pool, W / pool), channels_last, the features' dtype.

    Raises:
        ValueError: for features of one pixel, which have no variance.
    """
    return _Normalised.apply(_checked(features, norm), norm.scale, norm.shift, norm, relu, pool)


def batch_norm_add(features: Tensor, shortcut: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """Normalise, add a shortcut, and apply ReLU.

    Args:
        features, shortcut: (B, C, H, W), fp16, bf16 or fp32, of one dtype; laid out as channels_last if they aren't.

    Returns:
        The result twice, in the same memory: for the next convolution, and for the next shortcut. So the kernel of the
        backward pass adds up their gradients, and autograd needs no pass of its own for that.

    Raises:
        ValueError: for features of one pixel, which have no variance.
    """
    shortcut = shortcut.contiguous(memory_format=torch.channels_last)
    return _Added.apply(_checked(features, norm), norm.scale, norm.shift, shortcut, norm)


def batch_norm_conv2d(features: Tensor, norm: Norm, weight: Tensor, *, padding: int = 0, pool: int = 1) -> Tensor:
    """Normalise, apply ReLU, average `pool` x `pool` pixels, and convolve with stride 1.

    Args:
        features: (B, C, H, W), fp16, bf16 or fp32; laid out as channels_last if they aren't.
        weight: (K, C, h, w), the features' dtype.

    Raises:
        ValueError: for features of one pixel, which have no variance.
    """
    features = _checked(features, norm)
    return _NormalisedThenConvolved.apply(features, norm.scale, norm.shift, weight, norm, pool, padding)


def _checked(features: Tensor, norm: Norm) -> Tensor:
    if norm.by_batch and features.numel() == features.shape[1]:
        raise ValueError(f"one value per channel has no variance: features of the shape {tuple(features.shape)}")
    return features.contiguous(memory_format=torch.channels_last)
