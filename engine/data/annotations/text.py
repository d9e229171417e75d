"""Sentences to WordPiece ids."""

from array import array
from typing import NamedTuple

from tokenizers import Tokenizer

from engine.errors import UserError

REMEMBERED_WORDS = 1 << 17  # about 30 MB


class Vocabulary(NamedTuple):
    """What examples need to know of a tokeniser; the special tokens are looked up by name, not by number."""

    pad_id: int
    cls_id: int
    sep_id: int
    mask_id: int
    size: int
    unk_id: int | None  # of a piece that stands for all that it doesn't know


class TextEncoder:
    """Sentences to token ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
        ids = {name: number for name in names if (number := tokenizer.token_to_id(name)) is not None}
        lacking = [name for name in names if name not in ids]
        if lacking:
            raise UserError(f"the vocabulary lacks {lacking[0]}; give a BERT vocabulary with --bert")
        pad, cls, sep, mask = ids.values()
        unknown = tokenizer.token_to_id("[UNK]")
        self.vocabulary = Vocabulary(pad, cls, sep, mask, size=tokenizer.get_vocab_size(), unk_id=unknown)

    def __call__(self, text: str) -> list[int]:
        """WordPiece ids without special tokens."""
        return self.tokenizer.encode(text.strip(), add_special_tokens=False).ids


class WordByWordEncoder:
    """The ids of a TextEncoder as packed bytes, five times as fast: the pieces of a word are remembered.

    A BERT tokeniser splits at white space first, so the pieces of a sentence are those of its words. That holds for
    printable ASCII; other text, and other kinds of tokeniser, go the TextEncoder's way.
    """

    def __init__(self, encoder: TextEncoder, typecode: str) -> None:
        self.encoder = encoder
        self.typecode = typecode  # of the packed ids, as in array.array
        self.words = _Words(self)
        self.word_by_word = _splits_at_spaces(encoder.tokenizer)

    def __call__(self, text: str) -> bytes:
        """Ids without special tokens."""
        if self.word_by_word and text.isascii() and text.isprintable():
            return b"".join(map(self.words.__getitem__, text.split()))
        return self.encode(text)

    def encode(self, text: str) -> bytes:
        return array(self.typecode, self.encoder(text)).tobytes()


class _Words(dict[str, bytes]):
    def __init__(self, owner: WordByWordEncoder) -> None:
        self.owner = owner

    def __missing__(self, word: str) -> bytes:
        if len(self) >= REMEMBERED_WORDS:
            self.clear()
        pieces = self[word] = self.owner.encode(word)
        return pieces


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Whether a word's pieces can't depend on the words around it."""
    normalizer, splitter, model = (
        type(part).__name__ for part in (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
    )
    added = tokenizer.get_added_tokens_decoder().values()
    return (
        normalizer in ("NoneType", "BertNormalizer")
        and splitter in ("BertPreTokenizer", "Whitespace", "WhitespaceSplit")
        and model == "WordPiece"
        and tokenizer.truncation is None
        and tokenizer.padding is None
        and not any(token.lstrip or token.rstrip or len(token.content.split()) != 1 for token in added)
    )
