"""Sub-sampling of grid features, fused with their 2-D position embedding and the change of layout.

    tokens[b, s] = features[g, :, h, w] + row_table[h] + column_table[w]      (h, w) = divmod(positions[b, s], W)

Sequence b is sampled from grid g = b, or g = grid_of[b]: several sequences may then share one grid.

kernels/sampling.py draws the positions and kernels/gather.py makes the tokens; each has kernels in Triton and a twin in
PyTorch that gives the same numbers. Here they become operators of torch and one function, which checks its arguments.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from kernels.backend import use_triton
from kernels.gather import backward_torch, backward_triton, forward_torch, forward_triton
from kernels.sampling import MAX_CELLS, link_slots, sample_cells

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # fp64 on the PyTorch path only


@torch.library.custom_op("clipvil::gather_cells", mutates_args=())
def gather_cells(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    positions: Tensor | None,
    slots: Tensor | None,
    next_slots: Tensor | None,
    grid_of: Tensor | None,
    sequences: Tensor | None,
    first: Tensor | None,
    num_samples: int,
    out_dtype: torch.dtype,
) -> Tensor:
    """Tokens (B, S, C) of dense features; the maps are those of kernels/gather.py."""
    tokens = _new_tokens(features, grid_of, num_samples, out_dtype)
    if use_triton(features.device.type, features.dtype):
        maps = (positions, slots, next_slots, grid_of, sequences, first)
        with torch.cuda.device_of(features):
            forward_triton(features, row_table, column_table, *maps, tokens)
    else:
        forward_torch(features, row_table, column_table, positions, grid_of, tokens)
    return tokens


@gather_cells.register_fake
def _(features: Tensor, *rest: Any) -> Tensor:
    *_, grid_of, _sequences, _first, num_samples, out_dtype = rest
    return _new_tokens(features, grid_of, num_samples, out_dtype)


def _new_tokens(features: Tensor, grid_of: Tensor | None, num_samples: int, dtype: torch.dtype) -> Tensor:
    batch = (features if grid_of is None else grid_of).shape[0]
    return features.new_empty((batch, num_samples, features.shape[1]), dtype=dtype)


@torch.library.custom_op("clipvil::gather_cells_backward", mutates_args=())
def gather_cells_backward(
    d_tokens: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    positions: Tensor | None,
    slots: Tensor | None,
    next_slots: Tensor | None,
    grid_of: Tensor | None,
    sequences: Tensor | None,
    first: Tensor | None,
    shape: list[int],
    dtype: torch.dtype,
    channels_last: bool,
    needs_features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of features and tables. Those of tables that are None, or not needed, are empty tensors."""
    d_tokens = d_tokens.contiguous()
    triton_runs = use_triton(d_tokens.device.type, dtype)
    new = torch.empty if triton_runs else _zeros
    gradients = _new_gradients(new, d_tokens, row_table, column_table, shape, dtype, channels_last, needs_features)
    d_features = gradients[0] if needs_features else None
    d_row_table, d_column_table = gradients[1:] if row_table is not None else (None, None)
    if triton_runs:
        maps = (slots, next_slots, sequences, first)
        with torch.cuda.device_of(d_tokens):
            backward_triton(d_tokens, *maps, d_features, d_row_table, d_column_table, shape, channels_last)
    else:
        backward_torch(d_tokens, positions, next_slots, grid_of, d_features, d_row_table, d_column_table, shape)
    return gradients


