"""All texts of some files in a few bytes each: hashes, lengths, and which image they belong to.

Two of 10 million hashes of 64 bits are the same by chance once in 300,000 data sets.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from engine.data.annotations.answers import AnswerTable, normalise_answer
from engine.data.annotations.formats.file import AnnotationFile, FieldError, Texts
from engine.data.annotations.source import is_score
from engine.data.annotations.text import TextEncoder, WordByWordEncoder
from engine.data.inspection.scripts import scripts_of
from engine.errors import UserError
from engine.progress import Bar

MOST_LISTED = 1000  # problems of a kind; all are counted
MOST_REPEATED = 5  # captions that are shown
ID = "I"  # array's type of WordPiece ids
MIX = np.uint64(0x9E3779B97F4A7C15)  # an odd number, so that no two images become the same


class Problems:
    """Lines of one kind: how many there are, and the first of them."""

    def __init__(self) -> None:
        self.count, self.lines = 0, list[str]()

    def add(self, problem: object) -> None:
        self.count += 1
        if self.count <= MOST_LISTED:
            self.lines.append(str(problem))


class Names(Sequence[str]):
    """Images' names, each once and in the order in which they came first, as bytes."""

    def __init__(self) -> None:
        self.text, self.starts, self.hashes = bytearray(), array("Q"), array("q")
        self.last = ""
        self.firsts = np.empty(0, np.int64)

    def add(self, name: str) -> int:
        """The place of a name; a name that comes again later has several, until `codes`."""
        if name != self.last or not self.hashes:
            data = name.encode()
            self.starts.append(len(self.text))
            self.text += data
            self.hashes.append(hash(name))
            self.last = name
        return len(self.hashes) - 1

    def codes(self) -> np.ndarray:
        """The number of each place's name, int64 (places,)."""
        _, firsts, inverse = np.unique(np.array(self.hashes, np.int64), return_index=True, return_inverse=True)
        order = np.argsort(firsts)
        self.firsts, numbers = firsts[order], np.empty(len(order), np.int64)
        numbers[order] = np.arange(len(order))
        return numbers[inverse]

    def __len__(self) -> int:
        return len(self.firsts)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[n] for n in range(*number.indices(len(self)))]
        place = self.firsts[number]
        end = self.starts[place + 1] if place + 1 < len(self.starts) else len(self.text)
        return self.text[self.starts[place] : end].decode()


