"""The whole words of sentences, and how rare they are."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from engine.inference.pretrained import Pretrained

SHORTEST = 3  # letters of a word, where they aren't those of another script


@dataclass(frozen=True)
class Word:
    """A word that is one word piece of the model's."""

    piece: str
    place: int  # among the sentence's tokens, [CLS] being 0
    start: int  # in the sentence, in characters
    end: int


class Words:
    """Of some sentences, with the number of sentences that each word is in.

    A rare word says more of an image than one that most sentences have, in any language.
    """

    def __init__(self, model: Pretrained, sentences: Iterable[str]) -> None:
        self.tokenizer = model.encoder.tokenizer
        self.room = model.description.preprocessing.max_seq_length - 2
        self.sentences = Counter(piece for text in sentences for piece in {word.piece for word in self.of(text)})

    def of(self, sentence: str) -> list[Word]:
        """Those that the model reads, without punctuation, words of several pieces, and short ones such as "of"."""
        encoding = self.tokenizer.encode(sentence, add_special_tokens=False)
        pieces = Counter(encoding.word_ids)
        found = zip(encoding.tokens, encoding.word_ids, encoding.offsets, strict=True)
        return [
            Word(piece, place, *span)
            for place, (piece, word, span) in enumerate(found, start=1)
            if pieces[word] == 1
            and piece.isalnum()
            and place <= self.room
            and (len(piece) >= SHORTEST or not piece.isascii())
        ]

    def rarest_first(self, sentence: str) -> list[Word]:
        return sorted(self.of(sentence), key=lambda word: self.sentences[word.piece])
