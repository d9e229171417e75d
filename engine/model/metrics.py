"""What a model says of a batch, beside its loss."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class MetricSums(NamedTuple):
    """Sums over a batch and the counts that they are of, in one tensor, so that adding them up takes one kernel."""

    names: tuple[str, ...]
    values: Tensor  # (names, 2): sum, count; fp32, without a gradient

    @classmethod
    @torch.no_grad()
    def of(cls, pairs: Mapping[str, tuple[Tensor, Tensor]]) -> "MetricSums":
        """Pairs (sum, count) of fp32 numbers on the device."""
        values = torch.stack([number for pair in pairs.values() for number in pair])
        return cls(tuple(pairs), values.detach().view(-1, 2))

    def by_name(self) -> dict[str, Tensor]:
        """Each (sum, count)."""
        return dict(zip(self.names, self.values, strict=True))


NO_METRICS = MetricSums((), torch.empty(0, 2))
