"""The grid tokens behind their projection: bias, position tables, LayerNorm and dropout, in one pass.

    y[b, s]   = projected[b, s] + bias + row_table[h] + column_table[w]        (h, w) = divmod(positions[b, s], W)
    x[b, s]   = (y[b, s] - mean(y[b, s])) * rstd(y[b, s])                      over D; rstd = 1 / sqrt(variance + eps)
    out[b, s] = keep[b, s] / (1 - p) * (x[b, s] * weight + shift)              keep is 0 with probability p, else 1

    B images    S tokens of an image    D hidden size    H x W grid    p dropout

A projection W is linear: W(f + r + c) = Wf + Wr + Wc. So the position tables may come after it, when they have been
projected themselves: D columns in place of the backbone's C. `projected` is Wf, without a bias.

Inputs are fp16, bf16 or fp32; sums and statistics are fp32 and rounded once. Whether an element is kept is word 0 of
Philox at the counter (s * D + d, image, step, 1) under the run's seed (in kernels/sampling.py the last is 0): the twin
drops the same, a recomputed pass too, and N ranks drop what one would. Saved are the inputs, and the mean and rstd of
each token in fp32. The backward pass uses no atomics; the tables' part of it is that of kernels/gather.py.

Not supported: positions that repeat a cell, more than 4096 for D. The engine does not call this yet: docs/decisions.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.backend import LAUNCH, tl, triton, use_triton
from kernels.gather import backward_triton
from kernels.philox import WORD, philox

PROGRAMS = 512  # of the backward pass: each sums the vectors' gradients over its tokens
MAX_WIDTH = 4096


def keep_mask(state: Tensor, shape: Sequence[int], dropout: float, first_image: int) -> Tensor:
    """Which elements of (B, S, D) dropout keeps: a bool tensor on the state's device."""
    batch, tokens, width = shape
    element = torch.arange(tokens * width, device=state.device).view(tokens, width)
    image = torch.arange(first_image, first_image + batch, device=state.device)[:, None, None] & WORD
    words, *_ = philox(state[0], (element, image, state[1] & WORD, torch.ones_like(element)))
    return words >= _threshold(dropout)


def _threshold(dropout: float) -> int:
    return min(int(dropout * 2**32), WORD)


