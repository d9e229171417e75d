"""Random choices of pre-training: which words are masked, which captions swapped, which answer is asked for.

Every function draws from the generator that it is given, in the original's order, so that recorded draws replay.
"""

from collections.abc import Sequence
from typing import Protocol, TypeVar

T = TypeVar("T")
IGNORE = -1  # the label that no loss counts


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
