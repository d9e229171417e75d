import math
import re

import pytest
import torch

from kernels.grid_subsample import grid_subsample
from kernels.sampling import sample_cells

STATE = torch.tensor([9595, 3])


def draw(state=STATE, num_images=8, num_cells=20, num_samples=7, first_image=0):
    return sample_cells(state, num_images, num_cells, num_samples, first_image)[0]


def inputs(batch=2, channels=3, rows=3, columns=4, dtype=torch.float32, table_rows=None):
    """Features and both tables, filled with noise."""
    noise = torch.Generator().manual_seed(0)
    features = torch.randn(batch, channels, rows, columns, generator=noise).to(dtype)
    row_table = torch.randn(table_rows or rows, channels, generator=noise).to(dtype)
    column_table = torch.randn(table_rows or columns, channels, generator=noise).to(dtype)
    return features, row_table, column_table


def written_out(features, row_table, column_table, positions, out_dtype):
    """The formula of the file, one number at a time: sums in fp32 or wider, rounded once."""
    wide = torch.promote_types(features.dtype, torch.float32)
    batch, channels, _, columns = features.shape
    tokens = torch.full((batch, positions.shape[1], channels), float("nan"), dtype=out_dtype)
    for b in range(batch):
        for s, cell in enumerate(positions[b].tolist()):
            row, column = divmod(cell, columns)
            for c in range(channels):
                table = row_table[row, c].to(wide) + column_table[column, c].to(wide)
                tokens[b, s, c] = (features[b, c, row, column].to(wide) + table).to(out_dtype)
    return tokens


@pytest.mark.parametrize(
    ("num_cells", "num_samples"),
    [(20, 7), (1, 1), (20, 20), (240, 100), (1024, 1)],
    ids=["some", "single_cell", "all_cells", "real_grid", "largest_grid"],
)
def test_drawn_cells_are_ascending_distinct_and_in_range(num_cells, num_samples):
    positions = draw(num_cells=num_cells, num_samples=num_samples)
    assert positions.shape == (8, num_samples)
    assert positions.dtype == torch.int32
    assert (positions.diff(dim=1) > 0).all()  # ascending and distinct
    assert positions.min() >= 0
    assert positions.max() < num_cells


def test_two_halves_of_a_batch_draw_the_cells_of_the_whole():
    halves = [draw(num_images=4, first_image=first) for first in (0, 4)]
    assert torch.equal(torch.cat(halves), draw(num_images=8))


def test_same_state_draws_the_same_cells():
    assert torch.equal(draw(), draw(STATE.clone()))


@pytest.mark.parametrize("state", [[9595, 4], [9596, 3]], ids=["another_step", "another_seed"])
def test_other_states_draw_other_cells(state):
    # Two draws of 7 of 20 agree by chance with 1 / C(20, 7) = 1e-5 per image; here all images have to differ.
    assert (draw(torch.tensor(state)) != draw()).any(dim=1).all()


def test_images_of_a_batch_draw_different_cells():
    assert len({tuple(row) for row in draw().tolist()}) == 8


def test_each_cell_is_equally_likely():
    images, cells, samples = 4000, 20, 7
    counts = torch.bincount(draw(num_images=images, num_cells=cells, num_samples=samples).flatten(), minlength=cells)
    # A cell is in a draw with p = 7/20, images are independent: binomial. |z| > 4.5 for one of 20 cells: 1.4e-4.
    share = samples / cells
    z = (counts - images * share) / math.sqrt(images * share * (1 - share))
    assert z.abs().max() < 4.5


def test_each_pair_of_cells_is_equally_likely():
    images, cells, samples = 4000, 8, 3
    chosen = torch.zeros(images, cells).scatter_(1, draw(STATE, images, cells, samples).long(), 1.0)
    together = (chosen.T @ chosen)[torch.triu(torch.ones(cells, cells), diagonal=1).bool()]
    # p = (3 x 2) / (8 x 7); |z| > 4.5 for one of 28 pairs: 1.9e-4.
    share = samples * (samples - 1) / (cells * (cells - 1))
    z = (together - images * share) / math.sqrt(images * share * (1 - share))
    assert z.abs().max() < 4.5


