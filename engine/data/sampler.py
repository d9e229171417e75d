"""Batches of one aspect-ratio group each, dealt out to the ranks.

Batches are formed over the whole data set and then dealt: batch n goes to rank n mod world size. So the samples of
an optimiser step depend on the seed and the global batch size, not on the number of ranks, which may even change in
the midst of an epoch.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CHUNK = 1 << 16  # samples that are grouped at a time, so that an epoch of millions starts at once


class Sample(NamedTuple):
    """What the data set is asked for. Every random draw for it follows from seed, epoch and position."""

    index: int  # type: ignore[assignment]  # in the data set; hides tuple.index
    position: int  # in the epoch, over all ranks
    epoch: int


@dataclass(frozen=True)
class Weights:
    """How often the sentences of each part of a split come in an epoch: 0.5 is half of them, 2 is each twice."""

    weights: tuple[float, ...]
    parts: np.ndarray  # which part each sentence belongs to, uint16 (N,)

    def counts(self) -> list[int]:
        """Samples of each part in an epoch."""
        sentences = np.bincount(self.parts, minlength=len(self.weights)).tolist()
        return [round(weight * count) for weight, count in zip(self.weights, sentences, strict=True)]

    @property
    def samples_per_epoch(self) -> int:
        return sum(self.counts())

    def samples(self, seed: int, epoch: int) -> np.ndarray:
        """The sentences of an epoch by number, int32 (sum of counts,).

        Each part is dealt out like a pack of cards that is shuffled anew whenever it is through, so over the epochs
        its sentences come equally often.
        """
        drawn = []
        for part, count in enumerate(self.counts()):
            members = np.flatnonzero(self.parts == part).astype(np.int32)
            first, last = epoch * count, (epoch + 1) * count
            rounds = range(first // max(1, len(members)), -(-last // max(1, len(members))))
            packs = [np.random.default_rng([seed, part, number]).permutation(members) for number in rounds]
            start = rounds.start * len(members)
            drawn.append(np.concatenate([members[:0], *packs])[first - start : last - start])
        return np.concatenate(drawn)


def grouped_batches(order: np.ndarray, groups: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Walk `order` and emit a batch whenever a group has collected one: indices, shape (batch_size,).

    There are len(order) // batch_size batches. What is missing at the end is made from the left-overs, the fullest
    group first, each filled up with the first samples of its group, as in the original.
    """
    count = 0
    waiting: dict[int, np.ndarray] = {}  # places in `order` of the samples that wait for a batch of their group
    first: dict[int, np.ndarray] = {}  # and of the first ones of each group
    for start in range(0, len(order), CHUNK):
        chunk_groups = groups[order[start : start + CHUNK]]
        complete: list[np.ndarray] = []
        for group in np.unique(chunk_groups).tolist():
            places = start + np.flatnonzero(chunk_groups == group)
            first[group] = np.concatenate([first.get(group, places[:0]), places[:batch_size]])[:batch_size]
            places = np.concatenate([waiting.get(group, places[:0]), places])
            whole = len(places) // batch_size * batch_size
            complete.extend(places[:whole].reshape(-1, batch_size))
            waiting[group] = places[whole:]
        complete.sort(key=lambda places: int(places[-1]))
        for places in complete:
            yield order[places]
        count += len(complete)
    leftovers = sorted(
        (group for group in waiting if len(waiting[group])), key=lambda g: (-len(waiting[g]), waiting[g][0])
    )
    for group in leftovers[: len(order) // batch_size - count]:
        yield order[np.concatenate([waiting[group], np.resize(first[group], batch_size - len(waiting[group]))])]


def passes_per_image(images: np.ndarray, sentences_per_image: int) -> tuple[np.ndarray, np.ndarray]:
    """How many sentences each image has, and by how many passes of the backbone they are shared in an epoch.

    As many as bring the sentences of a pass closest to `sentences_per_image`; one where the image has fewer.

    Args:
        images: number of each sentence's image, integers (N,).

    Returns:
        two arrays of integers, (images,) each.
    """
    sentences = np.bincount(images)
    passes = np.maximum(1, (sentences + sentences_per_image // 2) // sentences_per_image)
    return sentences, np.where(sentences > 0, passes, 0)


def order_by_image(images: np.ndarray, sentences_per_image: int, draw: np.random.Generator) -> np.ndarray:
    """A new order of all sentences in which those that share a pass of the backbone follow each other.

    The sentences of each image are shuffled and divided into runs of equal length, within one: a run for each pass.
    Then all runs are shuffled.

    Args:
        images: number of each sentence's image, integers (N,).

    Returns:
        int32 (N,).
    """
    order = np.arange(len(images), dtype=np.int32)
    draw.shuffle(order)
    order = order[np.argsort(images[order], kind="stable")]
    sentences, runs = passes_per_image(images, sentences_per_image)
    number = np.arange(runs.sum()) - np.repeat(np.cumsum(runs) - runs, runs)  # of each run among those of its image
    of_image, among = np.repeat(sentences, runs), np.repeat(runs, runs)
    first = number * of_image // among
    lengths = (number + 1) * of_image // among - first
    draw.shuffle(shuffled := np.arange(len(lengths), dtype=np.int32))
    begins = (np.cumsum(lengths) - lengths)[shuffled]
    lengths = lengths[shuffled]
    shift = (begins - (np.cumsum(lengths) - lengths)).astype(np.int32)
    return order[np.arange(len(order), dtype=np.int32) + np.repeat(shift, lengths)]


def exhaustive_batches(groups: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """Every index exactly once, by group and in order; the last batch of a group may be smaller."""
    batches: list[np.ndarray] = []
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        batches.extend(np.split(members, range(batch_size, len(members), batch_size)))
    return batches


class DealtSampler:
    """This rank's share of all batches. While it is paused it has none, so that workers can start without work."""

    paused = False

    def __iter__(self) -> Iterator[list[Sample]]:
        return iter(()) if self.paused else self.batches()

    def batches(self) -> Iterator[list[Sample]]:
        raise NotImplementedError


class TrainingSampler(DealtSampler):
    """Grouped batches in a new order each epoch; every rank gets the same number of them.

    With `sentences_per_image` above 1, about as many sentences of an image follow each other in a batch. `images` then
    gives the number of each sentence's image. With `weights`, sentences come more or less often than once.
    """

    def __init__(
        self,
        groups: np.ndarray,
        batch_size: int,
        *,
        seed: int,
        images: np.ndarray | None = None,
        sentences_per_image: int = 1,
        weights: Weights | None = None,
        rank: int = 0,
        world_size: int = 1,
        same_order_each_epoch: bool = False,
    ) -> None:
        self.groups = np.asarray(groups)
        self.images, self.sentences_per_image = images, sentences_per_image
        self.weights = weights
        self.samples = len(self.groups) if weights is None else weights.samples_per_epoch
        self.batch_size = batch_size
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.same_order_each_epoch = same_order_each_epoch
        self.set_epoch(0)

    def set_epoch(self, epoch: int, batches_done: int = 0) -> None:
        """Set where the next iteration begins: behind an epoch's first batches, counted over all ranks."""
        self.epoch, self.batches_done = epoch, batches_done

    def __len__(self) -> int:
        """Batches of a whole epoch for each rank; what the ranks can't share evenly is left out."""
        return self.batches_left(0)

    def batches_left(self, batches_done: int) -> int:
        """Batches for each rank in the rest of an epoch, of which so many are done, whoever did them."""
        return max(0, self.samples // self.batch_size - batches_done) // self.world_size

    def order(self) -> np.ndarray:
        """All samples in the order of this epoch."""
        epoch = 0 if self.same_order_each_epoch else self.epoch
        draw = np.random.default_rng([self.seed, epoch])
        samples = None if self.weights is None else self.weights.samples(self.seed, epoch)
        if self.images is not None and self.sentences_per_image > 1:
            images = self.images if samples is None else self.images[samples]
            order = order_by_image(images, self.sentences_per_image, draw)
            return order if samples is None else samples[order]
        order = np.arange(len(self.groups), dtype=np.int32) if samples is None else samples
        draw.shuffle(order)  # half the memory of a permutation(), and the same draws
        return order

    def batches(self) -> Iterator[list[Sample]]:
        batches = grouped_batches(self.order(), self.groups, self.batch_size)
        start = self.batches_done
        stop = start + self.batches_left(start) * self.world_size
        for number, batch in enumerate(itertools.islice(batches, start, stop), start):
            if (number - start) % self.world_size == self.rank:
                first = number * self.batch_size
                yield [Sample(i, first + slot, self.epoch) for slot, i in enumerate(batch.tolist())]


class EvaluationSampler(DealtSampler):
    """Every sample once over all ranks. Positions don't depend on batch size or ranks, so neither do the draws."""

    def __init__(self, groups: np.ndarray, batch_size: int, *, rank: int = 0, world_size: int = 1) -> None:
        self.all_batches = exhaustive_batches(np.asarray(groups), batch_size)
        self.firsts = np.cumsum([0] + [len(batch) for batch in self.all_batches])
        self.mine = range(rank, len(self.all_batches), world_size)

    def __len__(self) -> int:
        return len(self.mine)

    def batches(self) -> Iterator[list[Sample]]:
        for number in self.mine:
            first = int(self.firsts[number])
            yield [Sample(int(i), first + slot, 0) for slot, i in enumerate(self.all_batches[number])]
