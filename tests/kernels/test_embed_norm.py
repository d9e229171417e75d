import re

import pytest
import torch

from kernels.embed_norm import embed_norm, embed_norm_twin, keep_mask
from kernels.sampling import sample_cells
from tests.kernels.conftest import INTERPRETED

GRID = (3, 5)
EPS = 1e-12
NAMES = ("projected", "bias", "row_table", "column_table", "weight", "shift")
U = 2.0**-24  # unit of fp32


def tensors(batch=3, samples=7, width=96, dtype=torch.float32, vector_dtype=None, device="cpu"):
    noise = torch.Generator().manual_seed(0)
    shapes = ((batch, samples, width), (width,), (GRID[0] + 2, width), (GRID[1], width), (width,), (width,))
    leaves = [torch.randn(shape, generator=noise).to(device, dtype) for shape in shapes]
    return [leaves[0], *(leaf.to(vector_dtype or dtype) for leaf in leaves[1:])]


def state(device="cpu"):
    return torch.tensor([9595, 3], device=device)


def draw_of(batch, samples, device="cpu"):
    return sample_cells(state(device), batch, GRID[0] * GRID[1], samples, 2) if samples < 15 else None


def unit(dtype):
    """Largest relative error of one rounding; Triton's interpreter drops the bits that bf16 lacks."""
    return torch.finfo(dtype).eps / (1 if INTERPRETED and dtype == torch.bfloat16 else 2)


