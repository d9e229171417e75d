"""What the files of the benchmark share: configurations, and what an implementation is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TABLE_ENTRIES = 25  # --pos_num of the recipes
CHANNELS = {"RN50": 2048, "RN50x4": 2560}
LAYOUTS = {"nchw": torch.contiguous_format, "channels_last": torch.channels_last}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Shape:
    """One configuration."""

    model: str
    layout: str
    dtype: str
    batch: int
    rows: int
    columns: int
    samples: int
    sentences_per_image: int = 1  # sequences that share a grid

    @property
    def grids(self) -> int:
        return self.batch // self.sentences_per_image

    @property
    def cells(self) -> int:
        return self.rows * self.columns

    @property
    def channels(self) -> int:
        return CHANNELS[self.model]


@dataclass(frozen=True)
class Implementation:
    """`compute` gives tokens (B, S, C) and what it drew. `draw` is what the host does before, if anything."""

    compute: Callable[[Any, Tensor | None], tuple[Tensor, Tensor]]
    draw: Callable[[Any], Tensor] | None = None
