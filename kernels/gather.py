"""Tokens of sampled grid cells: gather, 2-D position embedding and the change of layout, in one pass.

    tokens[b, s]    = features[g, :, h, w] + row_table[h] + column_table[w]      (h, w) = divmod(positions[b, s], W)
    d_features[g, :, h, w] = sum of d_tokens[b, s] over the slots s of this cell; 0 where there is none
    d_row_table[h]  = sum of d_tokens[b, s] over all b and all s in row h;       d_column_table likewise

    B sequences    G grids    C channels    H x W grid cells, N = H * W at most 1024    S slots of a sequence

A sequence's slots are the sampled cells of its grid. Sequence b has the grid g = b, or g = grid_of[b], so that several
sequences share one; the gradient of a grid is then the sum over its sequences, from the first to the last.

Features are fp16, bf16 or fp32, NCHW or channels_last; other strides are made contiguous first. The tables and the
tokens may have other dtypes. Sums are fp32 and rounded once. The backward pass needs the maps of cells to slots and no
features. It uses no atomics: same inputs, same bits. There is no second derivative.

How the kernels go about it:

    forward_rows    channels_last: a cell's channels lie together, so a program gathers a few cells by `positions`
    forward_planes  NCHW: any few neighbouring cells hold a sampled one, so a program reads a tile of the plane whole,
                    turns it around in shared memory, and stores what `slots` says was sampled
    backward        a program owns a tile of cells and channels. For each grid it reads their gradient, where `slots`
                    says there is one, and writes it, zeros included; on the way it sums over grids for the tables
    table_gradients adds those sums up per row and per column, in a fixed order

Positions that are given may come in any order and repeat a cell: `slots` then holds the cell's first slot, and
`next_slots` chains the others to it. Sampling all cells needs no maps: `positions` and `slots` are None. The sequences
of grid g are sequences[first[g]] to sequences[first[g + 1] - 1]; where each has a grid of its own, these are None, too.
"""

import torch
from torch import Tensor

from kernels.backend import LAUNCH, tl, triton


def gather_cells_twin(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    positions: Tensor,
    out_dtype: torch.dtype | None = None,
    grid_of: Tensor | None = None,
) -> Tensor:
    """The specification, differentiable by torch: add the tables to all cells, then take those at `positions`."""
    if grid_of is not None:
        features = features[grid_of.long()]
    wide = torch.promote_types(features.dtype, torch.float32)
    grid = features.to(wide).permute(0, 2, 3, 1)  # (B, H, W, C)
    _, rows, columns, channels = grid.shape
    if row_table is not None and column_table is not None:
        grid = grid + (row_table[:rows, None].to(wide) + column_table[:columns].to(wide))
    index = positions.long()[:, :, None].expand(-1, -1, channels)
    return grid.flatten(1, 2).gather(1, index).to(out_dtype or features.dtype)


# ---------------------------------------------------------------------------------------------- kernels


