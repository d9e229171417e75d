"""Which grid cells of an image are kept: drawn uniformly, without replacement, anew for each image and step.

Each cell gets a key, (random word << 10) | cell, and the S smallest keys win. The word is word 0 of Philox at the
counter (cell, image, step, 0) under the run's seed, so a draw depends on the seed, the step and the image's global
number only: N ranks draw what one rank would, and a recomputed forward pass draws what the first one did. All three
come in one tensor, so that a compiled model meets no number that changes with each batch.

    B images    N cells per image, at most 1024    S cells drawn

The kernel and its twin draw the same cells, bit for bit. Both return the draw twice over: `positions` (B, S) int32 says
which cell is in a slot, ascending, and `slots` (B, N) int16 says which slot a cell is in, -1 if it wasn't drawn.
"""

import torch
from torch import Tensor

from kernels.backend import LAUNCH, tl, triton, use_triton
from kernels.philox import WORD, philox

INDEX_BITS = 10
MAX_CELLS = 1 << INDEX_BITS


def sample_cells_twin(state: Tensor, num_images: int, num_cells: int, num_samples: int) -> tuple[Tensor, Tensor]:
    cells = torch.arange(num_cells, device=state.device)
    images = (state[2] + torch.arange(num_images, device=state.device))[:, None]
    words, *_ = philox(state[0], (cells, images & WORD, state[1] & WORD, torch.zeros_like(cells)))
    keys, _ = ((words << INDEX_BITS) | cells).sort(dim=1)
    positions = (keys[:, :num_samples] & (MAX_CELLS - 1)).sort(dim=1).values
    slots = torch.full((num_images, num_cells), -1, dtype=torch.int16, device=state.device)
    slots.scatter_(1, positions, torch.arange(num_samples, dtype=torch.int16, device=state.device).expand_as(positions))
    return positions.int(), slots


@triton.jit(do_not_specialize=["num_cells", "num_samples"])
def sample_cells_kernel(
    state,  # (3,) int64: seed, step, number of the first image
    positions,  # (B, S) int32
    slots,  # (B, N) int16
    num_cells,
    num_samples,
    INDEX_BITS: tl.constexpr,
    BLOCK: tl.constexpr,  # power of two, >= N
):
    image = tl.program_id(0)  # one program draws for one image
    cell = tl.arange(0, BLOCK)
    zero = tl.zeros((BLOCK,), tl.uint32)
    number = zero + (tl.load(state + 2) + image).to(tl.uint32)
    step = zero + tl.load(state + 1).to(tl.uint32)
    word, _, _, _ = tl.philox(tl.load(state), cell.to(tl.uint32), number, step, zero)

    key = (word.to(tl.int64) << INDEX_BITS) | cell
    key = tl.where(cell < num_cells, key, 1 << 62)
    last = tl.sum(tl.where(cell == num_samples - 1, tl.sort(key), 0), axis=0)  # the S-th smallest key
    drawn = key <= last
    slot = tl.cumsum(drawn.to(tl.int32), axis=0) - 1
    tl.store(positions + image * num_samples + slot, cell, mask=drawn)
    tl.store(slots + image * num_cells + cell, tl.where(drawn, slot, -1).to(tl.int16), mask=cell < num_cells)


@torch.library.custom_op("clipvil::sample_cells", mutates_args=())
def sample_cells(state: Tensor, num_images: int, num_cells: int, num_samples: int) -> tuple[Tensor, Tensor]:
    """Draw `num_samples` of `num_cells` cells for each image.

    Args:
        state: int64 (3,), the seed, the step and the global number of the first image, on the device that draws. It
            isn't advanced.
        num_cells: N, at most 1024.
        num_samples: S, from 1 to N.

    Returns:
        positions (B, S) int32, ascending in each row, and slots (B, N) int16.
    """
    if not use_triton(state.device.type):
        return sample_cells_twin(state, num_images, num_cells, num_samples)
    positions = torch.empty((num_images, num_samples), dtype=torch.int32, device=state.device)
    slots = torch.empty((num_images, num_cells), dtype=torch.int16, device=state.device)
    block = max(triton.next_power_of_2(num_cells), 2)
    with torch.cuda.device_of(state):
        sample_cells_kernel[(num_images,)](
            state, positions, slots, num_cells, num_samples, INDEX_BITS=INDEX_BITS, BLOCK=block, **LAUNCH
        )
    return positions, slots


@sample_cells.register_fake
def _(state: Tensor, num_images: int, num_cells: int, num_samples: int) -> tuple[Tensor, Tensor]:
    return (
        state.new_empty((num_images, num_samples), dtype=torch.int32),
        state.new_empty((num_images, num_cells), dtype=torch.int16),
    )


@torch.library.custom_op("clipvil::link_slots", mutates_args=())
def link_slots(positions: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """The maps of positions that are given: in any order, and with repeated cells. Waits for the device, to check them.

    Args:
        positions: int32 or int64 (B, S).

    Returns:
        slots int16 (B, N): the first slot of each cell, -1 if there is none; next_slots int16 (B, S): the next slot
        that holds the same cell, -1 after the last.

    Raises:
        ValueError: a position is no cell of the grid.
    """
    if positions.numel() and (positions.amin() < 0 or positions.amax() >= num_cells):
        raise ValueError(
            f"positions from {positions.amin()} to {positions.amax()} given for a grid of cells 0 to {num_cells - 1}"
        )
    batch, num_samples = positions.shape
    cells, slot = positions.long().sort(dim=1, stable=True)
    slot = slot.short()
    repeated = torch.zeros_like(cells, dtype=torch.bool)
    repeated[:, 1:] = cells[:, 1:] == cells[:, :-1]
    slots = slot.new_full((batch, num_cells + 1), -1)  # repeated cells go to one column more, which is dropped
    slots.scatter_(1, torch.where(repeated, num_cells, cells), slot)
    next_slots = slot.new_full((batch, num_samples), -1)
    next_slots.scatter_(1, slot[:, :-1].long(), torch.where(repeated, slot, -1)[:, 1:])
    return slots[:, :-1].contiguous(), next_slots


@link_slots.register_fake
def _(positions: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    slots = positions.new_empty((positions.shape[0], num_cells), dtype=torch.int16)
    return slots, positions.new_empty(positions.shape, dtype=torch.int16)