@gather_cells_backward.register_fake
def _(d_tokens: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    row_table, column_table, *_maps, shape, dtype, channels_last, needs_features = rest
    others = (shape, dtype, channels_last, needs_features)
    return _new_gradients(torch.empty, d_tokens, row_table, column_table, *others)


def _new_gradients(
    new: Callable[..., Tensor],
    d_tokens: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    shape: list[int],
    dtype: torch.dtype,
    channels_last: bool,
    needs_features: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    device = d_tokens.device
    d_features = d_tokens.new_empty(0)
    if needs_features and channels_last:
        batch, channels, rows, columns = shape
        d_features = new((batch, rows, columns, channels), dtype=dtype, device=device).permute(0, 3, 1, 2)
    elif needs_features:
        d_features = new(shape, dtype=dtype, device=device)
    d_row_table, d_column_table = (
        d_tokens.new_empty(0) if table is None else new(table.shape, dtype=table.dtype, device=device)
        for table in (row_table, column_table)
    )
    return d_features, d_row_table, d_column_table


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros. On a CPU in huge pages, which NumPy asks for and torch doesn't: the features' gradient of a batch of 32
    then takes 30 page faults, not 15,000."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


def _save(ctx: Any, inputs: tuple, output: Tensor) -> None:
    features, row_table, column_table, *maps, _, _ = inputs
    ctx.save_for_backward(row_table, column_table, *maps)
    ctx.shape, ctx.dtype = list(features.shape), features.dtype
    ctx.channels_last = features.is_contiguous(memory_format=torch.channels_last)


def _differentiate(ctx: Any, d_tokens: Tensor) -> tuple[Tensor | None, ...]:
    row_table, column_table, *maps = ctx.saved_tensors
    of_features, of_rows, of_columns, *_ = ctx.needs_input_grad
    tables = (row_table, column_table) if of_rows or of_columns else (None, None)
    # With all cells of grids of their own, in channels_last, the tokens' gradient is the features', in another shape.
    positions, _, _, grid_of, *_ = maps
    as_it_is = positions is None and grid_of is None and ctx.channels_last and d_tokens.dtype == ctx.dtype
    d_features, d_row_table, d_column_table = gather_cells_backward(
        d_tokens, *tables, *maps, ctx.shape, ctx.dtype, ctx.channels_last, of_features and not as_it_is
    )
    if as_it_is:
        batch, channels, rows, columns = ctx.shape
        d_features = d_tokens.reshape(batch, rows, columns, channels).permute(0, 3, 1, 2)
    gradients = (
        d_features if of_features else None,
        d_row_table if of_rows else None,
        d_column_table if of_columns else None,
    )
    return *gradients, *[None] * (len(maps) + 2)


gather_cells.register_autograd(_differentiate, setup_context=_save)


@torch.library.custom_op("clipvil::link_grids", mutates_args=())
def link_grids(grid_of: Tensor, num_grids: int) -> tuple[Tensor, Tensor]:
    """The sequences of each grid, in order.

    Args:
        grid_of: int32 or int64 (B,), the grid of each sequence.
        num_grids: G.

    Returns:
        sequences int32 (B,) and first int32 (G + 1): those of grid g are sequences[first[g] : first[g + 1]].

    Raises:
        ValueError: there is no such grid. A GPU, which nobody waits for, raises an error of its own later.
    """
    valid = ((grid_of >= 0) & (grid_of < num_grids)).all()
    if grid_of.device.type != "cpu":
        torch._assert_async(valid)
    elif not valid:
        raise ValueError(f"grid_of has {grid_of.min()} to {grid_of.max()}, but the grids are 0 to {num_grids - 1}")
    sorted_grids, sequences = grid_of.int().sort(stable=True)
    bounds = torch.arange(num_grids + 1, dtype=torch.int32, device=grid_of.device)
    return sequences.int(), torch.searchsorted(sorted_grids, bounds, out_int32=True)


@link_grids.register_fake
def _(grid_of: Tensor, num_grids: int) -> tuple[Tensor, Tensor]:
    return grid_of.new_empty(grid_of.shape, dtype=torch.int32), grid_of.new_empty(num_grids + 1, dtype=torch.int32)


def grid_subsample(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    state: Tensor | None,
    num_samples: int,
    *,
    positions: Tensor | None = None,
    grid_of: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample grid cells and add their position embedding; differentiable in the features and both tables.

    Args:
        features: (G, C, H, W), fp16, bf16 or fp32.
        row_table: (rows >= H, C), or None together with `column_table`.
        column_table: (columns >= W, C).
        state: int64 (3,), on the features' device: seed, step, and global number of the first sequence. Not needed
            where nothing is drawn.
        num_samples: S, from 1 to H * W. H * W keeps every cell, in order.
        positions: int32 or int64 (B, S), cell numbers from 0 to H * W - 1 to take instead of drawing, in any order.
        grid_of: int32 or int64 (B,), the grid that each sequence is sampled from; None gives each its own, so B = G.
        out_dtype: dtype of the tokens; the features' dtype if None.

    Returns:
        tokens (B, S, C) and positions (B, S) int32.

    Raises:
        ValueError: for any argument that doesn't fit, before anything is computed.
        RuntimeError: KERNELS_BACKEND=triton, and Triton doesn't work (kernels/backend.py).
    """
    _check(features, row_table, column_table, state, num_samples, positions, grid_of, out_dtype)
    num_grids, _, rows, columns = features.shape
    batch = num_grids if grid_of is None else len(grid_of)
    grids: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    if grid_of is not None:
        grids = (grid_of.int().contiguous(), *link_grids(grid_of, num_grids))
    maps: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    if positions is not None:
        slots, next_slots = link_slots(positions, rows * columns)
        positions = positions.int().contiguous()
        maps = (positions, slots, next_slots)
    elif num_samples == rows * columns:
        positions = torch.arange(num_samples, dtype=torch.int32, device=features.device).expand(batch, -1)
    elif state is not None:
        positions, slots = sample_cells(state, batch, rows * columns, num_samples)
        maps = (positions, slots, None)
    else:
        raise ValueError(f"{num_samples} of {rows * columns} cells have to be drawn, but state is None")
    if not features.is_contiguous(memory_format=torch.channels_last):
        features = features.contiguous()
    if row_table is not None and column_table is not None:
        row_table, column_table = row_table.contiguous(), column_table.contiguous()
    tokens = gather_cells(features, row_table, column_table, *maps, *grids, num_samples, out_dtype or features.dtype)
    return tokens, positions


def _check(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    state: Tensor | None,
    num_samples: int,
    positions: Tensor | None,
    grid_of: Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    if features.dim() != 4:
        raise ValueError(f"features must be (G, C, H, W), not of shape {tuple(features.shape)}")
    batch, channels, rows, columns = features.shape
    if rows * columns > MAX_CELLS:
        raise ValueError(f"a grid of {rows} x {columns} cells has more than {MAX_CELLS}")
    if not 1 <= num_samples <= rows * columns:
        raise ValueError(f"{num_samples} samples asked of a grid of {rows} x {columns} = {rows * columns} cells")
    if (row_table is None) != (column_table is None):
        raise ValueError("row_table and column_table must both be given or both be None")
    for name, table, needed in (("row_table", row_table, rows), ("column_table", column_table, columns)):
        if table is None:
            continue
        if table.dim() != 2 or table.shape[1] != channels:
            raise ValueError(f"{name} has the shape {tuple(table.shape)}, the features have {channels} channels")
        if table.shape[0] < needed:
            raise ValueError(f"{name} has {table.shape[0]} entries, the grid of {rows} x {columns} needs {needed}")
    if state is not None and (state.shape != (3,) or state.dtype != torch.int64):
        raise ValueError(f"state must be int64 (3,), not {state.dtype} {tuple(state.shape)}")
    if grid_of is not None:
        if grid_of.dim() != 1 or grid_of.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"grid_of must be int32 or int64 (B,), not {grid_of.dtype} {tuple(grid_of.shape)}")
        batch = len(grid_of)
    if positions is not None:
        if positions.shape != (batch, num_samples):
            raise ValueError(f"positions must be {(batch, num_samples)}, not {tuple(positions.shape)}")
        if positions.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"positions must be int32 or int64, not {positions.dtype}")
    out_dtype = out_dtype or features.dtype
    tables = {"row_table": row_table, "column_table": column_table}
    for name, dtype in {
        "features": features.dtype,
        "out_dtype": out_dtype,
        **{name: table.dtype for name, table in tables.items() if table is not None},
    }.items():
        if dtype not in DTYPES:
            raise ValueError(f"{name} must be fp16, bf16 or fp32, not {dtype}")
    for name, tensor in {**tables, "state": state, "positions": positions, "grid_of": grid_of}.items():
        if tensor is not None and tensor.device != features.device:
            raise ValueError(f"{name} is on {tensor.device}, the features are on {features.device}")