@triton.jit
def _embedding(row_table, column_table, cell, channel, mask, width, channels):
    """row_table[h] + column_table[w] for a tile of cells and channels, fp32."""
    row = (cell // width)[:, None] * channels + channel[None, :]
    column = (cell % width)[:, None] * channels + channel[None, :]
    of_rows = tl.load(row_table + row, mask=mask, other=0.0).to(tl.float32)
    of_columns = tl.load(column_table + column, mask=mask, other=0.0).to(tl.float32)
    return of_rows + of_columns


@triton.jit
def _first_slots(slots, sequence, cell, num_cells):
    """The first slot of each cell in a sequence, -1 where there is none."""
    if slots is None:
        return tl.where(cell < num_cells, cell, -1)
    else:
        return tl.load(slots + sequence * num_cells + cell, mask=cell < num_cells, other=-1).to(tl.int32)


@triton.jit
def _following_slots(next_slots, sequence, slot, num_samples):
    """The next slots of the same cells, -1 after the last."""
    return tl.load(next_slots + sequence * num_samples + slot, mask=slot >= 0, other=-1).to(tl.int32)


@triton.jit
def _token_tile(tokens, sequence, slot, channel, num_samples, channels):
    """Pointers (slots, channels) into tokens (B, S, C), and which of them exist."""
    pointers = tokens + sequence * num_samples * channels + slot[:, None] * channels + channel[None, :]
    return pointers, (slot >= 0)[:, None] & (channel < channels)[None, :]


@triton.jit
def _store_tokens(tokens, value, slots, next_slots, sequence, cell, channel, num_samples, num_cells, channels):
    """Store a tile of cells and channels wherever a sequence has these cells."""
    slot = _first_slots(slots, sequence, cell, num_cells)
    target, mask = _token_tile(tokens, sequence, slot, channel, num_samples, channels)
    if next_slots is None:
        tl.store(target, value, mask=mask)
    else:
        while tl.max(slot, axis=0) >= 0:
            tl.store(target, value, mask=mask)
            slot = _following_slots(next_slots, sequence, slot, num_samples)
            target, mask = _token_tile(tokens, sequence, slot, channel, num_samples, channels)


@triton.jit
def _gradient_of_cells(d_tokens, slots, next_slots, sequence, cell, channel, num_samples, num_cells, channels):
    """What a sequence adds to the gradient of a tile of cells and channels, fp32."""
    slot = _first_slots(slots, sequence, cell, num_cells)
    if next_slots is None:
        source, mask = _token_tile(d_tokens, sequence, slot, channel, num_samples, channels)
        gradient = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    else:
        gradient = tl.zeros((cell.shape[0], channel.shape[0]), tl.float32)
        while tl.max(slot, axis=0) >= 0:
            source, mask = _token_tile(d_tokens, sequence, slot, channel, num_samples, channels)
            gradient += tl.load(source, mask=mask, other=0.0).to(tl.float32)
            slot = _following_slots(next_slots, sequence, slot, num_samples)
    return gradient


@triton.jit
def forward_rows_kernel(
    features,  # (G, N, C)
    row_table,  # (>= H, C) or None
    column_table,  # (>= W, C) or None
    positions,  # (B, S) int32 or None
    grid_of,  # (B,) int32 or None
    tokens,  # (B, S, C)
    num_tokens,  # B * S
    num_samples,
    num_cells,
    width,
    channels,
    TOKENS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    mask = (token < num_tokens)[:, None] & (channel < channels)[None, :]
    sequence = token // num_samples
    grid = sequence if grid_of is None else tl.load(grid_of + sequence, mask=token < num_tokens, other=0)
    cell = token % num_samples if positions is None else tl.load(positions + token, mask=token < num_tokens, other=0)

    source = (grid.to(tl.int64) * num_cells + cell)[:, None] * channels + channel[None, :]
    value = tl.load(features + source, mask=mask, other=0.0).to(tl.float32)
    if row_table is not None:
        value += _embedding(row_table, column_table, cell, channel, mask, width, channels)
    target = token.to(tl.int64)[:, None] * channels + channel[None, :]
    tl.store(tokens + target, value.to(tokens.dtype.element_ty), mask=mask)


@triton.jit
def forward_planes_kernel(
    features,  # (G, C, N)
    row_table,  # (>= H, C) or None
    column_table,  # (>= W, C) or None
    slots,  # (B, N) int16 or None
    next_slots,  # (B, S) int16 or None
    sequences,  # (B,) int32 or None
    first,  # (G + 1,) int32 or None
    tokens,  # (B, S, C)
    num_samples,
    num_cells,
    width,
    channels,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    grid = tl.program_id(2).to(tl.int64)
    source = (grid * channels + channel)[:, None] * num_cells + cell[None, :]
    inside = (channel < channels)[:, None] & (cell < num_cells)[None, :]
    value = tl.trans(tl.load(features + source, mask=inside, other=0.0)).to(tl.float32)  # (CELLS, CHANNELS)
    if row_table is not None:
        mask = (cell < num_cells)[:, None] & (channel < channels)[None, :]
        value += _embedding(row_table, column_table, cell, channel, mask, width, channels)
    value = value.to(tokens.dtype.element_ty)
    if sequences is None:
        _store_tokens(tokens, value, slots, next_slots, grid, cell, channel, num_samples, num_cells, channels)
    else:
        for place in range(tl.load(first + grid), tl.load(first + grid + 1)):
            sequence = tl.load(sequences + place).to(tl.int64)
            _store_tokens(tokens, value, slots, next_slots, sequence, cell, channel, num_samples, num_cells, channels)


@triton.jit
def backward_kernel(
    d_tokens,  # (B, S, C)
    slots,  # (B, N) int16 or None
    next_slots,  # (B, S) int16 or None
    sequences,  # (B,) int32 or None
    first,  # (G + 1,) int32 or None
    d_features,  # (G, N, C) or (G, C, N), as the strides say; None if not needed
    d_cells,  # (SPLITS, N, C) fp32: sums over every SPLITS-th grid; None if not needed
    num_grids,
    num_samples,
    num_cells,
    channels,
    cell_stride,
    channel_stride,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    cell = tl.program_id(0) * CELLS + tl.arange(0, CELLS)
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    split = tl.program_id(2)
    inside = (cell < num_cells)[:, None] & (channel < channels)[None, :]
    total = tl.zeros((CELLS, CHANNELS), tl.float32)
    for number in range(split, num_grids, tl.num_programs(2)):
        grid = tl.full((), number, tl.int64)
        if sequences is None:
            gradient = _gradient_of_cells(
                d_tokens, slots, next_slots, grid, cell, channel, num_samples, num_cells, channels
            )
        else:
            gradient = tl.zeros((CELLS, CHANNELS), tl.float32)
            for place in range(tl.load(first + grid), tl.load(first + grid + 1)):
                sequence = tl.load(sequences + place).to(tl.int64)
                gradient += _gradient_of_cells(
                    d_tokens, slots, next_slots, sequence, cell, channel, num_samples, num_cells, channels
                )
        if d_features is not None:
            target = d_features + grid * num_cells * channels
            target += cell[:, None] * cell_stride + channel[None, :] * channel_stride
            tl.store(target, gradient.to(d_features.dtype.element_ty), mask=inside)
        total += gradient
    if d_cells is not None:
        target = d_cells + split * num_cells * channels + cell[:, None] * channels + channel[None, :]
        tl.store(target, total, mask=inside)


@triton.jit
def table_gradients_kernel(
    d_cells,  # (SPLITS, N, C) fp32
    d_row_table,  # (row_entries, C)
    d_column_table,  # (column_entries, C)
    row_entries,
    height,
    width,
    channels,
    SPLITS: tl.constexpr,
    CELLS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    entry = tl.program_id(0)  # of the row table, then of the column table
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    of_rows = entry < row_entries
    if of_rows:
        first, stride, length = entry * width, 1, width
        used = entry < height
    else:
        entry -= row_entries
        first, stride, length = entry, width, height
        used = entry < width
    length = tl.where(used, length, 0)  # an entry that the grid doesn't reach has no gradient

    total = tl.zeros((CELLS, CHANNELS), tl.float32)
    for split in range(SPLITS):
        for start in range(0, length, CELLS):
            step = start + tl.arange(0, CELLS)
            cell = split * height * width + first + step * stride
            mask = (step < length)[:, None] & (channel < channels)[None, :]
            total += tl.load(d_cells + cell[:, None] * channels + channel[None, :], mask=mask, other=0.0)
    gradient = tl.sum(total, axis=0)
    if of_rows:
        target = d_row_table + entry * channels + channel
        tl.store(target, gradient.to(d_row_table.dtype.element_ty), mask=channel < channels)
    else:
        target = d_column_table + entry * channels + channel
        tl.store(target, gradient.to(d_column_table.dtype.element_ty), mask=channel < channels)


# ------------------------------------------------------------------- host functions: Triton's, then PyTorch's

TILE_OF_ROWS = (16, 128)  # cells or tokens x channels of a program, where channels lie together
TILE_OF_PLANES = (32, 64)  # and where cells lie together
TILE_OF_SHARED_PLANES = (32, 32)  # in the backward pass, where the loop over sequences takes registers, too
SPLITS = 4  # programs that share the grids of one tile in the backward pass


def forward_triton(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    positions: Tensor | None,
    slots: Tensor | None,
    next_slots: Tensor | None,
    grid_of: Tensor | None,
    sequences: Tensor | None,
    first: Tensor | None,
    tokens: Tensor,
) -> None:
    num_grids, channels, rows, columns = features.shape
    batch, num_samples, _ = tokens.shape
    num_cells = rows * columns
    if features.is_contiguous(memory_format=torch.channels_last):
        block, channel_block = TILE_OF_ROWS
        forward_rows_kernel[(triton.cdiv(batch * num_samples, block), triton.cdiv(channels, channel_block))](
            *(features, row_table, column_table, positions, grid_of, tokens),
            *(batch * num_samples, num_samples, num_cells, columns, channels),
            TOKENS=block,
            CHANNELS=channel_block,
            **LAUNCH,
        )
    else:
        block, channel_block = TILE_OF_PLANES
        forward_planes_kernel[(triton.cdiv(num_cells, block), triton.cdiv(channels, channel_block), num_grids)](
            *(features, row_table, column_table, slots, next_slots, sequences, first, tokens),
            *(num_samples, num_cells, columns, channels),
            CELLS=block,
            CHANNELS=channel_block,
            **LAUNCH,
        )


def backward_triton(
    d_tokens: Tensor,
    slots: Tensor | None,
    next_slots: Tensor | None,
    sequences: Tensor | None,
    first: Tensor | None,
    d_features: Tensor | None,
    d_row_table: Tensor | None,
    d_column_table: Tensor | None,
    shape: list[int],
    channels_last: bool,
) -> None:
    if d_features is None and d_row_table is None:
        return
    num_grids, channels, rows, columns = shape
    num_samples, num_cells = d_tokens.shape[1], rows * columns
    of_planes = TILE_OF_PLANES if sequences is None else TILE_OF_SHARED_PLANES
    block, channel_block = TILE_OF_ROWS if channels_last else of_planes
    tiles = (triton.cdiv(num_cells, block), triton.cdiv(channels, channel_block))
    splits = max(1, min(SPLITS, num_grids))
    d_cells = None
    if d_row_table is not None:
        d_cells = d_tokens.new_empty((splits, num_cells, channels), dtype=torch.float32)
    backward_kernel[(*tiles, splits)](
        *(d_tokens, slots, next_slots, sequences, first, d_features, d_cells),
        *(num_grids, num_samples, num_cells, channels),
        *((channels, 1) if channels_last else (1, num_cells)),
        CELLS=block,
        CHANNELS=channel_block,
        **LAUNCH,
    )
    if d_row_table is not None and d_column_table is not None:
        entries = d_row_table.shape[0] + d_column_table.shape[0]
        table_gradients_kernel[(entries, tiles[1])](
            *(d_cells, d_row_table, d_column_table),
            *(d_row_table.shape[0], rows, columns, channels),
            SPLITS=splits,
            CELLS=16,
            CHANNELS=channel_block,
            **LAUNCH,
        )


def forward_torch(
    features: Tensor,
    row_table: Tensor | None,
    column_table: Tensor | None,
    positions: Tensor | None,
    grid_of: Tensor | None,
    tokens: Tensor,
) -> None:
    """The twin made efficient: gather first, then add; one by one, so that what is in flight stays in the cache."""
    wide = torch.promote_types(features.dtype, torch.float32)
    _, _, rows, columns = features.shape
    table = None
    if row_table is not None and column_table is not None:
        table = (row_table[:rows, None].to(wide) + column_table[:columns].to(wide)).flatten(0, 1)  # (N, C)
    grids = range(len(tokens)) if grid_of is None else grid_of.tolist()
    for number, (grid, out) in enumerate(zip(grids, tokens, strict=True)):
        value, embedding = features[grid].flatten(1).T, table  # (N, C) each
        if positions is not None:
            cells = positions[number].long()
            value = value.index_select(0, cells)
            embedding = None if table is None else table.index_select(0, cells)
        if embedding is None:
            out.copy_(value)
        else:
            torch.add(value.to(wide), embedding, out=out)


def backward_torch(
    d_tokens: Tensor,
    positions: Tensor | None,
    next_slots: Tensor | None,
    grid_of: Tensor | None,
    d_features: Tensor | None,
    d_row_table: Tensor | None,
    d_column_table: Tensor | None,
    shape: list[int],
) -> None:
    """As the kernels do, on gradients that are zero so far."""
    _, channels, rows, columns = shape
    wide = torch.promote_types(d_tokens.dtype, torch.float32)
    d_cells = d_tokens.new_zeros((rows * columns, channels), dtype=wide)
    sums = d_features  # what is added up over sequences is rounded once
    if d_features is not None and grid_of is not None and d_features.dtype.itemsize < wide.itemsize:
        sums = torch.zeros_like(d_features, dtype=wide)
    grids = range(len(d_tokens)) if grid_of is None else grid_of.tolist()
    for number, (grid, gradient) in enumerate(zip(grids, d_tokens, strict=True)):
        cells = None if positions is None else positions[number].long()
        if sums is not None:
            of_grid = sums[grid].flatten(1).T  # (N, C)
            if cells is None:
                of_grid.add_(gradient)
            elif grid_of is None and next_slots is None:
                of_grid.index_copy_(0, cells, gradient.to(of_grid.dtype))
            else:
                of_grid.index_add_(0, cells, gradient.to(of_grid.dtype))
        if d_row_table is not None and cells is not None:
            d_cells.index_add_(0, cells, gradient.to(wide))
    if sums is not None and d_features is not None and sums is not d_features:
        d_features.copy_(sums)
    if d_row_table is not None and d_column_table is not None:
        if positions is None:
            torch.sum(d_tokens, 0, dtype=wide, out=d_cells)
        d_row_table[:rows] = d_cells.view(rows, columns, channels).sum(1)
        d_column_table[:columns] = d_cells.view(rows, columns, channels).sum(0)
