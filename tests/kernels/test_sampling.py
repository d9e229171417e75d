import math

import pytest
import torch

from kernels.sampling import link_slots, sample_cells, sample_cells_twin

SEED, STEP = 9595, 3


@pytest.fixture
def draw(backend, device):
    """`sample_cells` of the backend under test, with the results on the CPU."""

    def sample(num_images=8, num_cells=20, num_samples=7, first_image=0, state=(SEED, STEP)):
        state = torch.tensor((*state, first_image), device=device)
        positions, slots = sample_cells(state, num_images, num_cells, num_samples)
        return positions.cpu(), slots.cpu()

    return sample


@pytest.mark.parametrize(
    ("num_cells", "num_samples"),
    [
        pytest.param(20, 7, id="some"),
        pytest.param(1, 1, id="single_cell"),
        pytest.param(20, 20, id="all_cells"),
        pytest.param(33, 32, id="just_over_a_power_of_two"),
        pytest.param(240, 100, id="real_grid"),
        pytest.param(1024, 1, id="one_of_largest", marks=pytest.mark.slow),
        pytest.param(1024, 1023, id="most_of_largest", marks=pytest.mark.slow),
    ],
)
def test_positions_and_slots_say_the_same_draw(draw, num_cells, num_samples):
    positions, slots = draw(num_images=2, num_cells=num_cells, num_samples=num_samples)
    assert positions.shape == (2, num_samples)
    assert positions.dtype == torch.int32
    assert (positions.diff(dim=1) > 0).all()  # ascending and distinct
    assert positions.min() >= 0
    assert positions.max() < num_cells
    assert slots.shape == (2, num_cells)
    assert slots.dtype == torch.int16
    expected = torch.full((2, num_cells), -1, dtype=torch.int16)
    for image in range(2):
        for slot, cell in enumerate(positions[image].tolist()):
            expected[image, cell] = slot
    assert torch.equal(slots, expected)


STATES = {
    "usual": (SEED, STEP),
    "zero": (0, 0),
    "seed_of_more_than_32_bits": (2**40 + 7, 1),
    "negative_seed": (-5, 1),
    "largest_step_of_a_counter": (SEED, 2**32 - 1),
    "step_of_more_than_32_bits": (SEED, 2**33 + 7),
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES.keys())
@pytest.mark.parametrize(
    "first_image", [0, 17, 2**31 - 1, 2**32 - 1], ids=["first", "odd", "int32s_end", "uint32s_end"]
)
def test_kernel_and_twin_draw_the_same_cells(draw, state, first_image):
    expected = sample_cells_twin(torch.tensor((*state, first_image)), 2, 30, 13)
    assert all(
        torch.equal(ours, twins) for ours, twins in zip(draw(2, 30, 13, first_image, state), expected, strict=True)
    )


def test_two_halves_of_a_batch_draw_the_cells_of_the_whole(draw):
    halves = [draw(num_images=4, first_image=first)[0] for first in (0, 4)]
    assert torch.equal(torch.cat(halves), draw(num_images=8)[0])


def test_same_state_draws_the_same_cells(draw):
    assert torch.equal(draw()[0], draw()[0])


@pytest.mark.parametrize("state", [(SEED, STEP + 1), (SEED + 1, STEP)], ids=["another_step", "another_seed"])
def test_other_states_draw_other_cells(draw, state):
    # Two draws of 7 of 20 agree by chance with 1 / C(20, 7) = 1e-5 per image; here all images have to differ.
    assert (draw(state=state)[0] != draw()[0]).any(dim=1).all()


def test_images_of_a_batch_draw_different_cells(draw):
    assert len({tuple(row) for row in draw()[0].tolist()}) == 8


# The kernel draws what the twin draws, bit for bit, so these statistics are its own as well.


def test_each_cell_is_equally_likely():
    images, cells, samples = 20000, 240, 100
    positions, _ = sample_cells_twin(torch.tensor((SEED, STEP, 0)), images, cells, samples)
    counts = torch.bincount(positions.flatten(), minlength=cells)
    # A cell is in a draw with p = 100/240, images are independent: binomial, sigma^2 = images p (1 - p), and close to
    # normal. |z| > 5 has probability 5.7e-7; for one of 240 cells 1.4e-4. The seed is fixed: it passes or it doesn't.
    share = samples / cells
    z = (counts - images * share) / math.sqrt(images * share * (1 - share))
    assert z.abs().max() < 5


def test_each_pair_of_cells_is_equally_likely():
    images, cells, samples = 20000, 240, 100
    positions, _ = sample_cells_twin(torch.tensor((SEED, STEP, 0)), images, cells, samples)
    chosen = torch.zeros(images, cells).scatter_(1, positions.long(), 1.0)
    together = (chosen.T @ chosen)[torch.triu(torch.ones(cells, cells), diagonal=1).bool()]
    # p = (100 x 99) / (240 x 239), 28680 pairs: |z| > 5.5 has probability 3.8e-8 for a pair, 1.1e-3 for one of them.
    share = samples * (samples - 1) / (cells * (cells - 1))
    z = (together - images * share) / math.sqrt(images * share * (1 - share))
    assert z.abs().max() < 5.5


def test_given_positions_are_chained_cell_by_cell():
    positions = torch.tensor([[4, 1, 4, 0, 4, 1], [5, 4, 3, 2, 1, 0]], dtype=torch.int32)
    slots, next_slots = link_slots(positions, 6)
    assert slots.tolist() == [[3, 1, -1, -1, 0, -1], [5, 4, 3, 2, 1, 0]]
    assert next_slots.tolist() == [[2, 5, 4, -1, -1, -1], [-1] * 6]
    assert slots.dtype == next_slots.dtype == torch.int16


def test_operators_describe_themselves(backend, device):
    state = torch.tensor((SEED, STEP, 1), device=device)
    torch.library.opcheck(sample_cells, (state, 2, 6, 4))
    torch.library.opcheck(link_slots, (torch.tensor([[1, 1, 0]], dtype=torch.int32, device=device), 6))
