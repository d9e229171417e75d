"""Sub-sampling: our operator, the original's way, and the best that PyTorch does without a kernel of ours."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch_config

from kernels.benchmark.shapes import DTYPES, LAYOUTS, TABLE_ENTRIES, Implementation, Shape
from kernels.gather import gather_cells_twin
from kernels.grid_subsample import grid_subsample


def fewest_bytes(shape: Shape, direction: str) -> int:
    """What has to be read and written at least, each byte once.

    In NCHW the whole plane has to be read: each 32 bytes of it hold a sampled cell. A cell that several sequences share
    is read once. The gradient of the features is dense. The tables are counted whole; positions, and what a way of
    computing needs in between, are not.
    """
    size = DTYPES[shape.dtype].itemsize
    plane, tokens = (
        cells * shape.channels * size for cells in (shape.grids * shape.cells, shape.batch * shape.samples)
    )
    tables = 2 * TABLE_ENTRIES * shape.channels * size
    forward = (min(tokens, plane) if shape.layout == "channels_last" else plane) + tables + tokens
    backward = tokens + plane + tables
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


@dataclass
class Inputs:
    """Features (G, C, H, W), two tables and the tokens' gradient (B, S, C), filled with noise."""

    shape: Shape
    device: str
    seed: int
    leaves: tuple[Tensor, Tensor, Tensor] = field(init=False)
    d_tokens: Tensor = field(init=False)
    state: Tensor = field(init=False)
    grid_of: Tensor | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        shape, noise = self.shape, torch.Generator(self.device).manual_seed(self.seed)
        normal = partial(torch.randn, generator=noise, device=self.device, dtype=DTYPES[shape.dtype])
        features = normal(shape.grids, shape.channels, shape.rows, shape.columns).relu()
        features = features.contiguous(memory_format=LAYOUTS[shape.layout])
        tables = (normal(TABLE_ENTRIES, shape.channels) for _ in range(2))
        self.leaves = tuple(leaf.requires_grad_() for leaf in (features, *tables))  # type: ignore[assignment]
        self.d_tokens = normal(shape.batch, shape.samples, shape.channels)
        self.state = torch.tensor([self.seed, 0, 0], device=self.device)
        if shape.sentences_per_image > 1:
            self.grid_of = torch.arange(shape.batch, device=self.device) // shape.sentences_per_image

    def for_each(self) -> tuple[Tensor, Tensor, Tensor]:
        """The leaves, with a grid of its own for each sequence: a copy, where they share one."""
        features, *tables = self.leaves
        if self.grid_of is not None:
            features = features.index_select(0, self.grid_of).contiguous(memory_format=LAYOUTS[self.shape.layout])
        row_table, column_table = tables
        return features, row_table, column_table

    def finished(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Gradients with that of the features in the features' layout, as the layer below wants it.

        The original's comes as a permuted view; putting it right is part of what it costs.
        """
        return gradients[0].contiguous(memory_format=LAYOUTS[self.shape.layout]), *gradients[1:]


def ours(inputs: Inputs, drawn: Tensor | None) -> tuple[Tensor, Tensor]:
    features, row_table, column_table = inputs.leaves
    return grid_subsample(features, row_table, column_table, inputs.state, inputs.shape.samples, grid_of=inputs.grid_of)


_host = np.random.RandomState(0)


def draw_on_host(images: int, cells: int, samples: int) -> Tensor:
    """Sampling as the original does it, image by image by NumPy: int64 (B, S)."""
    return torch.from_numpy(np.stack([_host.choice(cells, samples, replace=False) for _ in range(images)]))


def original_draw(inputs: Inputs) -> Tensor:
    """The index is expanded to the tokens' shape, then copied to the device."""
    shape = inputs.shape
    drawn = draw_on_host(shape.batch, shape.cells, shape.samples)
    return drawn.unsqueeze(-1).expand(-1, -1, shape.channels).to(inputs.device)


def original(inputs: Inputs, index: Tensor | None) -> tuple[Tensor, Tensor]:
    """The tables are added to all cells, in place on a permuted copy; then a gather by the expanded index."""
    features, row_table, column_table = inputs.for_each()
    rows, columns = inputs.shape.rows, inputs.shape.columns
    grid = features.permute(0, 2, 3, 1)
    embedding = row_table[:rows, None] + column_table[None, :columns]
    # In channels_last the permuted copy is none, and adding in place would change the features: as many bytes without.
    grid = grid + embedding if grid.is_contiguous() else grid.contiguous().add_(embedding)
    if inputs.shape.samples == rows * columns:  # the original's models without sub-sampling
        return grid.flatten(1, 2), torch.arange(rows * columns, device=features.device).expand(len(features), -1)
    assert index is not None
    return grid.flatten(1, 2).gather(1, index), index[..., 0]


def gather_first(features: Tensor, row_table: Tensor, column_table: Tensor, samples: int) -> tuple[Tensor, Tensor]:
    """Sampling on the device by random keys, a gather of the sampled cells alone, and the tables added to them."""
    batch, channels, rows, columns = features.shape
    cells = rows * columns
    if samples == cells:
        positions = torch.arange(cells, device=features.device).expand(batch, -1)
        embedding = (row_table[:rows, None] + column_table[None, :columns]).flatten(0, 1)
        return features.flatten(2).transpose(1, 2) + embedding, positions
    positions = torch.rand(batch, cells, device=features.device).topk(samples, sorted=False).indices
    if features.is_contiguous(memory_format=torch.channels_last):
        first = torch.arange(0, batch * cells, cells, device=features.device)[:, None]
        sampled = features.permute(0, 2, 3, 1).flatten(0, 2).index_select(0, (positions + first).flatten())
        sampled = sampled.view(batch, samples, channels)
    else:
        sampled = features.flatten(2).gather(2, positions[:, None].expand(-1, channels, -1)).transpose(1, 2)
    embedding = F.embedding(positions // columns, row_table) + F.embedding(positions % columns, column_table)
    return sampled + embedding, positions


def implementations(shape: Shape) -> dict[str, Implementation]:
    """All that are compared; the first is ours, the others are the baselines."""
    functorch_config.donated_buffer = False  # one forward pass serves many backward passes that are timed
    compiled = torch.compile(gather_first, fullgraph=True, dynamic=False)

    def on_the_device(function: Callable[..., tuple[Tensor, Tensor]]) -> Implementation:
        return Implementation(lambda inputs, drawn: function(*inputs.for_each(), inputs.shape.samples))

    return {
        "ours": Implementation(ours),
        "original": Implementation(original, original_draw if shape.samples < shape.cells else None),
        "gather_first": on_the_device(gather_first),
        "compiled": on_the_device(compiled),
    }


def check(implementation: Implementation, inputs: Inputs) -> None:
    """Compare tokens and gradients with those of the twin at the same cells, in fp64.

    Raises:
        AssertionError: they differ by more than the arithmetic of the dtype explains.
    """
    drawn = implementation.draw(inputs) if implementation.draw else None
    tokens, positions = implementation.compute(inputs, drawn)
    assert tokens.shape == inputs.d_tokens.shape, f"tokens of the shape {tuple(tokens.shape)}"
    assert (positions.sort(dim=1).values.diff(dim=1) > 0).all(), "a cell was drawn twice"
    gradients = torch.autograd.grad(tokens, inputs.leaves, inputs.d_tokens)
    features, row_table, column_table = wide = [leaf.detach().double().requires_grad_() for leaf in inputs.leaves]
    exact = gather_cells_twin(features, row_table, column_table, positions, None, inputs.grid_of)
    exact_gradients = torch.autograd.grad(exact, wide, inputs.d_tokens.double())
    # A token is two sums, so at most two roundings of up to |f| + |r| + |c|, and one more of the result.
    u = torch.finfo(tokens.dtype).eps / 2
    size = gather_cells_twin(features.abs(), row_table.abs(), column_table.abs(), positions, None, inputs.grid_of)
    assert ((tokens.double() - exact).abs() <= 3 * u * size).all(), "tokens differ from the twin's"
    if inputs.grid_of is None:
        assert torch.equal(gradients[0].double(), exact_gradients[0]), "the features' gradient differs from the twin's"
    # Baselines add up other gradients in the dtype itself, over n terms: of n u at worst, sqrt(n) u is usual.
    terms = positions.numel() / min(inputs.shape.rows, inputs.shape.columns)
    for n, gradient, truth in zip(
        (inputs.shape.sentences_per_image, terms, terms), gradients, exact_gradients, strict=True
    ):
        error = (gradient.double() - truth).norm() / truth.norm()
        assert error <= 2 * u * n**0.5, f"a gradient is off by {error:.1e} of its norm"
