"""What comes of one sentence that a model has read beside its image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

UNKNOWN = "[UNK]"
SHOWN = 60  # characters of a sentence in a message


class Answer(NamedTuple):
    """An answer and how likely it is, 0 to 1."""

    answer: str
    probability: float


class Guess(NamedTuple):
    """A word piece and how likely it stands in the place of a [MASK], 0 to 1."""

    word: str
    probability: float


@dataclass(frozen=True)
class Reading:
    """One sentence beside its image.

    L word pieces    S cells that were read    V word pieces that the model knows
    """

    tokens: list[str]  # L, with [CLS] in front and [SEP] at the end, without padding
    unknown: int  # how many of them are [UNK]
    cut: int  # how many more pieces the sentence has than the model reads
    grid: tuple[int, int]  # rows and columns of cells
    cells: np.ndarray  # int64 (S,), ascending: row * columns + column
    pixels: np.ndarray  # uint8 (H, W, 3): the image as the model sees it, which the grid covers
    answer_probabilities: np.ndarray | None  # fp32 (answers,); None without an answer head
    word_probabilities: np.ndarray | None  # fp32 (masks, V) of the [MASK]s, in order; None without a head for words
    matched: float | None  # how likely image and sentence belong together; None without a head for that
    attention: np.ndarray | None  # fp32 (L, S): see attention.py; None unless it was asked for
    known_answers: list[str]
    known_words: list[str]

    @property
    def note(self) -> str:
        """What the model didn't read of the sentence, in words; "" if it read all of it."""
        return note_of(self.tokens, self.cut)

    def answers(self, top_k: int = 5) -> list[Answer]:
        """The most likely answers, the best first; fewer if the model knows fewer."""
        return [Answer(self.known_answers[row], p) for row, p in _best(self.answer_probabilities, top_k)]

    def guesses(self, top_k: int = 5) -> list[list[Guess]]:
        """Of each [MASK], the most likely word pieces, the best first."""
        if self.word_probabilities is None:
            return []
        best = [_best(of_mask, top_k) for of_mask in self.word_probabilities]
        return [[Guess(self.known_words[row], p) for row, p in of_mask] for of_mask in best]


def note_of(tokens: Sequence[str], cut: int) -> str:
    """What a model didn't read of a sentence, in words; "" if it read all of it.

    Args:
        tokens: with [CLS] in front and [SEP] at the end, without padding.
        cut: how many more pieces the sentence has.
    """
    pieces = tokens[1:-1]
    unknown, notes = pieces.count(UNKNOWN), list[str]()
    if not pieces:
        return "there is no word in it, so that only the image was read"
    if cut:
        shown = " ".join(pieces).replace(" ##", "")
        shown = shown if len(shown) <= SHOWN else f"...{shown[-SHOWN:]}"
        notes.append(f"only the first {len(pieces)} of {len(pieces) + cut:,} word pieces were read ({shown!r})")
    if unknown == len(pieces):
        what = (
            "its only word piece is"
            if unknown == 1
            else f"all {unknown} of {'these' if cut else 'its word pieces'} are"
        )
        notes.append(f"{what} unknown to the model's vocabulary, so that only the image says anything")
    elif unknown:
        of_what = "them" if cut else f"its {len(pieces)} word pieces"
        notes.append(f"{unknown} of {of_what} {'is' if unknown == 1 else 'are'} unknown to the model's vocabulary")
    return "; ".join(notes)


def _best(probabilities: np.ndarray | None, top_k: int) -> list[tuple[int, float]]:
    """Places and values of the largest, the first one first where several are the same."""
    if probabilities is None:
        return []
    return [(int(row), float(probabilities[row])) for row in np.argsort(-probabilities, kind="stable")[: max(top_k, 0)]]
