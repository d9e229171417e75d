"""Batch norm with what follows it in a ResNet, in one pass: scale and shift, shortcut, ReLU.

    n[r, c]   = (features[r, c] - mean[c]) / sqrt(var[c] + eps)          over R = B * H * W pixels
    out[r, c] = relu(n * scale[c] + shift[c] + shortcut[r, c])           without the shortcut, or without both, too

With g = d_out where out > 0, and 0 elsewhere (without ReLU, d_out):

    d_shortcut = g        d_shift[c] = sum of g over r        d_scale[c] = sum of g * n over r
    d_features = scale / sqrt(var + eps) * (g - d_shift / R - n * d_scale / R)       by the batch's own statistics
    d_features = scale / sqrt(var + eps) * g                                         by running ones

Features are fp16, bf16 or fp32, channels_last: a pixel's C channels lie together. Arithmetic and statistics are fp32,
and a result is rounded once. Means and squared deviations are updated pixel by pixel (Welford, "Note on a Method for
Calculating Corrected Sums of Squares and Products", 1962) and then put together (Chan, Golub and LeVeque, "Updating
Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979), so that a mean far from zero costs no digits.
No atomics, and as many programs share a channel on every GPU: same inputs, same bits.

    statistics        each program reduces a stretch of pixels for a tile of channels
    finish_statistics adds the stretches up; updates the running statistics, too
    apply             out, tile by tile. The backward pass runs it again, instead of keeping what it gives
    gradient_sums     d_shift and d_scale of each stretch. With a shortcut, `out` goes two ways, to a convolution and to
                      the next shortcut, so d_out comes as two terms; and g is written, which is d_shortcut
    finish_sums       adds them up
    backward          d_features
"""

import torch
from torch import Tensor

from kernels.backend import LAUNCH, tl, triton

STRETCH, MOST_STRETCHES = 512, 512  # pixels of a program at least; programs that share a channel at most
TILE = (32, 64)  # pixels x channels that a program has in registers
STRETCH_TILE, STRETCH_WARPS = (64, 64), 8  # and of one that goes along a stretch: more has to be on its way at a time
SUMS_TILE = (64, 32)  # stretches x channels
STRETCH_ON_CPU = 2048  # pixels


# ---------------------------------------------------------------------------------------------- kernels


