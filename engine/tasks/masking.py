"""Random choices of pre-training: which words are masked, which captions swapped, which answer is asked for.

Every function draws from the generator that it is given, in the original's order, so that recorded draws replay.
"""

import math
from collections.abc import Sequence
from typing import Protocol, TypeVar

import numpy as np

T = TypeVar("T")
IGNORE = -1  # the label that no loss counts
MULTIPLE = 16  # of a batch's masked positions: matrix products like such sizes


class Generator(Protocol):
    """The part of random.Random that is used."""

    def random(self) -> float: ...
    def randrange(self, stop: int, /) -> int: ...
    def choices(self, population: Sequence[T], weights: Sequence[float]) -> list[T]: ...


def mask_tokens(
    token_ids: Sequence[int], generator: Generator, *, rate: float, mask_id: int, vocab_size: int
) -> tuple[list[int], list[int]]:
    """Choose each token with probability `rate`; 80% of those become [MASK], 10% any vocabulary entry, 10% stay.

    Returns:
        The masked ids, and labels: the true id where a token was chosen, -1 elsewhere.
    """
    masked, labels = list(token_ids), [IGNORE] * len(token_ids)
    for index, token_id in enumerate(token_ids):
        draw = generator.random()
        if draw >= rate:
            continue
        labels[index] = token_id
        draw /= rate
        if draw < 0.8:
            masked[index] = mask_id
        elif draw < 0.9:
            masked[index] = generator.randrange(vocab_size)
    return masked, labels


def sample_answer(label: dict[int, float] | None, is_matched: bool, generator: Generator) -> int:
    """An answer id with probability proportional to its score; -1 where no answer scores or the pair was broken."""
    if not label or not is_matched or not any(label.values()):
        return IGNORE
    answers = list(label)
    if len(answers) == 1:
        return answers[0]
    return generator.choices(answers, weights=list(label.values()))[0]


def pack_labels(labels: np.ndarray, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """The positions that have a label, as many for each batch of this size, so that no shape on the device changes.

    Their number is what a batch of the longest texts exceeds about once in a million times at most: the mean and six
    deviations of the binomial distribution. A batch that does gets room for all its words.

    Args:
        labels: int64 (B, L), -1 where there is none; the first and last of each row have none.
        rate: the share of words that are masked.

    Returns:
        places in B * L and their labels, int64 (K,) each; what is left over is place 0 with the label -1.
    """
    batch, length = labels.shape
    words = batch * (length - 2)
    places = np.flatnonzero(labels != IGNORE)
    usual = max(1.0, words * rate + 6 * math.sqrt(words * rate * (1 - rate)))  # no kernel gets an empty tensor
    room, most = (math.ceil(number / MULTIPLE) * MULTIPLE for number in (min(usual, words), words))
    padding = (0, (room if len(places) <= room else most) - len(places))
    return np.pad(places, padding), np.pad(labels.flat[places], padding, constant_values=IGNORE)