CASES = {
    "square": {},
    "one_cell_grid": {"rows": 1, "columns": 1, "samples": 1},
    "one_row": {"rows": 1, "columns": 5, "samples": 2},
    "one_column": {"rows": 5, "columns": 1, "samples": 2},
    "wide_so_divmod_by_columns": {"rows": 2, "columns": 7, "samples": 5},
    "tall_so_divmod_by_columns": {"rows": 7, "columns": 2, "samples": 5},
    "all_cells_kept": {"rows": 3, "columns": 4, "samples": 12},
    "one_sample": {"samples": 1},
    "one_image_one_channel": {"batch": 1, "channels": 1},
    "tables_longer_than_grid": {"table_rows": 25},
    "channels_last": {"memory_format": torch.channels_last},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "bf16_in_fp32_out": {"dtype": torch.bfloat16, "out_dtype": torch.float32},
    "fp32_in_fp16_out": {"out_dtype": torch.float16},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_forward_equals_the_written_out_loop(case):
    case = {"rows": 3, "columns": 4, "samples": 5, "batch": 2, "channels": 3, **case}
    samples, out_dtype = case.pop("samples"), case.pop("out_dtype", None)
    memory_format = case.pop("memory_format", torch.contiguous_format)
    features, row_table, column_table = inputs(**case)
    features = features.contiguous(memory_format=memory_format)
    tokens, positions = grid_subsample(features, row_table, column_table, STATE, samples, out_dtype=out_dtype)
    assert tokens.is_contiguous()
    assert tokens.dtype == (out_dtype or features.dtype)
    assert positions.dtype == torch.int32
    # Exactly: each number is two fp32 additions in the same order and one rounding.
    assert torch.equal(tokens, written_out(features, row_table, column_table, positions, tokens.dtype))


def test_cells_are_those_that_sample_positions_draws():
    features, row_table, column_table = inputs()
    _, positions = grid_subsample(features, row_table, column_table, STATE, 5, first_image=6)
    assert torch.equal(positions, sample_cells(STATE, 2, 12, 5, 6)[0])


def test_all_cells_come_in_order_and_need_no_state():
    features, *_ = inputs()
    tokens, positions = grid_subsample(features, None, None, None, 12)
    assert positions.tolist() == [list(range(12))] * 2
    assert torch.equal(tokens, features.flatten(2).transpose(1, 2))


def test_without_tables_the_features_pass_unchanged():
    features, *_ = inputs(dtype=torch.float16)
    tokens, positions = grid_subsample(features, None, None, STATE, 5)
    for b in range(2):
        assert torch.equal(tokens[b], features[b].flatten(1)[:, positions[b].long()].T)


def test_given_positions_are_taken_in_their_order():
    features, row_table, column_table = inputs()
    positions = torch.tensor([[11, 0, 5], [3, 7, 2]])
    tokens, returned = grid_subsample(features, row_table, column_table, None, 3, positions=positions)
    assert returned.tolist() == positions.tolist()
    assert returned.dtype == torch.int32
    assert torch.equal(tokens, written_out(features, row_table, column_table, positions, torch.float32))


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["nchw", "nhwc"])
def test_gradients_of_features_and_both_tables(memory_format):
    features, row_table, column_table = inputs(dtype=torch.float64, table_rows=6)
    features = features.contiguous(memory_format=memory_format)
    leaves = [tensor.requires_grad_() for tensor in (features, row_table, column_table)]
    assert torch.autograd.gradcheck(lambda *tensors: grid_subsample(*tensors, STATE, 5)[0], leaves)


def test_a_cell_sampled_twice_gets_both_gradients():
    features, *_ = inputs(batch=1)
    features.requires_grad_()
    tokens, _ = grid_subsample(features, None, None, None, 2, positions=torch.tensor([[4, 4]]))
    tokens.sum().backward()
    expected = torch.zeros(12)
    expected[4] = 2.0
    assert torch.equal(features.grad.flatten(2), expected.expand(1, 3, 12))


def test_cells_that_are_not_sampled_get_no_gradient():
    features, row_table, column_table = inputs()
    features.requires_grad_()
    tokens, positions = grid_subsample(features, row_table, column_table, STATE, 5)
    tokens.sum().backward()
    expected = torch.zeros(2, 12).scatter_(1, positions.long(), 1.0)
    assert torch.equal(features.grad.flatten(2), expected[:, None].expand(2, 3, 12))


def refused(change):
    """The arguments of a valid call with `change` made."""
    features, row_table, column_table = inputs()
    arguments = {
        "features": features,
        "row_table": row_table,
        "column_table": column_table,
        "state": STATE,
        "num_samples": 5,
    }
    return {**arguments, **change}


ERRORS = {
    "three_dimensions": (
        {"features": torch.zeros(3, 3, 4)},
        "features must be (B, C, H, W), not of shape (3, 3, 4)",
    ),
    "integers": ({"features": torch.zeros(2, 3, 3, 4).long()}, "features must be fp16, bf16 or fp32, not torch.int64"),
    "too_large_a_grid": ({"features": torch.zeros(1, 1, 33, 32)}, "a grid of 33 x 32 cells has more than 1024"),
    "no_sample": ({"num_samples": 0}, "0 samples asked of a grid of 3 x 4 = 12 cells"),
    "too_many_samples": ({"num_samples": 13}, "13 samples asked of a grid of 3 x 4 = 12 cells"),
    "row_table_alone": ({"column_table": None}, "row_table and column_table must both be given or both be None"),
    "column_table_alone": ({"row_table": None}, "row_table and column_table must both be given or both be None"),
    "channels_of_row_table": (
        {"row_table": torch.zeros(3, 2)},
        "row_table has the shape (3, 2), the features have 3 channels",
    ),
    "one_dimensional_table": (
        {"row_table": torch.zeros(3)},
        "row_table has the shape (3,), the features have 3 channels",
    ),
    "float_state": ({"state": torch.zeros(2)}, "state must be int64 (2,), not torch.float32 (2,)"),
    "short_state": ({"state": torch.zeros(1, dtype=torch.int64)}, "state must be int64 (2,), not torch.int64 (1,)"),
    "channels_of_column_table": (
        {"column_table": torch.zeros(4, 5)},
        "column_table has the shape (4, 5), the features have 3 channels",
    ),
    "short_row_table": ({"row_table": torch.zeros(2, 3)}, "row_table has 2 entries, the grid of 3 x 4 needs 3"),
    "short_column_table": (
        {"column_table": torch.zeros(3, 3)},
        "column_table has 3 entries, the grid of 3 x 4 needs 4",
    ),
    "another_device": (
        {"column_table": torch.zeros(4, 3, device="meta")},
        "column_table is on meta, the features are on cpu",
    ),
    "shape_of_positions": (
        {"positions": torch.zeros(2, 4, dtype=torch.int32)},
        "positions must be (2, 5), not (2, 4)",
    ),
    "float_positions": (
        {"positions": torch.zeros(2, 5)},
        "positions must be int32 or int64, not torch.float32",
    ),
    "no_state": ({"state": None}, "5 of 12 cells have to be drawn, but state is None"),
}


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_wrong_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        grid_subsample(**refused(change))


def test_the_arguments_that_errors_are_made_from_are_valid():
    tokens, _ = grid_subsample(**refused({}))
    assert tokens.shape == (2, 5, 3)