def embed_norm_twin(
    projected: Tensor,
    bias: Tensor,
    row_table: Tensor,
    column_table: Tensor,
    positions: Tensor,
    columns: int,
    weight: Tensor,
    shift: Tensor,
    eps: float,
    keep: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The specification, differentiable by torch. `keep` (B, S, D) says what dropout keeps; None keeps all."""
    wide = torch.promote_types(projected.dtype, torch.float32)
    index = positions.long()
    embedding = row_table.to(wide)[index // columns] + column_table.to(wide)[index % columns]
    y = projected.to(wide) + (bias.to(wide) + embedding)
    out = F.layer_norm(y, y.shape[-1:], weight.to(wide), shift.to(wide), eps)
    if keep is not None:
        out = out * keep / (1 - dropout)
    return out.to(projected.dtype)


# ---------------------------------------------------------------------------------------------- kernels


@triton.jit
def _embedded(projected, bias, row_table, column_table, positions, token, num_samples, width, channels, channel, mask):
    """y of one token, fp32, 0 beyond D."""
    cell = token % num_samples if positions is None else tl.load(positions + token)
    row = tl.load(row_table + cell // width * channels + channel, mask=mask, other=0.0).to(tl.float32)
    column = tl.load(column_table + cell % width * channels + channel, mask=mask, other=0.0).to(tl.float32)
    offset = token.to(tl.int64) * channels + channel
    value = tl.load(projected + offset, mask=mask, other=0.0).to(tl.float32)
    return value + (tl.load(bias + channel, mask=mask, other=0.0).to(tl.float32) + (row + column))


@triton.jit
def _kept(value, state, token, num_samples, channels, channel, first_image, threshold, scale):
    """`value` times keep / (1 - p)."""
    zero = tl.zeros_like(channel).to(tl.uint32)
    element = (token % num_samples * channels + channel).to(tl.uint32)
    image = zero + (first_image + token // num_samples).to(tl.uint32)
    step = zero + tl.load(state + 1).to(tl.uint32)
    word, _, _, _ = tl.philox(tl.load(state), element, image, step, zero + 1)
    return tl.where(word.to(tl.int64) >= threshold, value * scale, 0.0)


@triton.jit(do_not_specialize=["first_image", "threshold"])
def forward_kernel(
    projected,  # (B, S, D)
    bias,  # (D,)
    row_table,  # (>= H, D)
    column_table,  # (>= W, D)
    positions,  # (B, S) int32 or None
    weight,  # (D,)
    shift,  # (D,)
    state,  # (2,) int64: seed, step; None without dropout
    out,  # (B, S, D)
    means,  # (B, S) fp32
    rstds,  # (B, S) fp32
    first_image,
    threshold,
    scale,
    eps,
    num_samples,
    width,
    channels,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0)  # of all B * S
    channel = tl.arange(0, BLOCK)
    mask = channel < channels
    y = _embedded(
        projected, bias, row_table, column_table, positions, token, num_samples, width, channels, channel, mask
    )
    mean = tl.sum(y, axis=0) / channels
    centred = tl.where(mask, y - mean, 0.0)
    rstd = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / channels + eps)
    tl.store(means + token, mean)
    tl.store(rstds + token, rstd)
    scaled = centred * rstd * tl.load(weight + channel, mask=mask, other=0.0).to(tl.float32)
    value = scaled + tl.load(shift + channel, mask=mask, other=0.0).to(tl.float32)
    if state is not None:
        value = _kept(value, state, token, num_samples, channels, channel, first_image, threshold, scale)
    tl.store(out + token.to(tl.int64) * channels + channel, value.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["first_image", "threshold"])
def backward_kernel(
    d_out,  # (B, S, D)
    projected,  # (B, S, D)
    bias,  # (D,)
    row_table,  # (>= H, D)
    column_table,  # (>= W, D)
    positions,  # (B, S) int32 or None
    weight,  # (D,)
    state,  # (2,) int64 or None
    means,  # (B, S) fp32
    rstds,  # (B, S) fp32
    d_projected,  # (B, S, D)
    d_vectors,  # (programs, 2, D) fp32: of weight and shift, summed over a program's tokens
    first_image,
    threshold,
    scale,
    num_tokens,  # B * S
    num_samples,
    width,
    channels,
    BLOCK: tl.constexpr,
):
    channel = tl.arange(0, BLOCK)
    mask = channel < channels
    factor = tl.load(weight + channel, mask=mask, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK,), tl.float32)
    d_shift = tl.zeros((BLOCK,), tl.float32)
    for number in range(tl.program_id(0), num_tokens, tl.num_programs(0)):
        token = tl.full((), number, tl.int32)
        offset = token.to(tl.int64) * channels + channel
        gradient = tl.load(d_out + offset, mask=mask, other=0.0).to(tl.float32)
        if state is not None:
            gradient = _kept(gradient, state, token, num_samples, channels, channel, first_image, threshold, scale)
        y = _embedded(
            projected, bias, row_table, column_table, positions, token, num_samples, width, channels, channel, mask
        )
        rstd = tl.load(rstds + token)
        x = tl.where(mask, (y - tl.load(means + token)) * rstd, 0.0)
        d_x = gradient * factor
        along_x = tl.sum(d_x * x, axis=0) / channels
        d_y = tl.where(mask, (d_x - tl.sum(d_x, axis=0) / channels - x * along_x) * rstd, 0.0)
        tl.store(d_projected + offset, d_y.to(d_projected.dtype.element_ty), mask=mask)
        d_weight += gradient * x
        d_shift += gradient
    target = d_vectors + tl.program_id(0) * 2 * channels + channel
    tl.store(target, d_weight, mask=mask)
    tl.store(target + channels, d_shift, mask=mask)


# ------------------------------------------------------------------------------------------ operators


@torch.library.custom_op("clipvil::embed_norm", mutates_args=())
def _forward(
    projected: Tensor,
    bias: Tensor,
    row_table: Tensor,
    column_table: Tensor,
    weight: Tensor,
    shift: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
    state: Tensor | None,
    grid: list[int],
    eps: float,
    dropout: float,
    first_image: int,
) -> tuple[Tensor, Tensor, Tensor]:
    batch, num_samples, channels = projected.shape
    out = torch.empty_like(projected)
    means, rstds = (projected.new_empty((batch, num_samples), dtype=torch.float32) for _ in range(2))
    with torch.cuda.device_of(projected):
        forward_kernel[(batch * num_samples,)](
            *(projected, bias, row_table, column_table, positions, weight, shift, state, out, means, rstds),
            *(first_image, _threshold(dropout), 1 / (1 - dropout), eps, num_samples, grid[1], channels),
            BLOCK=triton.next_power_of_2(channels),
            **LAUNCH,
        )
    return out, means, rstds


@_forward.register_fake
def _(projected, *_):
    statistics = [projected.new_empty(projected.shape[:2], dtype=torch.float32) for _ in range(2)]
    return torch.empty_like(projected), *statistics


@torch.library.custom_op("clipvil::embed_norm_backward", mutates_args=())
def _backward(
    d_out: Tensor,
    projected: Tensor,
    bias: Tensor,
    row_table: Tensor,
    column_table: Tensor,
    weight: Tensor,
    positions: Tensor | None,
    slots: Tensor | None,
    state: Tensor | None,
    means: Tensor,
    rstds: Tensor,
    grid: list[int],
    dropout: float,
    first_image: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """d_projected (B, S, D), d_row_table, d_column_table, and d_vectors (3, D) fp32: of weight, shift and bias.

    Bias and tables sum up d_projected as it is, rounded. The kernel has no registers left for the bias.
    """
    batch, num_samples, channels = projected.shape
    programs = max(1, min(PROGRAMS, batch * num_samples))
    d_projected = torch.empty_like(projected)
    d_vectors = projected.new_empty((programs, 2, channels), dtype=torch.float32)
    d_tables = torch.empty_like(row_table), torch.empty_like(column_table)
    with torch.cuda.device_of(projected):
        backward_kernel[(programs,)](
            *(d_out.contiguous(), projected, bias, row_table, column_table, positions, weight, state, means, rstds),
            *(d_projected, d_vectors, first_image, _threshold(dropout), 1 / (1 - dropout)),
            *(batch * num_samples, num_samples, grid[1], channels),
            BLOCK=triton.next_power_of_2(channels),
            **LAUNCH,
        )
        backward_triton(d_projected, slots, None, None, *d_tables, [batch, channels, *grid], channels_last=True)
    d_bias = d_projected.sum((0, 1), dtype=torch.float32)
    return d_projected, *d_tables, torch.cat([d_vectors.sum(0), d_bias[None]])


@_backward.register_fake
def _(d_out, projected, bias, row_table, column_table, *_):
    d_vectors = projected.new_empty((3, projected.shape[2]), dtype=torch.float32)
    return *(torch.empty_like(each) for each in (projected, row_table, column_table)), d_vectors


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    projected, bias, row_table, column_table, weight, shift, positions, slots, state, *ctx.rest = inputs
    _, means, rstds = output
    ctx.save_for_backward(
        projected, bias, row_table, column_table, weight, positions, slots, state, means, rstds, shift
    )


def _differentiate(ctx: Any, d_out: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    *saved, shift = ctx.saved_tensors
    bias, weight = saved[1], saved[4]
    grid, _eps, dropout, first_image = ctx.rest
    d_projected, d_row_table, d_column_table, d_vectors = _backward(d_out, *saved, grid, dropout, first_image)
    d_weight, d_shift, d_bias = (
        gradient.to(of.dtype) for gradient, of in zip(d_vectors, (weight, shift, bias), strict=True)
    )
    return d_projected, d_bias, d_row_table, d_column_table, d_weight, d_shift, *[None] * 7


_forward.register_autograd(_differentiate, setup_context=_save)


# -------------------------------------------------------------------------------------------- in use


def embed_norm(
    projected: Tensor,
    bias: Tensor,
    row_table: Tensor,
    column_table: Tensor,
    weight: Tensor,
    shift: Tensor,
    draw: tuple[Tensor, Tensor] | None,
    grid: tuple[int, int],
    *,
    eps: float,
    dropout: float = 0.0,
    state: Tensor | None = None,
    first_image: int = 0,
) -> Tensor:
    """Add bias and position embedding to projected tokens, normalise, and drop out; differentiable in all six tensors.

    Args:
        projected: (B, S, D), fp16, bf16 or fp32.
        bias, weight, shift: (D,).
        row_table, column_table: (>= H, D) and (>= W, D), projected as the tokens are.
        draw: positions and slots of kernels.sampling.sample_cells, or None where all cells are kept, in order.
        grid: H and W.
        dropout: probability from 0 to less than 1; more than 0 needs `state`.
        state: int64 (2,), seed and step, on the tokens' device.
        first_image: global number of the first image of this batch.

    Returns:
        (B, S, D) in the dtype of `projected`.

    Raises:
        ValueError: for any argument that doesn't fit, before anything is computed.
        RuntimeError: KERNELS_BACKEND=triton, and Triton doesn't work (kernels/backend.py).
    """
    _check(projected, bias, row_table, column_table, weight, shift, draw, grid, dropout, state)
    positions, slots = draw if draw is not None else (None, None)
    batch, num_samples, _ = projected.shape
    dropping = state if dropout > 0 else None
    if use_triton(projected.device.type) and projected.dtype != torch.float64:
        tensors = (each.contiguous() for each in (projected, bias, row_table, column_table, weight, shift))
        return _forward(*tensors, positions, slots, dropping, list(grid), eps, dropout, first_image)[0]
    keep = None if dropping is None else keep_mask(dropping, projected.shape, dropout, first_image)
    if positions is None:
        positions = torch.arange(num_samples, device=projected.device).expand(batch, -1)
    return embed_norm_twin(
        *(projected, bias, row_table, column_table, positions, grid[1], weight, shift, eps, keep, dropout)
    )


def _check(
    projected: Tensor,
    bias: Tensor,
    row_table: Tensor,
    column_table: Tensor,
    weight: Tensor,
    shift: Tensor,
    draw: tuple[Tensor, Tensor] | None,
    grid: tuple[int, int],
    dropout: float,
    state: Tensor | None,
) -> None:
    if projected.dim() != 3:
        raise ValueError(f"projected must be (B, S, D), not of shape {tuple(projected.shape)}")
    batch, num_samples, width = projected.shape
    if width > MAX_WIDTH:
        raise ValueError(f"projected has a width of {width}, more than {MAX_WIDTH}")
    for name, vector in (("bias", bias), ("weight", weight), ("shift", shift)):
        if vector.shape != (width,):
            raise ValueError(f"{name} must be {(width,)} as the tokens are wide, not {tuple(vector.shape)}")
    for name, table, needed in (("row_table", row_table, grid[0]), ("column_table", column_table, grid[1])):
        if table.dim() != 2 or table.shape[1] != width or table.shape[0] < needed:
            raise ValueError(f"{name} must be ({needed} or more, {width}), not {tuple(table.shape)}")
    cells = grid[0] * grid[1]
    if draw is None and num_samples != cells:
        raise ValueError(f"{num_samples} tokens of a grid of {grid[0]} x {grid[1]} = {cells} cells need a draw")
    if draw is not None and (draw[0].shape, draw[1].shape) != ((batch, num_samples), (batch, cells)):
        found = tuple(draw[0].shape), tuple(draw[1].shape)
        raise ValueError(f"the draw must be {(batch, num_samples)} and {(batch, cells)}, not {found[0]} and {found[1]}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be from 0 to less than 1, not {dropout}")
    if dropout > 0 and (state is None or state.shape != (2,) or state.dtype != torch.int64):
        raise ValueError("dropout needs a state, int64 (2,)")