class TextReader:
    """Reads files, whatever is broken in them, and keeps what can be counted."""

    def __init__(self, encoder: TextEncoder, answers: AnswerTable) -> None:
        self.encode = WordByWordEncoder(encoder, ID)
        unknown = encoder.tokenizer.token_to_id("[UNK]")
        self.unknown_id = -1 if unknown is None else unknown
        self.answers = answers
        self.names = Names()
        self.hashes, self.places, self.lengths = array("q"), array("Q"), array("I")
        self.is_caption = bytearray()
        self.answer_hashes = array("q")
        self.scripts: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.pieces, self.unknown_pieces = 0, 0
        self.broken_files, self.broken_rows, self.broken_texts = Problems(), Problems(), Problems()

    def read(self, file: AnnotationFile, bar: Bar | None) -> None:
        """Add a file; one that can't be read, or not to its end, is a problem."""
        try:
            for texts in passing_over(file, bar, self.broken_rows):
                try:
                    if texts.texts:
                        self.add(texts)
                except (UnicodeEncodeError, TypeError):  # half of a surrogate pair; the tokeniser calls it a wrong type
                    self.broken_texts.add(file.error(FieldError("a text that is no valid Unicode")))
                except FieldError as error:
                    self.broken_texts.add(file.error(error))
        except UserError as error:
            self.broken_files.add(error)
        self.counts["rows"] += file.read
        self.dropped.update(file.dropped)

    def add(self, texts: Texts) -> None:
        """Raises what the annotation store refuses as well, before anything is added."""
        encoded = [self.encode(text) for text in texts.texts]
        labels = [self.answers.label(scores) for scores in texts.labels or ()]
        if odd := [score for label in labels for score in label.values() if not is_score(score)]:
            raise FieldError(f"the score {odd[0]} of an answer is no number from 0 to 1")
        place = self.names.add(texts.img_id)
        for text, ids in zip(texts.texts, encoded, strict=True):
            self.hashes.append(hash(text.strip()))
            self.places.append(place)
            self.lengths.append(len(ids) // array(ID).itemsize)
            self.scripts.update(scripts_of(text))
        self.is_caption += bytes([texts.labels is None]) * len(encoded)
        pieces = np.frombuffer(b"".join(encoded), ID)
        self.pieces += len(pieces)
        self.unknown_pieces += int(np.count_nonzero(pieces == self.unknown_id))
        for scores, label in zip(texts.labels or (), labels, strict=True):
            self.counts["questions_with_answers"] += bool(scores)
            self.counts["questions_without_known_answer"] += bool(scores) and not label
            self.answer_hashes.extend(hash(normalise_answer(answer)) for answer in scores)


class TextTable:
    """What was read, as arrays."""

    def __init__(self, reader: TextReader) -> None:
        self.names = reader.names
        codes = self.names.codes()
        self.images = codes[np.array(reader.places, np.int64)]  # of each text
        self.hashes = np.array(reader.hashes, np.int64)
        self.lengths = np.array(reader.lengths, np.int64) + 2  # with [CLS] and [SEP], as --max_seq_length counts
        self.is_caption = np.frombuffer(bytes(reader.is_caption), bool)
        self.answers = len(np.unique(np.array(reader.answer_hashes, np.int64)))

    def __len__(self) -> int:
        return len(self.hashes)

    def texts_of(self, images: Sequence[int] | np.ndarray) -> int:
        """How many texts these images have."""
        return int(np.isin(self.images, images).sum())

    def repeated_pairs(self) -> int:
        """Texts that their image has already."""
        return len(self) - len(np.unique(_pairs(self.hashes, self.images)))

    def shared_captions(self) -> tuple[int, int, dict[int, int]]:
        """How many captions stand at several images, at how many images in all, and hashes of the most frequent, of
        which those that come first."""
        hashes, images = self.hashes[self.is_caption], self.images[self.is_caption]
        hashes = hashes[np.sort(np.unique(_pairs(hashes, images), return_index=True)[1])]
        values, firsts, counts = np.unique(hashes, return_index=True, return_counts=True)
        shared = counts > 1
        values, firsts, counts = values[shared], firsts[shared], counts[shared]
        most = np.lexsort((firsts, -counts))[:MOST_REPEATED]
        return len(values), int(counts.sum()), dict(zip(values[most].tolist(), counts[most].tolist(), strict=True))


def _pairs(hashes: np.ndarray, images: np.ndarray) -> np.ndarray:
    """One number for a text and its image."""
    return hashes.view(np.uint64) ^ ((images.astype(np.uint64) + np.uint64(1)) * MIX)


def passing_over(file: AnnotationFile, bar: Bar | None, problems: Problems) -> Iterator[Texts]:
    """The texts of a file; broken items are problems."""
    file.on_broken = problems.add
    try:
        yield from file.texts(bar)
    finally:
        file.on_broken = None


def bar_of(file: AnnotationFile, doing: str) -> Bar:
    """Progress in a file, by bytes."""
    try:
        size = file.size()
    except (OSError, UserError, LookupError, TypeError):  # reading it will say why
        size = None
    return Bar(desc=f"{doing} {file.path.name}", total=size, unit="B", unit_scale=True)


def texts_to_show(
    files: Iterable[AnnotationFile], img_ids: Iterable[str], hashes: Iterable[int]
) -> tuple[dict[str, str], dict[int, str]]:
    """The first text of some images, and the texts with some hashes: files are read again until all are found."""
    images, wanted = set(img_ids), set(hashes)
    by_image: dict[str, str] = {}
    by_hash: dict[int, str] = {}
    for file in files:
        with suppress(UserError), bar_of(file, "texts of") as bar:  # it has told its errors when it was read first
            for texts in passing_over(file, bar, Problems()):
                if images <= by_image.keys() and wanted <= by_hash.keys():
                    return by_image, by_hash
                if texts.img_id in images and texts.texts:
                    by_image.setdefault(texts.img_id, texts.texts[0])
                by_hash |= {hashed: text for text in texts.texts if (hashed := hash(text.strip())) in wanted}
    return by_image, by_hash
