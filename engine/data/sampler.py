"""Batches of one aspect-ratio group each, dealt out to the ranks.

Batches are formed over the whole data set and then dealt: batch n goes to rank n mod world size. So the samples of
an optimiser step depend on the seed and the global batch size, not on the number of ranks.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from torch.utils.data import Sampler


class Sample(NamedTuple):
    """What the data set is asked for. Every random draw for it follows from seed, epoch and position."""

    index: int  # type: ignore[assignment]  # in the data set; hides tuple.index
    position: int  # in the epoch, over all ranks
    epoch: int


def grouped_batches(order: np.ndarray, groups: np.ndarray, batch_size: int) -> np.ndarray:
    """Walk `order` and emit a batch whenever a group has collected one; indices, shape (batches, batch_size).

    There are len(order) // batch_size batches. What is missing at the end is made from the left-overs, the fullest
    group first, each filled up with the first samples of its group, as in the original.
    """
    full, finished_at, leftovers = [], [], []
    groups_in_order = groups[order]
    for group in np.unique(groups_in_order):
        where = np.flatnonzero(groups_in_order == group)
        complete = len(where) // batch_size * batch_size
        full.append(order[where[:complete]].reshape(-1, batch_size))
        finished_at.append(where[:complete].reshape(-1, batch_size)[:, -1])
        if complete < len(where):
            leftovers.append((where[complete:], where))
    if not full:
        return np.empty((0, batch_size), dtype=np.int64)
    batches = np.concatenate(full)[np.argsort(np.concatenate(finished_at))]

    lacking = len(order) // batch_size - len(batches)
    leftovers.sort(key=lambda parts: (-len(parts[0]), parts[0][0]))
    filled = [order[np.concatenate([rest, np.resize(members, batch_size - len(rest))])] for rest, members in leftovers]
    return np.concatenate([batches, *(batch[None] for batch in filled[: max(0, lacking)])])


def exhaustive_batches(groups: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Every index exactly once, by group and in order; the last batch of a group may be smaller."""
    batches: list[np.ndarray] = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        batches.extend(np.split(members, range(batch_size, len(members), batch_size)))
    return batches


class DealtSampler(Sampler[list[Sample]]):
    """This rank's share of all batches. While it is paused it has none, so that workers can start without work."""

    paused = False

    def __iter__(self) -> Iterator[list[Sample]]:
        return iter(()) if self.paused else self.batches()

    def batches(self) -> Iterator[list[Sample]]:
        raise NotImplementedError


class TrainingSampler(DealtSampler):
    """Grouped batches in a new order each epoch; every rank gets the same number of them."""

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        same_order_each_epoch: bool = False,
    ) -> None:
        self.groups = np.asarray(groups)
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.same_order_each_epoch = same_order_each_epoch
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.groups) // self.batch_size // self.world_size

    def batches(self) -> Iterator[list[Sample]]:
        shuffle = np.random.default_rng([self.seed, 0 if self.same_order_each_epoch else self.epoch])
        batches = grouped_batches(shuffle.permutation(len(self.groups)), self.groups, self.batch_size)
        for number in range(self.rank, len(self) * self.world_size, self.world_size):
            first = number * self.batch_size
            yield [Sample(int(i), first + slot, self.epoch) for slot, i in enumerate(batches[number])]


class EvaluationSampler(DealtSampler):
    """Every sample once over all ranks. Positions don't depend on batch size or ranks, so neither do the draws."""

    def __init__(self, groups: Sequence[int], batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.all_batches = exhaustive_batches(np.asarray(groups), batch_size)
        self.firsts = np.cumsum([0] + [len(batch) for batch in self.all_batches])
        self.mine = range(rank, len(self.all_batches), world_size)

    def __len__(self) -> int:
        return len(self.mine)

    def batches(self) -> Iterator[list[Sample]]:
        for number in self.mine:
            first = int(self.firsts[number])
            yield [Sample(int(i), first + slot, 0) for slot, i in enumerate(self.all_batches[number])]
