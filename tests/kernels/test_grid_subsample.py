import re

import pytest
import torch

from kernels.gather import gather_cells_twin
from kernels.grid_subsample import gather_cells, grid_subsample
from kernels.sampling import sample_cells
from tests.kernels.conftest import INTERPRETED

STATE = (9595, 3, 0)
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}


def inputs(
    batch=2, channels=3, rows=3, columns=4, dtype=torch.float32, table_dtype=None, table_rows=None, device="cpu"
):
    """Features and both tables, filled with noise."""
    noise = torch.Generator().manual_seed(0)
    features = torch.randn(batch, channels, rows, columns, generator=noise).to(device, dtype)
    row_table = torch.randn(table_rows or rows, channels, generator=noise).to(device, table_dtype or dtype)
    column_table = torch.randn(table_rows or columns, channels, generator=noise).to(device, table_dtype or dtype)
    return features, row_table, column_table


def noise_like(tensor, seed=1):
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(seed))
    return noise.to(tensor.device, tensor.dtype)


def rounded(values, dtype):
    """fp32 values as the kernels round them: to nearest, but Triton's interpreter drops the bits that bf16 lacks."""
    if INTERPRETED and dtype == torch.bfloat16:
        values = (values.contiguous().view(torch.int32) & -65536).view(torch.float32)
    return values.to(dtype)


def unit(dtype):
    """Largest relative error of one rounding: half the distance between neighbours, all of it if bits are dropped."""
    return torch.finfo(dtype).eps / (1 if INTERPRETED and dtype == torch.bfloat16 else 2)


def test_twin_is_the_written_out_loop():
    features, row_table, column_table = inputs()
    positions = torch.tensor([[11, 0, 5, 5], [3, 7, 2, 1]])
    tokens = gather_cells_twin(features, row_table, column_table, positions)
    for b in range(2):
        for s, cell in enumerate(positions[b].tolist()):
            row, column = divmod(cell, 4)
            for c in range(3):
                expected = features[b, c, row, column] + (row_table[row, c] + column_table[column, c])
                assert tokens[b, s, c] == expected


CASES = {
    "plain": {},
    "one_cell_grid": {"rows": 1, "columns": 1, "samples": 1},
    "one_row": {"rows": 1, "columns": 5, "samples": 2},
    "one_column": {"rows": 5, "columns": 1, "samples": 2},
    "wide_so_divmod_by_columns": {"rows": 2, "columns": 7, "samples": 5},
    "tall_so_divmod_by_columns": {"rows": 7, "columns": 2, "samples": 5},
    "all_cells_kept": {"samples": 12},
    "all_cells_of_more_than_a_tile": {"rows": 5, "columns": 8, "samples": 40},
    "one_sample": {"samples": 1},
    "one_image_one_channel": {"batch": 1, "channels": 1},
    "more_images_than_splits_and_odd": {"batch": 7},
    "odd_channels_so_no_aligned_rows": {"channels": 33},
    "channels_of_more_than_a_tile": {"channels": 144},
    "tokens_of_more_than_a_tile": {"rows": 6, "columns": 7, "samples": 21},
    "largest_grid": {"rows": 32, "columns": 32, "samples": 40, "batch": 1},
    "tables_longer_than_grid": {"table_rows": 25},
    "no_tables": {"tables": False},
    "no_tables_all_cells": {"tables": False, "samples": 12},
    "given_in_any_order": {"given": [[11, 0, 5], [3, 7, 2]]},
    "given_and_repeated": {"given": [[4, 4, 1, 4, 0, 4], [0, 1, 1, 2, 2, 2]]},
    "given_int64": {"given": [[2, 9], [9, 2]], "given_dtype": torch.int64},
    "strided": {"strided": True},
    "bf16": {"dtype": torch.bfloat16},
    "fp16": {"dtype": torch.float16},
    "bf16_all_cells": {"dtype": torch.bfloat16, "samples": 12},
    "fp16_features_fp32_tables": {"dtype": torch.float16, "table_dtype": torch.float32},
    "bf16_features_fp32_tables": {"dtype": torch.bfloat16, "table_dtype": torch.float32},
    "fp32_features_fp16_tables": {"table_dtype": torch.float16},
    "fp16_features_bf16_tables": {"dtype": torch.float16, "table_dtype": torch.bfloat16},
    "fp16_in_fp32_out": {"dtype": torch.float16, "out_dtype": torch.float32},
    "bf16_in_fp32_out": {"dtype": torch.bfloat16, "out_dtype": torch.float32},
    "fp32_in_fp16_out": {"out_dtype": torch.float16},
    "fp32_in_bf16_out": {"out_dtype": torch.bfloat16},
    "fp16_in_bf16_out": {"dtype": torch.float16, "out_dtype": torch.bfloat16},
    "bf16_in_fp16_out": {"dtype": torch.bfloat16, "out_dtype": torch.float16},
    "shared": {"grid_of": [0, 0, 1, 1]},
    "shared_unevenly_in_any_order": {"batch": 4, "grid_of": [2, 0, 2, 2, 3, 0, 2]},  # and nobody has grid 1
    "shared_by_more_than_a_tile": {
        "batch": 6,
        "rows": 5,
        "columns": 8,
        "samples": 20,
        "grid_of": [0, 1, 2, 3, 4, 5] * 3,
    },
    "shared_all_cells": {"samples": 12, "grid_of": [1, 0, 1]},
    "shared_all_cells_fp16": {"samples": 12, "dtype": torch.float16, "grid_of": [0, 0, 0, 1]},
    "shared_given_and_repeated": {"given": [[4, 4, 1], [0, 4, 4], [1, 2, 3]], "grid_of": [0, 0, 1]},
    "shared_given_fp16": {"given": [[4, 4, 1], [0, 4, 4], [1, 2, 3]], "dtype": torch.float16, "grid_of": [0, 0, 1]},
    "shared_no_tables": {"tables": False, "grid_of": [0, 1, 1]},
    "shared_bf16_fp32_tables": {"dtype": torch.bfloat16, "table_dtype": torch.float32, "grid_of": [0, 0, 0, 1, 1, 1]},
}


