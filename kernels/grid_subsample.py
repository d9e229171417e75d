"""Sub-sampling of grid features, fused with their 2-D position embedding.

    tokens[b, s] = features[b, :, row, column] + row_table[row] + column_table[column]
    with (row, column) = divmod(positions[b, s], W)

    B images    C channels    H x W grid cells    S sampled cells per image

The cells are drawn uniformly without replacement: each cell gets a random key, Philox word 0 of the
counter (cell, image, step, 0) under the run's seed, and the S smallest keys win. A draw depends on the
seed, the step and the image's global number only, so N ranks draw what one rank would draw.

This file holds the PyTorch path: gather the sampled cells first, then add the tables to them alone.
"""

import torch
from torch import Tensor

from kernels.philox import philox

MAX_CELLS = 1024
INDEX_BITS = 10  # a sort key is (random word << INDEX_BITS) | cell: ties fall to the lower cell


def sample_positions(state: Tensor, num_images: int, num_cells: int, num_samples: int, first_image: int = 0) -> Tensor:
    """Draw `num_samples` of `num_cells` cells for each image, uniformly and without replacement.

    Args:
        state: int64 (2,), the seed and the step, on the device that draws.
        first_image: global number of the first image.

    Returns:
        Cell numbers, int32 (num_images, num_samples), ascending in each row.
    """
    cells = torch.arange(num_cells, device=state.device)
    images = torch.arange(first_image, first_image + num_images, device=state.device)[:, None]
    zero = torch.zeros_like(cells)
    words = philox(state[0], (cells, images, state[1], zero))[0]
    keys, _ = ((words << INDEX_BITS) | cells).sort(dim=1)
    chosen = keys[:, :num_samples] & (MAX_CELLS - 1)
    return chosen.sort(dim=1).values.int()


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
    """
    _check(features, row_table, column_table, state, num_samples, positions)
    batch, channels, rows, columns = features.shape
    if positions is None:
        if num_samples == rows * columns:
            positions = torch.arange(num_samples, dtype=torch.int32, device=features.device).repeat(batch, 1)
        else:
            if state is None:
                raise ValueError(f"{num_samples} of {rows * columns} cells have to be drawn, but state is None")
            positions = sample_positions(state, batch, rows * columns, num_samples, first_image)
    index = positions.long()

    # Gathering before transposing copies S cells per image instead of all of them.
    tokens = features.flatten(2).gather(2, index[:, None].expand(batch, channels, num_samples)).transpose(1, 2)
    if row_table is not None and column_table is not None:
        wide = torch.promote_types(features.dtype, torch.float32)  # add in fp32, round once
        tokens = tokens.to(wide) + (row_table[index // columns].to(wide) + column_table[index % columns].to(wide))
    return tokens.to(out_dtype or features.dtype).contiguous(), positions.int()


def _check(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    state: Tensor | None,
    num_samples: int,
    positions: Tensor | None,
) -> None:
    if features.dim() != 4:
        raise ValueError(f"features must be (B, C, H, W), not of shape {tuple(features.shape)}")
    if features.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"features must be floating point, not {features.dtype}")
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
        if table.device != features.device:
            raise ValueError(f"{name} is on {table.device}, the features are on {features.device}")
    if state is not None and (state.shape != (2,) or state.dtype != torch.int64):
        raise ValueError(f"state must be int64 (2,), not {state.dtype} {tuple(state.shape)}")
    if positions is not None:
        if positions.shape != (batch, num_samples):
            raise ValueError(f"positions must be {(batch, num_samples)}, not {tuple(positions.shape)}")
        if positions.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"positions must be int32 or int64, not {positions.dtype}")
