"""Behind the projection: our kernel, and the same lines of PyTorch, eager and compiled. Layouts make no difference."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch_config

from kernels.benchmark.shapes import DTYPES, TABLE_ENTRIES, Implementation, Shape
from kernels.embed_norm import embed_norm, embed_norm_twin
from kernels.sampling import sample_cells

HIDDEN_SIZE = 768
EPS = 1e-12
DROPOUT = 0.1


def fewest_bytes(shape: Shape, direction: str) -> int:
    """Forward: tokens in, tokens out. Backward: tokens and their gradient in, a gradient out. Tables counted whole."""
    size = DTYPES[shape.dtype].itemsize
    tokens = shape.batch * shape.samples * HIDDEN_SIZE * size
    parameters = (2 * TABLE_ENTRIES + 3) * HIDDEN_SIZE * size
    forward, backward = 2 * tokens + parameters, 3 * tokens + 2 * parameters
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


@dataclass
class Inputs:
    """Projected tokens (B, S, D), bias, two tables, LayerNorm's weight and shift, and the gradient of the result."""

    shape: Shape
    device: str
    seed: int
    leaves: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor] = field(init=False)
    d_tokens: Tensor = field(init=False)
    state: Tensor = field(init=False)
    draw: tuple[Tensor, Tensor] = field(init=False)

    def __post_init__(self) -> None:
        shape, noise = self.shape, torch.Generator(self.device).manual_seed(self.seed)
        normal = partial(torch.randn, generator=noise, device=self.device, dtype=DTYPES[shape.dtype])
        tokens, table = (shape.batch, shape.samples, HIDDEN_SIZE), (TABLE_ENTRIES, HIDDEN_SIZE)
        shapes = (tokens, (HIDDEN_SIZE,), table, table, (HIDDEN_SIZE,), (HIDDEN_SIZE,))
        self.leaves = tuple(normal(each).requires_grad_() for each in shapes)  # type: ignore[assignment]
        self.d_tokens = normal(tokens)
        self.state = torch.tensor([self.seed, 0], device=self.device)
        self.draw = sample_cells(self.state, shape.batch, shape.cells, shape.samples, 0)

    def finished(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return gradients


def ours(inputs: Inputs, drawn: Tensor | None) -> tuple[Tensor, None]:
    grid = (inputs.shape.rows, inputs.shape.columns)
    return embed_norm(*inputs.leaves, inputs.draw, grid, eps=EPS, dropout=DROPOUT, state=inputs.state), None


def _lines(
    projected: Tensor,
    bias: Tensor,
    row_table: Tensor,
    column_table: Tensor,
    weight: Tensor,
    shift: Tensor,
    positions: Tensor,
    columns: int,
    dropout: float,
) -> Tensor:
    embedding = F.embedding(positions // columns, row_table) + F.embedding(positions % columns, column_table)
    y = projected + (bias + embedding)
    return F.dropout(F.layer_norm(y, y.shape[-1:], weight, shift, EPS), dropout)


def implementations(shape: Shape) -> dict[str, Implementation]:
    functorch_config.donated_buffer = False  # one forward pass serves many backward passes that are timed
    compiled = torch.compile(_lines, fullgraph=True, dynamic=False)

    def lines(function: Any) -> Implementation:
        return Implementation(
            lambda inputs, drawn: (function(*inputs.leaves, inputs.draw[0], shape.columns, DROPOUT), None)
        )

    return {"ours": Implementation(ours), "original": lines(_lines), "compiled": lines(compiled)}


def check(implementation: Implementation, inputs: Inputs) -> None:
    """Compare with the twin in fp64 where nothing was dropped, and count what was.

    Raises:
        AssertionError: they differ by more than the arithmetic of the dtype explains.
    """
    tokens, _ = implementation.compute(inputs, None)
    wide = [leaf.detach().double() for leaf in inputs.leaves]
    projected, bias, row_table, column_table, weight, shift = wide
    exact = embed_norm_twin(
        projected, bias, row_table, column_table, inputs.draw[0], inputs.shape.columns, weight, shift, EPS
    )
    kept = tokens != 0
    # Binomial: five standard deviations are passed once in two million.
    spread = 5 * (DROPOUT * (1 - DROPOUT) / tokens.numel()) ** 0.5
    assert abs(kept.double().mean().item() - (1 - DROPOUT)) < spread + 1e-4, "dropout keeps another share"
    error = ((tokens.double() - exact / (1 - DROPOUT)) * kept).norm() / exact.norm()
    u = torch.finfo(tokens.dtype).eps / 2
    assert error <= 4 * u, f"tokens are off by {error:.1e} of their norm"
    gradients = torch.autograd.grad(tokens, inputs.leaves, inputs.d_tokens)
    leaves = [leaf.requires_grad_() for leaf in wide]
    projected, bias, row_table, column_table, weight, shift = leaves
    exact = embed_norm_twin(
        *(projected, bias, row_table, column_table, inputs.draw[0], inputs.shape.columns, weight, shift, EPS),
        *(kept, DROPOUT),
    )
    for gradient, truth in zip(gradients, torch.autograd.grad(exact, leaves, inputs.d_tokens.double()), strict=True):
        error = (gradient.double() - truth).norm() / truth.norm()
        assert error <= 4 * u * inputs.shape.samples**0.5, f"a gradient is off by {error:.1e} of its norm"