SLOW = {"largest_grid", "shared_by_more_than_a_tile", "shared_all_cells_fp16", "shared_given_fp16", "shared_no_tables"}


@pytest.fixture(
    params=[pytest.param(case, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, case in CASES.items()]
)
def case(request):
    usual = {
        "samples": 5,
        "out_dtype": None,
        "given": None,
        "given_dtype": torch.int32,
        "tables": True,
        "grid_of": None,
    }
    return usual | request.param


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_tokens_and_gradients_are_those_of_the_twin(case, layout, backend, device):
    names = ("samples", "out_dtype", "given", "given_dtype", "tables", "strided", "grid_of")
    samples, out_dtype, given, given_dtype, tables, strided, grid_of = (case.pop(name, None) for name in names)
    features, *both = inputs(**case, device=device)
    features = features.contiguous(memory_format=layout)
    if strided:
        features = features.repeat_interleave(2, dim=3)[..., ::2]
    leaves = [tensor.requires_grad_() for tensor in (features, *(both if tables else []))]
    row_table, column_table = both if tables else (None, None)
    if given is not None:
        given = torch.tensor(given, dtype=given_dtype, device=device)
        samples = given.shape[1]
    if grid_of is not None:
        grid_of = torch.tensor(grid_of, device=device)
    tokens, positions = grid_subsample(
        *(features, row_table, column_table, torch.tensor(STATE, device=device), samples),
        positions=given,
        grid_of=grid_of,
        out_dtype=out_dtype,
    )
    assert tokens.is_contiguous()
    assert tokens.dtype == (out_dtype or features.dtype)
    assert positions.dtype == torch.int32
    if given is not None:
        assert torch.equal(positions, given.int())

    # Exactly: a token is two fp32 additions in a given order and one rounding.
    expected = gather_cells_twin(features, row_table, column_table, positions, torch.float32, grid_of)
    assert torch.equal(tokens, rounded(expected, tokens.dtype))

    d_tokens = noise_like(tokens)
    gradients = torch.autograd.grad(tokens, leaves, d_tokens)
    assert gradients[0].is_contiguous(memory_format=torch.contiguous_format if strided else layout)
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    tokens = gather_cells_twin(*wide, *([] if tables else [None, None]), positions, None, grid_of)
    exact = torch.autograd.grad(tokens, wide, d_tokens.double(), retain_graph=True)
    sizes = torch.autograd.grad(tokens, wide, d_tokens.abs().double())
    # A gradient is a sum of n terms: one of each sequence for a cell that was drawn, at most B * S for an entry of a
    # table. In fp32 (unit u = 2^-24) and in any order it errs by at most (n - 1) u times the sum of their sizes, and
    # once more by rounding. The PyTorch path adds a repeated cell's terms in the features' dtype, so there u is that
    # dtype's, unless sequences share a grid.
    sharing = 1 if grid_of is None else int(grid_of.bincount().max())
    terms = [sharing * (samples if given is not None else 1)] + [len(tokens) * samples] * 2
    for gradient, leaf, truth, size, n in zip(gradients, leaves, exact, sizes, terms, strict=False):
        u = unit(leaf.dtype) if backend == "torch" and leaf is features and grid_of is None else 2**-24
        bound = (n - 1) * u * size + unit(leaf.dtype) * (truth.abs() + (n - 1) * u * size)
        assert gradient.dtype == leaf.dtype
        assert ((gradient.double() - truth).abs() <= bound).all()


def test_cells_are_those_that_sample_cells_draws(backend, device):
    features, row_table, column_table = inputs(device=device)
    state = torch.tensor((9595, 3, 6), device=device)
    _, positions = grid_subsample(features, row_table, column_table, state, 5)
    assert torch.equal(positions, sample_cells(state, 2, 12, 5)[0])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("samples", [5, 12], ids=["drawn", "all_cells"])
def test_sequences_that_share_a_grid_get_what_copies_of_it_would_give(samples, layout, backend, device):
    """The same tokens bit for bit; and the gradient of a grid is the sum of its copies', from the first to the last."""
    features, row_table, column_table = (leaf.requires_grad_() for leaf in inputs(device=device))
    grid_of, state = torch.tensor([1, 0, 1, 1], device=device), torch.tensor(STATE, device=device)
    grids = features.detach().contiguous(memory_format=layout).requires_grad_()
    copies = grids.detach()[grid_of].contiguous(memory_format=layout).requires_grad_()
    shared, positions = grid_subsample(grids, row_table, column_table, state, samples, grid_of=grid_of)
    alone, same = grid_subsample(copies, row_table, column_table, state, samples)
    assert torch.equal(positions, same)
    assert torch.equal(shared, alone)
    gradient = noise_like(shared)
    of_copies, *_ = torch.autograd.grad(alone, copies, gradient)
    of_grids, *_ = torch.autograd.grad(shared, grids, gradient)
    assert torch.equal(of_grids[0], of_copies[1])
    assert torch.equal(of_grids[1], of_copies[0] + of_copies[2] + of_copies[3])


def test_all_cells_come_in_order_and_need_no_state(backend, device):
    features, *_ = inputs(device=device)
    tokens, positions = grid_subsample(features, None, None, None, 12)
    assert positions.tolist() == [list(range(12))] * 2
    assert torch.equal(tokens, features.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_gradients_of_features_and_both_tables_in_fp64(layout):
    features, row_table, column_table = inputs(dtype=torch.float64, table_rows=6)
    features = features.contiguous(memory_format=layout)
    leaves = [tensor.requires_grad_() for tensor in (features, row_table, column_table)]
    state, positions = torch.tensor(STATE), torch.tensor([[4, 4, 0], [1, 11, 5]])
    assert torch.autograd.gradcheck(lambda *tensors: grid_subsample(*tensors, state, 5)[0], leaves)
    assert torch.autograd.gradcheck(lambda *tensors: grid_subsample(*tensors, state, 12)[0], leaves)
    grid_of = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda *tensors: grid_subsample(*tensors, state, 5, grid_of=grid_of)[0], leaves)
    assert torch.autograd.gradcheck(lambda *tensors: gather_cells_twin(*tensors, positions), leaves)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("wanted", [[0], [1, 2], [1]], ids=["features", "tables", "one_table"])
def test_only_gradients_that_are_wanted_are_made(wanted, layout, backend, device):
    state = torch.tensor(STATE, device=device)

    def gradients(which):
        leaves = list(inputs(device=device))
        leaves[0] = leaves[0].contiguous(memory_format=layout)
        for number in which:
            leaves[number].requires_grad_()
        tokens, _ = grid_subsample(*leaves, state, 5)
        tokens.backward(noise_like(tokens))
        return [leaf.grad for leaf in leaves]

    everything = gradients([0, 1, 2])
    for number, gradient in enumerate(gradients(wanted)):
        assert torch.equal(gradient, everything[number]) if number in wanted else gradient is None


def sampled_twice(device, layout, batch=5, channels=40, samples=17, grid_of=None):
    """Tokens and all gradients, as a flat list, of one call."""
    leaves = list(inputs(batch, channels, 5, 8, device=device))
    leaves[0] = leaves[0].contiguous(memory_format=layout)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    grid_of = None if grid_of is None else torch.tensor(grid_of, device=device)
    tokens, positions = grid_subsample(*leaves, torch.tensor(STATE, device=device), samples, grid_of=grid_of)
    return [tokens.detach(), positions, *torch.autograd.grad(tokens, leaves, noise_like(tokens))]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(
    "grid_of", [None, pytest.param([0, 1, 3, 3, 3, 4], marks=pytest.mark.slow)], ids=["alone", "shared"]
)
@pytest.mark.parametrize("samples", [17, 40], ids=["drawn", "all_cells"])
def test_every_element_is_written(samples, grid_of, layout, backend, device):
    """torch's deterministic mode fills new tensors with NaN, or the largest integer: what isn't written shows."""
    expected = sampled_twice(device, layout, samples=samples, grid_of=grid_of)
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3, device=device).isnan().all()
        poisoned = sampled_twice(device, layout, samples=samples, grid_of=grid_of)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(expected, poisoned, strict=True))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("sharing", [None, pytest.param([0, 0, 1, 0], marks=pytest.mark.slow)], ids=["alone", "shared"])