@triton.jit
def _of_channels(values, channel, channels):
    """fp32 values of a tile's channels, as a row."""
    return tl.load(values + channel, mask=channel < channels, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _place(row, channel, rows, channels):
    """Offsets (pixels, channels) of a tile, and which of them exist."""
    inside = (row < rows)[:, None] & (channel < channels)[None, :]
    return row.to(tl.int64)[:, None] * channels + channel[None, :], inside


@triton.jit
def _normalised(features, mean, var, eps, place, mask, channel, channels):
    """n of a tile, and 1 / sqrt(var + eps) of its channels."""
    value = tl.load(features + place, mask=mask, other=0.0).to(tl.float32)
    rstd = 1 / tl.sqrt(_of_channels(var, channel, channels) + eps)
    return tl.where(mask, (value - _of_channels(mean, channel, channels)) * rstd, 0.0), rstd


@triton.jit
def _gradient(d_out, normalised, scale, shift, place, mask, channel, channels, RELU: tl.constexpr):
    """g of a tile where there is no shortcut: the sign of `out` follows from the features."""
    gradient = tl.load(d_out + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        out = normalised * _of_channels(scale, channel, channels) + _of_channels(shift, channel, channels)
        gradient = tl.where(out <= 0, 0.0, gradient)
    return gradient


@triton.jit
def statistics_kernel(
    features,  # (R, C)
    sums,  # (stretches, 2, C) fp32: mean, sum of squared deviations from it
    rows,
    channels,
    stretch,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    number = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    first, end = number * stretch, tl.minimum((number + 1) * stretch, rows)
    # Every element of the tile has statistics of its own, so that only the last step has to wait for other threads.
    mean = tl.zeros((ROWS, CHANNELS), tl.float32)
    squares = tl.zeros((ROWS, CHANNELS), tl.float32)
    count = 0.0
    for start in range(first, end, ROWS):
        place, mask = _place(start + tl.arange(0, ROWS), channel, end, channels)
        value = tl.load(features + place, mask=mask, other=0.0).to(tl.float32)
        count += 1
        delta = tl.where(mask, value - mean, 0.0)
        mean += delta * (1 / count)
        squares += delta * (value - mean)
    seen = tl.maximum(tl.cdiv(end - first - tl.arange(0, ROWS), ROWS), 0).to(tl.float32)[:, None]
    average = tl.sum(mean * seen, axis=0) / (end - first)
    delta = mean - average[None, :]
    target = sums + number * 2 * channels + channel
    tl.store(target, average, mask=channel < channels)
    tl.store(target + channels, tl.sum(squares + delta * delta * seen, axis=0), mask=channel < channels)


@triton.jit
def finish_statistics_kernel(
    sums,  # (stretches, 2, C) fp32
    mean,  # (C,) fp32
    var,  # (C,) fp32
    running_mean,  # (C,) fp32 or None
    running_var,  # (C,) fp32 or None
    rows,
    channels,
    stretch,
    stretches,
    momentum,
    STRETCHES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < channels
    total = tl.zeros((STRETCHES, CHANNELS), tl.float32)
    for start in range(0, stretches, STRETCHES):
        number = start + tl.arange(0, STRETCHES)
        count = tl.minimum(stretch, rows - number * stretch).to(tl.float32)[:, None]
        mask = (number < stretches)[:, None] & inside[None, :]
        total += tl.load(sums + number[:, None] * 2 * channels + channel[None, :], mask=mask, other=0.0) * count
    average = tl.sum(total, axis=0) / rows
    total = tl.zeros((STRETCHES, CHANNELS), tl.float32)
    for start in range(0, stretches, STRETCHES):
        number = start + tl.arange(0, STRETCHES)
        count = tl.minimum(stretch, rows - number * stretch).to(tl.float32)[:, None]
        mask = (number < stretches)[:, None] & inside[None, :]
        source = sums + number[:, None] * 2 * channels + channel[None, :]
        delta = tl.where(mask, tl.load(source, mask=mask, other=0.0) - average[None, :], 0.0)
        total += tl.load(source + channels, mask=mask, other=0.0) + delta * delta * count
    squares = tl.sum(total, axis=0)
    tl.store(mean + channel, average, mask=inside)
    tl.store(var + channel, squares / rows, mask=inside)
    if running_mean is not None:
        before = tl.load(running_mean + channel, mask=inside, other=0.0)
        tl.store(running_mean + channel, before + momentum * (average - before), mask=inside)
        before = tl.load(running_var + channel, mask=inside, other=0.0)
        tl.store(running_var + channel, before + momentum * (squares / (rows - 1) - before), mask=inside)


@triton.jit
def apply_kernel(
    features,  # (R, C)
    mean,  # (C,) fp32
    var,  # (C,) fp32
    scale,  # (C,)
    shift,  # (C,)
    shortcut,  # (R, C) or None
    out,  # (R, C)
    rows,
    channels,
    eps,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    place, mask = _place(row, channel, rows, channels)
    normalised, _ = _normalised(features, mean, var, eps, place, mask, channel, channels)
    value = normalised * _of_channels(scale, channel, channels) + _of_channels(shift, channel, channels)
    if shortcut is not None:
        value += tl.load(shortcut + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + place, value.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gradient_sums_kernel(
    d_out,  # (R, C)
    d_again,  # (R, C): the other term of the gradient, or None
    features,  # (R, C)
    out,  # (R, C) with a shortcut, else None
    mean,  # (C,) fp32
    var,  # (C,) fp32
    scale,  # (C,)
    shift,  # (C,)
    d_shortcut,  # (R, C) with a shortcut, else None
    sums,  # (stretches, 2, C) fp32: of g, of g * n
    rows,
    channels,
    eps,
    stretch,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    number = tl.program_id(0)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    end = tl.minimum((number + 1) * stretch, rows)
    of_shift = tl.zeros((ROWS, CHANNELS), tl.float32)
    of_scale = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(number * stretch, end, ROWS):
        place, mask = _place(start + tl.arange(0, ROWS), channel, end, channels)
        normalised, _ = _normalised(features, mean, var, eps, place, mask, channel, channels)
        if out is None:
            gradient = _gradient(d_out, normalised, scale, shift, place, mask, channel, channels, RELU)
        else:
            gradient = tl.load(d_out + place, mask=mask, other=0.0).to(tl.float32)
            if d_again is not None:
                gradient += tl.load(d_again + place, mask=mask, other=0.0).to(tl.float32)
            sign = tl.load(out + place, mask=mask, other=0.0).to(tl.float32)
            gradient = tl.where(sign <= 0, 0.0, gradient).to(d_shortcut.dtype.element_ty)
            tl.store(d_shortcut + place, gradient, mask=mask)
            gradient = gradient.to(tl.float32)
        of_shift += gradient
        of_scale += gradient * normalised
    target = sums + number * 2 * channels + channel
    tl.store(target, tl.sum(of_shift, axis=0), mask=channel < channels)
    tl.store(target + channels, tl.sum(of_scale, axis=0), mask=channel < channels)


@triton.jit
def finish_sums_kernel(
    sums,  # (stretches, 2, C) fp32
    d_shift,  # (C,) fp32
    d_scale,  # (C,) fp32
    channels,
    stretches,
    STRETCHES: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    of_shift = tl.zeros((STRETCHES, CHANNELS), tl.float32)
    of_scale = tl.zeros((STRETCHES, CHANNELS), tl.float32)
    for start in range(0, stretches, STRETCHES):
        number = start + tl.arange(0, STRETCHES)
        mask = (number < stretches)[:, None] & (channel < channels)[None, :]
        source = sums + number[:, None] * 2 * channels + channel[None, :]
        of_shift += tl.load(source, mask=mask, other=0.0)
        of_scale += tl.load(source + channels, mask=mask, other=0.0)
    tl.store(d_shift + channel, tl.sum(of_shift, axis=0), mask=channel < channels)
    tl.store(d_scale + channel, tl.sum(of_scale, axis=0), mask=channel < channels)


@triton.jit
def backward_kernel(
    d_out,  # (R, C): g, or with RELU what it is made of
    features,  # (R, C)
    mean,  # (C,) fp32
    var,  # (C,) fp32
    scale,  # (C,)
    shift,  # (C,)
    d_shift,  # (C,) fp32
    d_scale,  # (C,) fp32
    d_features,  # (R, C)
    rows,
    channels,
    eps,
    RELU: tl.constexpr,
    BY_BATCH: tl.constexpr,  # whose statistics these are
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    place, mask = _place(row, channel, rows, channels)
    normalised, rstd = _normalised(features, mean, var, eps, place, mask, channel, channels)
    gradient = _gradient(d_out, normalised, scale, shift, place, mask, channel, channels, RELU)
    if BY_BATCH:
        of_shift, of_scale = _of_channels(d_shift, channel, channels), _of_channels(d_scale, channel, channels)
        gradient -= (of_shift + normalised * of_scale) / rows
    gradient *= _of_channels(scale, channel, channels) * rstd
    tl.store(d_features + place, gradient.to(d_features.dtype.element_ty), mask=mask)


# ------------------------------------------------------------------- host functions: Triton's, then PyTorch's


PerChannel = tuple[Tensor, Tensor, Tensor, Tensor]  # mean, variance, scale, shift: (C,) each


def _sizes(features: Tensor) -> tuple[int, int, int, int]:
    """Pixels, channels, pixels of a stretch, stretches."""
    channels = features.shape[1]
    rows = features.numel() // channels
    stretch = max(STRETCH, triton.cdiv(rows, MOST_STRETCHES))
    return rows, channels, stretch, triton.cdiv(rows, stretch)


def _tile(channels: int, tile: tuple[int, int] = TILE) -> dict[str, int]:
    """A tile of as many elements whatever the channels: few of them, more pixels."""
    rows, most = tile
    columns = min(most, max(triton.next_power_of_2(channels), 8))
    return {"ROWS": rows * most // columns, "CHANNELS": columns}


def statistics_triton(
    features: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    rows, channels, stretch, stretches = _sizes(features)
    sums = features.new_empty((stretches, 2, channels), dtype=torch.float32)
    mean, var = (features.new_empty(channels, dtype=torch.float32) for _ in range(2))
    tile = _tile(channels, STRETCH_TILE)
    statistics_kernel[(stretches, triton.cdiv(channels, tile["CHANNELS"]))](
        features, sums, rows, channels, stretch, **tile, num_warps=STRETCH_WARPS, **LAUNCH
    )
    block, channel_block = SUMS_TILE
    finish_statistics_kernel[(triton.cdiv(channels, channel_block),)](
        *(sums, mean, var, running_mean, running_var),
        *(rows, channels, stretch, stretches, momentum),
        STRETCHES=block,
        CHANNELS=channel_block,
        **LAUNCH,
    )
    return mean, var


def apply_triton(
    features: Tensor,
    per_channel: PerChannel,
    shortcut: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    rows, channels, *_ = _sizes(features)
    out, tile = torch.empty_like(features), _tile(channels)
    apply_kernel[(triton.cdiv(rows, tile["ROWS"]), triton.cdiv(channels, tile["CHANNELS"]))](
        features, *per_channel, shortcut, out, rows, channels, eps, RELU=relu, **tile, **LAUNCH
    )
    return out


def backward_triton(
    d_out: Tensor,
    d_again: Tensor | None,
    features: Tensor,
    per_channel: PerChannel,
    out: Tensor | None,
    eps: float,
    relu: bool,
    by_batch: bool,
    has_shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, channels, stretch, stretches = _sizes(features)
    sums = features.new_empty((stretches, 2, channels), dtype=torch.float32)
    d_shift, d_scale = (features.new_empty(channels, dtype=torch.float32) for _ in range(2))
    d_shortcut = torch.empty_like(features) if has_shortcut else None
    tile = _tile(channels, STRETCH_TILE)
    channel_tiles = triton.cdiv(channels, tile["CHANNELS"])
    gradient_sums_kernel[(stretches, channel_tiles)](
        *(d_out, d_again, features, out if has_shortcut else None, *per_channel, d_shortcut, sums),
        *(rows, channels, eps, stretch),
        RELU=relu,
        **tile,
        num_warps=STRETCH_WARPS,
        **LAUNCH,
    )
    block, channel_block = SUMS_TILE
    finish_sums_kernel[(triton.cdiv(channels, channel_block),)](
        sums, d_shift, d_scale, channels, stretches, STRETCHES=block, CHANNELS=channel_block, **LAUNCH
    )
    d_features = torch.empty_like(features)
    tile = _tile(channels)
    backward_kernel[(triton.cdiv(rows, tile["ROWS"]), channel_tiles)](
        *(d_out if d_shortcut is None else d_shortcut, features, *per_channel, d_shift, d_scale, d_features),
        *(rows, channels, eps),
        RELU=relu and not has_shortcut,
        BY_BATCH=by_batch,
        **tile,
        **LAUNCH,
    )
    return d_features, d_out.new_empty(0) if d_shortcut is None else d_shortcut, d_scale, d_shift


def statistics_torch(
    features: Tensor, running_mean: Tensor | None, running_var: Tensor | None, momentum: float
) -> tuple[Tensor, Tensor]:
    """In stretches, as the kernels. A CPU adds channels_last features up one by one: a million of them lose 1e-4."""
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2)
    wide = torch.promote_types(features.dtype, torch.float32)
    none = features.new_zeros(2, features.shape[1], dtype=wide)  # without any, statistics have the features' dtype
    stretches = pixels.split(STRETCH_ON_CPU if features.device.type == "cpu" else len(pixels))
    parts = [torch.ops.aten.batch_norm_update_stats(each.t()[None, :, None], *none, 0.0) for each in stretches]
    means, variances = (torch.stack(part).double() for part in zip(*parts, strict=True))
    counts = means.new_full((len(stretches), 1), len(stretches[0]))
    counts[-1] = len(stretches[-1])
    average = (means * counts).sum(0) / len(pixels)
    squares = ((variances + (means - average) ** 2) * counts).sum(0)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(average.to(wide), momentum)
        running_var.lerp_((squares / (len(pixels) - 1)).to(wide), momentum)
    return average.to(wide), (squares / len(pixels)).to(wide)


def apply_torch(
    features: Tensor,
    per_channel: PerChannel,
    shortcut: Tensor | None,
    eps: float,
    relu: bool,
) -> Tensor:
    """As the kernel does, but with a shortcut in half precision a sum of two rounded terms."""
    mean, var, *parameters = per_channel
    scale, shift = (parameter.to(mean.dtype) for parameter in parameters)
    out, *_ = torch.ops.aten.native_batch_norm(features, scale, shift, mean, var, False, 0.0, eps)
    if shortcut is not None:
        out += shortcut
    return out.relu_() if relu else out


def backward_torch(
    d_out: Tensor,
    d_again: Tensor | None,
    features: Tensor,
    per_channel: PerChannel,
    out: Tensor | None,
    eps: float,
    relu: bool,
    by_batch: bool,
    has_shortcut: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    mean, var, scale, _ = per_channel
    gradient = d_out if d_again is None else d_out + d_again
    if relu:
        if out is None:
            out = apply_torch(features, per_channel, None, eps, relu)
        gradient = torch.ops.aten.threshold_backward(gradient, out, 0)
    running, batch = ((None, None), (mean, (var + eps).rsqrt())) if by_batch else ((mean, var), (None, None))
    d_features, d_scale, d_shift = torch.ops.aten.native_batch_norm_backward(
        gradient, features, scale.to(mean.dtype), *running, *batch, by_batch, eps, [True, True, True]
    )
    return d_features, gradient if has_shortcut else d_out.new_empty(0), d_scale, d_shift
