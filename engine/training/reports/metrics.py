"""Sums on the device, added over batches and ranks, read only when they are reported."""

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from engine.errors import UserError
from engine.model.metrics import MetricSums
from engine.provenance.record import now


class Metrics:
    """Named means. Each is a (sum, count) pair in float64, so that a mean over ranks and batches is exact."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.sums: dict[tuple[str, ...], Tensor] = {}  # (names, 2) of those that come together

    def add(self, sums: MetricSums) -> None:
        if not sums.names:
            return
        if sums.names not in self.sums:  # go on from what a checkpoint had of each
            zero = torch.zeros(1, 2, dtype=torch.float64, device=self.device)
            self.sums[sums.names] = torch.cat([self.sums.pop((name,), zero) for name in sums.names])
        self.sums[sums.names] += sums.values

    def count(self, name: str, number: int) -> None:
        """Add a number that the host knows."""
        self.add(MetricSums((name,), torch.tensor([[number, 1.0]], device=self.device)))

    def state_dict(self) -> dict[str, Tensor]:
        """(sum, count) by name, on the CPU."""
        state: dict[str, Tensor] = {}
        for names, sums in self.sums.items():
            for name, pair in zip(names, sums.cpu(), strict=True):
                state[name] = state[name] + pair if name in state else pair.clone()
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.sums = {(name,): pair[None].to(self.device, copy=True) for name, pair in state.items()}

    def totals(self) -> dict[str, tuple[float, float]]:
        """Sums and counts over all ranks, which all have to call it; the local sums start anew."""
        state, self.sums = self.state_dict(), {}
        names = self._names_of_all_ranks(state)
        if not names:
            return {}
        zero = torch.zeros(2, dtype=torch.float64)
        stacked = torch.stack([state.get(name, zero) for name in names])
        if dist.is_initialized():
            stacked = stacked.to(self.device)
            dist.all_reduce(stacked)
        return {name: (row[0], row[1]) for name, row in zip(names, stacked.tolist(), strict=True)}

    def means(self) -> dict[str, float]:
        """Means over all ranks, which all have to call it; a mean of nothing is left out."""
        return {name: total / count for name, (total, count) in self.totals().items() if count}

    def _names_of_all_ranks(self, state: Mapping[str, Tensor]) -> list[str]:
        """A rank without a batch in validation has no names of its own."""
        names = list(state)
        if dist.is_initialized():
            gathered: list[list[str]] = [[] for _ in range(dist.get_world_size())]
            dist.all_gather_object(gathered, names)
            names = list(dict.fromkeys(name for part in gathered for name in part))
        return names


class MetricsFile:
    """One JSON object a line, appended and flushed, with its time; does nothing on other ranks than 0."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.began = path if rank == 0 else None, time.monotonic()

    def write(self, record: Mapping[str, Any]) -> None:
        if self.path is not None:
            times = {"time": now(), "seconds": round(time.monotonic() - self.began, 3)}
            try:
                with self.path.open("a") as file:
                    file.write(json.dumps({**record, **times}) + "\n")
            except OSError as error:
                raise UserError(
                    f"{self.path} can't be written ({error.strerror}); free space or change --output"
                ) from None

    def read(self) -> list[dict[str, Any]]:
        """All records so far; none on other ranks than 0."""
        if self.path is None or not self.path.exists():
            return []
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def size(self) -> int:
        """Bytes so far; 0 on other ranks than 0."""
        return self.path.stat().st_size if self.path is not None and self.path.exists() else 0

    def truncate(self, size: int, step: int) -> None:
        """Drop what was written behind the first `size` bytes.

        A validation at `step` that begins there stays: it is of the checkpoint that had so many, which comes first.
        """
        if self.path is not None and self.size() > size:
            with self.path.open("rb") as file:
                file.seek(size)
                line = file.readline()
            os.truncate(self.path, size + len(line) * is_validation(line, step))


def is_validation(line: bytes, step: int) -> bool:
    """Whether a line of metrics.jsonl is whole, and is a validation at this step."""
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return line.endswith(b"\n") and (record["kind"], record["step"]) == ("valid", step)