CASES = {
    "plain": {},
    "dropout": {"dropout": 0.1},
    "all_cells": {"samples": 15},
    "all_cells_dropout": {"samples": 15, "dropout": 0.5},
    "width_of_a_power_of_two": {"width": 64},
    "odd_width": {"width": 33, "dropout": 0.1},
    "one_token": {"batch": 1, "samples": 1},
    "fp16": {"dtype": torch.float16, "dropout": 0.1},
    "bf16": {"dtype": torch.bfloat16, "dropout": 0.1},
    "fp16_with_fp32_vectors": {"dtype": torch.float16, "vector_dtype": torch.float32},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_output_and_gradients_are_those_of_the_twin(case, backend, device):
    dropout = case.get("dropout", 0.0)
    leaves = tensors(**{name: value for name, value in case.items() if name != "dropout"}, device=device)
    leaves = [leaf.requires_grad_() for leaf in leaves]
    batch, samples, width = leaves[0].shape
    draw = draw_of(batch, samples, device)
    out = embed_norm(*leaves, draw, GRID, eps=EPS, dropout=dropout, state=state(device), first_image=2)
    assert out.dtype == leaves[0].dtype
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(device, out.dtype)
    gradients = torch.autograd.grad(out, leaves, d_out)

    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    projected, bias, row_table, column_table, weight, shift = wide
    positions = draw[0] if draw else torch.arange(15, device=device).expand(batch, -1)
    keep = keep_mask(state(device), (batch, samples, width), dropout, 2) if dropout else None
    exact = embed_norm_twin(projected, bias, row_table, column_table, positions, 5, weight, shift, EPS, keep, dropout)
    truth = torch.autograd.grad(exact, wide, d_out.double())

    # Sums of D numbers err by at most D u times the sum of their sizes. With y's own three sums, of sizes up to `size`,
    # y - mean errs by (D + 4) u size, rstd by a relative (D + 4) u for its sum of squares and twice that of y - mean
    # over the standard deviation. So x errs by c u size rstd with c = 4 (D + 4), where |x| <= 2 size rstd was used.
    rounding, scale = unit(out.dtype), 1 / (1 - dropout)
    index = positions.long()
    with torch.no_grad():
        size = projected.abs() + bias.abs() + row_table.abs()[index // 5] + column_table.abs()[index % 5]
        size = size.amax(-1, keepdim=True)
        y = projected + bias + row_table[index // 5] + column_table[index % 5]
        rstd = (y.var(-1, unbiased=False, keepdim=True) + EPS).rsqrt()
        error_of_x = 4 * (width + 4) * U * size * rstd
        bound = scale * (error_of_x * weight.abs() + 2 * U * (2 * size * rstd * weight.abs() + shift.abs()))
        assert ((out.double() - exact).abs() <= bound + rounding * (exact.abs() + bound)).all()

        # d_y = (d - mean d - x mean(d x)) rstd with |d| up to G: each mean errs by D u G |x|max, plus that of x itself.
        x_size = 2 * size * rstd
        largest = scale * (d_out.double().abs() * weight.abs()).amax(-1, keepdim=True)
        error_of_d_y = rstd * largest * (1 + x_size) * (2 * (width + 4) * U * (1 + x_size) + 3 * error_of_x)
        error_of_d_y = error_of_d_y + rounding * (truth[0].abs() + error_of_d_y)  # the tables' sums are of rounded ones
        assert ((gradients[0].double() - truth[0]).abs() <= error_of_d_y).all()

        # The others are sums over tokens of what errs so, in any order: n terms, n u times the sum of their sizes.
        tokens = batch * samples
        of_y = error_of_d_y.sum((0, 1)) + tokens * U * truth[0].abs().sum((0, 1))
        kept = d_out.double().abs() * scale
        of_weight = (kept * (error_of_x + tokens * U * x_size)).sum((0, 1))
        of_shift = 2 * tokens * U * kept.sum((0, 1))
        bounds = {"bias": of_y, "row_table": of_y, "column_table": of_y, "weight": of_weight, "shift": of_shift}
        for name, gradient, leaf, expected in zip(NAMES[1:], gradients[1:], leaves[1:], truth[1:], strict=True):
            limit = bounds[name] + unit(leaf.dtype) * (expected.abs() + bounds[name])
            assert gradient.dtype == leaf.dtype
            assert ((gradient.double() - expected).abs() <= limit).all(), name


def test_kernel_drops_what_the_twin_drops(backend, device):
    leaves = tensors(device=device)
    out = embed_norm(*leaves, draw_of(3, 7, device), GRID, eps=EPS, dropout=0.3, state=state(device), first_image=2)
    assert torch.equal(out != 0, keep_mask(state(device), tuple(out.shape), 0.3, 2))


def test_two_halves_of_a_batch_drop_what_the_whole_drops():
    whole = keep_mask(state(), (4, 7, 96), 0.3, 10)
    assert torch.equal(torch.cat([keep_mask(state(), (2, 7, 96), 0.3, first) for first in (10, 12)]), whole)
    assert not torch.equal(whole[0], whole[1])
    # 2688 elements, kept with p = 0.7: |z| > 4.5 has probability 7e-6. The seed is fixed.
    assert abs(whole.double().sum() - 0.7 * whole.numel()) < 4.5 * (0.21 * whole.numel()) ** 0.5


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_in_fp64(dropout):
    leaves = [leaf.requires_grad_() for leaf in tensors(batch=2, samples=3, width=8, dtype=torch.float64)]
    call = lambda *leaves: embed_norm(*leaves, draw_of(2, 3), GRID, eps=EPS, dropout=dropout, state=state())  # noqa: E731
    assert torch.autograd.gradcheck(call, leaves)


def results(device):
    leaves = [leaf.requires_grad_() for leaf in tensors(device=device)]
    out = embed_norm(*leaves, draw_of(3, 7, device), GRID, eps=EPS, dropout=0.3, state=state(device))
    return [out, *torch.autograd.grad(out.square().sum(), leaves)]


def test_every_element_is_written_and_bits_repeat(backend, device):
    expected = results(device)
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    try:
        poisoned = results(device)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(one, other) for one, other in zip(expected, poisoned, strict=True))


def test_compiles_to_one_graph_with_its_backward_pass(backend, device):
    draw = draw_of(3, 7, device)

    def step(*leaves):
        return embed_norm(*leaves, draw, GRID, eps=EPS, dropout=0.3, state=state(device)).square().sum()

    leaves = [leaf.requires_grad_() for leaf in tensors(device=device)]
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    gradients = [torch.autograd.grad(run(*leaves), leaves) for run in (compiled, step)]
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


ERRORS = {
    "two_dimensions": ({"projected": torch.zeros(3, 7)}, "projected must be (B, S, D), not of shape (3, 7)"),
    "too_wide": ({"projected": torch.zeros(1, 1, 4097)}, "projected has a width of 4097, more than 4096"),
    "bias": ({"bias": torch.zeros(95)}, "bias must be (96,) as the tokens are wide, not (95,)"),
    "weight": ({"weight": torch.zeros(1, 96)}, "weight must be (96,) as the tokens are wide, not (1, 96)"),
    "row_table": ({"row_table": torch.zeros(2, 96)}, "row_table must be (3 or more, 96), not (2, 96)"),
    "column_table": ({"column_table": torch.zeros(5, 9)}, "column_table must be (5 or more, 96), not (5, 9)"),
    "no_draw": ({"draw": None}, "7 tokens of a grid of 3 x 5 = 15 cells need a draw"),
    "other_draw": ({"draw": draw_of(3, 6)}, "the draw must be (3, 7) and (3, 15), not (3, 6) and (3, 15)"),
    "dropout": ({"dropout": 1.0}, "dropout must be from 0 to less than 1, not 1.0"),
    "no_state": ({"dropout": 0.5, "state": None}, "dropout needs a state, int64 (2,)"),
}


@pytest.mark.parametrize(("change", "message"), ERRORS.values(), ids=ERRORS.keys())
def test_wrong_arguments_are_refused(change, message):
    arguments = dict(zip(NAMES, tensors(), strict=True)) | {"draw": draw_of(3, 7), "grid": GRID, "eps": EPS}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        embed_norm(**(arguments | change))
