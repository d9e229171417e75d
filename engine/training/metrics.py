"""Sums on the device, added over batches and ranks, read only when they are reported."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import UserError


class Metrics:
    """Named means. Each is a (sum, count) pair in float64, so that a mean over ranks and batches is exact."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[str, Tensor] = {}

    def add(self, pairs: Mapping[str, tuple[Tensor | float, Tensor | float]]) -> None:
        for name, pair in pairs.items():
            values = torch.stack([torch.as_tensor(v, device=self.device).detach().double() for v in pair])
            self.sums[name] = self.sums[name] + values if name in self.sums else values

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sums and counts over all ranks, which all have to call it; the local sums start anew."""
        names = self._names_of_all_ranks()
        if not names:
            return {}
        zero = torch.zeros(2, dtype=torch.float64, device=self.device)
        stacked = torch.stack([self.sums.get(name, zero) for name in names])
        if dist.is_initialized():
            dist.all_reduce(stacked)
        self.sums = {}
        return {name: (row[0], row[1]) for name, row in zip(names, stacked.tolist(), strict=True)}

    def means(self) -> dict[str, float]:
        """Means over all ranks, which all have to call it; a mean of nothing is left out."""
        return {name: total / count for name, (total, count) in self.totals().items() if count}

    def _names_of_all_ranks(self) -> list[str]:
        """A rank without a batch in validation has no names of its own."""
        names = list(self.sums)
        if dist.is_initialized():
            gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, names)
            names = list(dict.fromkeys(name for part in gathered for name in part))
        return names


class MetricsFile:
    """One JSON object a line, appended and flushed; does nothing on other ranks than 0."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path = path if rank == 0 else None

    def write(self, record: Mapping[str, Any]) -> None:
        if self.path is not None:
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps(record) + "\n")
            except OSError as error:
                raise UserError(
                    f"{self.path} can't be written ({error.strerror}); free space or change --output"
                ) from None

    def size(self) -> int:
        """Bytes so far; 0 on other ranks than 0."""
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def truncate(self, size: int) -> None:
        """Drop what was written behind the first `size` bytes."""
        if self.path is not None and self.size() > size:
            os.truncate(self.path, size)
