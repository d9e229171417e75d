"""Sub-sampling of grid features, fused with their 2-D position embedding and the change of layout.

    tokens[b, s] = features[b, :, h, w] + row_table[h] + column_table[w]      (h, w) = divmod(positions[b, s], W)

kernels/sampling.py draws the positions and kernels/gather.py makes the tokens; each has kernels in Triton and a twin in
PyTorch that gives the same numbers. This file checks the arguments and puts the two together.
"""

import torch
from torch import Tensor

from kernels.gather import gather_cells
from kernels.sampling import MAX_CELLS, link_slots, sample_cells

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)  # fp64 on the PyTorch path only


def grid_subsample(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    state: Tensor | None,
    num_samples: int,
    *,
    first_image: int = 0,
    positions: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Sample grid cells and add their position embedding; differentiable in the features and both tables.

    Args:
        features: (B, C, H, W), fp16, bf16 or fp32.
        row_table: (rows >= H, C), or None together with `column_table`.
        column_table: (columns >= W, C).
        state: int64 (2,), seed and step, on the features' device. Not needed where nothing is drawn.
        num_samples: S, from 1 to H * W. H * W keeps every cell, in order.
        first_image: global number of the first image of this batch.
        positions: int32 or int64 (B, S), cell numbers from 0 to H * W - 1 to take instead of drawing, in any order.
        out_dtype: dtype of the tokens; the features' dtype if None.

    Returns:
        tokens (B, S, C) and positions (B, S) int32.

    Raises:
        ValueError: for any argument that doesn't fit, before anything is computed.
        RuntimeError: KERNELS_BACKEND=triton, and Triton doesn't work (kernels/backend.py).
    """
    _check(features, row_table, column_table, state, num_samples, positions, out_dtype)
    batch, _, rows, columns = features.shape
    maps: tuple[Tensor | None, Tensor | None, Tensor | None] = (None, None, None)
    if positions is not None:
        positions = positions.int().contiguous()
        maps = (positions, *link_slots(positions, rows * columns))
    elif num_samples == rows * columns:
        positions = torch.arange(num_samples, dtype=torch.int32, device=features.device).expand(batch, -1)
    elif state is not None:
        positions, slots = sample_cells(state, batch, rows * columns, num_samples, first_image)
        maps = (positions, slots, None)
    else:
        raise ValueError(f"{num_samples} of {rows * columns} cells have to be drawn, but state is None")
    if not features.is_contiguous(memory_format=torch.channels_last):
        features = features.contiguous()
    if row_table is not None and column_table is not None:
        row_table, column_table = row_table.contiguous(), column_table.contiguous()
    tokens = gather_cells(features, row_table, column_table, *maps, num_samples, out_dtype or features.dtype)
    return tokens, positions


def _check(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    state: Tensor | None,
    num_samples: int,
    positions: Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    if features.dim() != 4:
        raise ValueError(f"features must be (B, C, H, W), not of shape {tuple(features.shape)}")
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
    if state is not None and (state.shape != (2,) or state.dtype != torch.int64):
        raise ValueError(f"state must be int64 (2,), not {state.dtype} {tuple(state.shape)}")
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
    for name, tensor in {**tables, "state": state, "positions": positions}.items():
        if tensor is not None and tensor.device != features.device:
            raise ValueError(f"{name} is on {tensor.device}, the features are on {features.device}")