def test_same_inputs_give_the_same_bits(sharing, layout, backend, device):
    shape = {"batch": 64, "channels": 2048} if device == "cuda" else {"batch": 2, "channels": 8}
    shape["grid_of"] = sharing
    first, *others = (sampled_twice(device, layout, **shape) for _ in range(4 if device == "cuda" else 2))
    for other in others:
        assert all(torch.equal(one, again) for one, again in zip(first, other, strict=True))


ARGUMENTS = {
    "drawn": {},
    "all_cells": {"positions": None, "slots": None, "num_samples": 12},
    "given": {"next_slots": [[-1, 2, -1], [-1, -1, -1]]},
    "shared": {"grid_of": [0, 0], "sequences": [0, 1], "first": [0, 2, 2]},
    "no_tables": {"row_table": None, "column_table": None},
    "fp32_out": {"out_dtype": torch.float32},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("change", ARGUMENTS.values(), ids=ARGUMENTS.keys())
def test_operator_describes_itself(change, layout, backend, device):
    """Schema, fake tensors, autograd registration, and the same under AOT dispatch with dynamic shapes."""
    features, row_table, column_table = inputs(dtype=torch.float16, device=device)
    arguments = {
        "features": features.contiguous(memory_format=layout).requires_grad_(),
        "row_table": row_table.requires_grad_(),
        "column_table": column_table.requires_grad_(),
        "positions": torch.tensor([[1, 4, 5], [0, 6, 11]], dtype=torch.int32, device=device),
        "slots": None,
        "next_slots": None,
        "grid_of": None,
        "sequences": None,
        "first": None,
        "num_samples": 3,
        "out_dtype": torch.float16,
    }
    slots = torch.full((2, 12), -1, dtype=torch.int16, device=device)
    arguments["slots"] = slots.scatter_(
        1, arguments["positions"].long(), torch.arange(3, dtype=torch.int16, device=device).expand(2, 3)
    )
    dtypes = {"next_slots": torch.int16, "grid_of": torch.int32, "sequences": torch.int32, "first": torch.int32}
    maps = {name: torch.tensor(change[name], dtype=dtypes[name], device=device) for name in dtypes.keys() & change}
    change = change | maps
    torch.library.opcheck(gather_cells, tuple((arguments | change).values()))


def test_compiles_to_one_graph_for_all_steps_and_images(backend, device):
    graphs = []

    def counting(graph, _):
        graphs.append(graph)
        return graph.forward

    def step(features, row_table, column_table, state):
        tokens, _ = grid_subsample(features * 2, row_table, column_table, state, 5)
        return tokens.relu()

    compiled = torch.compile(step, fullgraph=True, backend=counting)
    leaves = [leaf.requires_grad_() for leaf in inputs(device=device)]
    state = torch.tensor(STATE, device=device)
    for _ in range(3):
        tokens, expected = compiled(*leaves, state), step(*leaves, state)
        assert torch.equal(tokens, expected)
        gradients = [torch.autograd.grad(result.sum(), leaves) for result in (tokens, expected)]
        assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
        state += torch.tensor([0, 1, 2], device=device)
    assert len(graphs) == 1


@pytest.mark.parametrize("sharing", [None, [0, 1, 1]], ids=["alone", "shared"])
def test_compiles_with_its_backward_pass(sharing, backend, device):
    """Through AOT autograd, which traces the backward operator as well."""
    grid_of = None if sharing is None else torch.tensor(sharing, device=device)

    def step(features, row_table, column_table, state):
        return grid_subsample(features, row_table, column_table, state, 5, grid_of=grid_of)[0].square().sum()

    leaves = [leaf.requires_grad_() for leaf in inputs(device=device)]
    state = torch.tensor(STATE, device=device)
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(run(*leaves, state), leaves) for run in (compiled, step)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_autocast_keeps_the_dtypes_of_features_and_tables(backend, device):
    images = torch.randn(2, 3, 3, 4, generator=torch.Generator().manual_seed(0)).to(device)
    convolution = torch.nn.Conv2d(3, 8, 1).to(device)
    _, row_table, column_table = (leaf.requires_grad_() for leaf in inputs(channels=8, device=device))
    state = torch.tensor(STATE, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        tokens, _ = grid_subsample(convolution(images), row_table, column_table, state, 5)
        loss = torch.nn.functional.linear(tokens, torch.ones(4, 8, device=device)).float().sum()
    assert tokens.dtype == torch.bfloat16
    loss.backward()
    assert row_table.grad.dtype == column_table.grad.dtype == convolution.weight.grad.dtype == torch.float32
    assert row_table.grad.sum() == 2 * 5 * 4 * 8  # each token passes 4 ones per channel, exact in bf16


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["not_reentrant", "reentrant"])
def test_activation_checkpointing_draws_the_same_cells(use_reentrant, backend, device):
    state = torch.tensor(STATE, device=device)
    draws = []

    def tokens_of(features, row_table, column_table):
        tokens, positions = grid_subsample(features, row_table, column_table, state, 5)
        draws.append(positions)
        return tokens.square()

    results = []
    for run in (
        tokens_of,
        lambda *leaves: torch.utils.checkpoint.checkpoint(tokens_of, *leaves, use_reentrant=use_reentrant),
    ):
        leaves = [leaf.requires_grad_() for leaf in inputs(device=device)]
        run(*leaves).sum().backward()
        results.append([leaf.grad for leaf in leaves])
    assert len(draws) == 3  # once without, twice with checkpointing
    assert torch.equal(draws[1], draws[2])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def refused(change):
    """The arguments of a valid call with `change` made."""
    features, row_table, column_table = inputs()
    arguments = {
        "features": features,
        "row_table": row_table,
        "column_table": column_table,
        "state": torch.tensor(STATE),
        "num_samples": 5,
    }
    return {**arguments, **change}


ERRORS = {
    "three_dimensions": (
        {"features": torch.zeros(3, 3, 4)},
        "features must be (G, C, H, W), not of shape (3, 3, 4)",
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
    "float_state": ({"state": torch.zeros(3)}, "state must be int64 (3,), not torch.float32 (3,)"),
    "short_state": ({"state": torch.zeros(2, dtype=torch.int64)}, "state must be int64 (3,), not torch.int64 (2,)"),
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
    "dtype_of_table": (
        {"row_table": torch.zeros(3, 3).int()},
        "row_table must be fp16, bf16 or fp32, not torch.int32",
    ),
    "dtype_of_tokens": ({"out_dtype": torch.int8}, "out_dtype must be fp16, bf16 or fp32, not torch.int8"),
    "device_of_state": (
        {"state": torch.zeros(3, dtype=torch.int64, device="meta")},
        "state is on meta, the features are on cpu",
    ),
    "device_of_positions": (
        {"positions": torch.zeros(2, 5, dtype=torch.int64, device="meta")},
        "positions is on meta, the features are on cpu",
    ),
    "positions_outside": (
        {"positions": torch.tensor([[0, 1, 2, 3, 12]] * 2)},
        "positions from 0 to 12 given for a grid of cells 0 to 11",
    ),
    "positions_beyond_int32": (
        {"positions": torch.tensor([[0, 1, 2, 3, 2**32 + 4]] * 2)},
        "positions from 0 to 4294967300 given for a grid of cells 0 to 11",
    ),
    "shape_of_positions_of_shared_grids": (
        {"positions": torch.zeros(2, 5, dtype=torch.int32), "grid_of": torch.tensor([0, 1, 1])},
        "positions must be (3, 5), not (2, 5)",
    ),
    "two_dimensional_grid_of": (
        {"grid_of": torch.zeros(2, 1, dtype=torch.int32)},
        "grid_of must be int32 or int64 (B,), not torch.int32 (2, 1)",
    ),
    "float_grid_of": ({"grid_of": torch.zeros(2)}, "grid_of must be int32 or int64 (B,), not torch.float32 (2,)"),
    "no_such_grid": ({"grid_of": torch.tensor([0, 2, 1])}, "grid_of has 0 to 2, but the grids are 0 to 1"),
    "device_of_grid_of": (
        {"grid_of": torch.zeros(2, dtype=torch.int32, device="meta")},
        "grid_of is on meta, the features are on cpu",
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
