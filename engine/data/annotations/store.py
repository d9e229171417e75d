"""Sentences with their images and labels as columns in shared memory: 40 bytes each, once for a whole machine.

What is read together lies together, since a look-up costs what its cache misses cost. Columns:

    rows            (N + 1) x 4    START, IMAGE, CATEGORY_AND_INDEX, LABELS of each sentence, and a last START
    words           T + 2 L + 1    of each sentence: its WordPiece ids, then an answer id and a score code per label
    score_values                   what score codes stand for
    image_starts    I + 1          the images' names as UTF-8, one after the other
    image_names
    question_ids    N              where the format has them
    text_starts     N + 1          the sentences themselves, only if asked for
    texts
"""

import hashlib
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from engine.data.annotations.columns import SharedColumns
from engine.data.images.places import name_in_place

START, IMAGE, CATEGORY_AND_INDEX, LABELS = range(4)  # LABELS: 0 for a caption, else 1 + their number
FIELDS = 4
CHUNK = 1 << 16  # sentences that are looked at together; another number gives other digests
BASE = 0x9E3779B97F4A7C15  # of text_hashes; any odd number with its bits mixed
COUNTED = tuple(f"_{index:03d}" for index in range(1000))  # how uids end


class Sentence(NamedTuple):
    """One caption or question of one image."""

    uid: str  # {img_id}_{category}_{index:03d}
    img_id: str
    token_ids: tuple[int, ...]  # without special tokens
    label: dict[int, float] | None  # answer ids to scores; None for a caption
    text: str | None = None  # None unless the store keeps it


class Sentences(NamedTuple):
    """What training needs of several of them, column by column."""

    img_ids: list[str]
    token_ids: list[tuple[int, ...]]
    labels: list[dict[int, float] | None]


class WordCount(NamedTuple):
    """How many sentences there are and how many are longer than a limit, of how many word pieces, how many unknown."""

    sentences: int
    longer: int
    pieces: int
    unknown: int


@dataclass
class LabelCount:
    """How many of the answers that annotators gave the table knows."""

    known: int = 0
    unknown: int = 0
    example: str = ""


class AnnotationStore(Sequence[Sentence]):
    """Sentences by number, in the order of the files, or a selection of them.

    Memory is shared by all processes that hold one, after a fork and after pickling for a spawned worker too.
    """

    def __init__(self, columns: SharedColumns, selection: SharedColumns | None = None) -> None:
        self.columns, self.selection = columns, selection
        self.label_count = LabelCount(**columns.header["label_count"])
        self._rows = columns["rows"].reshape(-1, FIELDS)
        self._places = None if selection is None else selection["places"]
        self._length = len(self._rows) - 1 if self._places is None else len(self._places)
        self._scores: list[float] = columns["score_values"].tolist()
        self.categories: list[str] = columns.header["categories"]
        self.dropped: dict[str, int] = columns.header.get("dropped", {})  # what reading has left out, by its reason
        self._suffixes = [f"_{category}" for category in self.categories]
        self._word_size = columns["words"].itemsize
        self._unpack = _Unpack(columns["words"].dtype.char)
        self._packed = memoryview(columns.memory)[columns.offsets["words"] :]
        # memoryviews: a single number costs a third of what it does from a numpy array
        self._views = {name: array.data for name, array in columns.arrays.items()}

    def __reduce__(self) -> tuple[Any, ...]:
        return AnnotationStore, (self.columns, self.selection)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> Sentence:  # type: ignore[override]  # numbers only, no slices
        rows, at = self._views["rows"], FIELDS * self._place(number)
        category, index = rows[at + CATEGORY_AND_INDEX] >> 16, rows[at + CATEGORY_AND_INDEX] & 0xFFFF
        words, label = self._words(rows[at], rows[at + FIELDS]), None
        tokens = len(words)
        if rows[at + LABELS]:
            tokens -= 2 * (rows[at + LABELS] - 1)
            label = {words[n]: self._scores[words[n + 1]] for n in range(tokens, len(words), 2)}
        img_id = self._text("image_starts", "image_names", rows[at + IMAGE])
        uid = img_id + self._suffixes[category] + (COUNTED[index] if index < 1000 else f"_{index}")
        text = self._text("text_starts", "texts", at // FIELDS) if "texts" in self._views else None
        return Sentence(uid, img_id, words[:tokens], label, text)

    def take(self, numbers: Sequence[int]) -> Sentences:
        """Several sentences at once, column by column, for half of the price each.

        Raises:
            IndexError: for a number outside 0..len - 1.
        """
        columns, scores, unpack, packed = self.columns, self._scores, self._unpack, self._packed
        try:
            places = np.array(numbers, np.uint32)
        except OverflowError:
            raise IndexError(f"a sentence of {list(numbers)} is outside 0..{self._length - 1}") from None
        if self._places is not None:
            places = self._places.take(places)
        rows, following = self._rows.take(places, 0), self._rows.take(places + 1, 0)
        columns["words"].take(rows[:, START])  # into the cache side by side; the loop would wait for one after another
        images, starts, memory = rows[:, IMAGE], columns["image_starts"], columns.memory
        offset = np.int64(columns.offsets["image_names"])  # slicing the mapping itself is twice as fast as an array's
        bounds = zip((starts.take(images) + offset).tolist(), (starts.take(images + 1) + offset).tolist(), strict=True)
        img_ids = [memory[first:last].decode() for first, last in bounds]

        token_ids: list[tuple[int, ...]] = []
        labels: list[dict[int, float] | None] = []
        begins = (rows[:, START] * self._word_size).tolist()
        lengths = (following[:, START] - rows[:, START]).tolist()
        for begin, length, count in zip(begins, lengths, rows[:, LABELS].tolist(), strict=True):
            words = unpack[length](packed, begin)
            if not count:
                token_ids.append(words)
                labels.append(None)
            elif count == 2:  # as most questions have
                token_ids.append(words[:-2])
                labels.append({words[-2]: scores[words[-1]]})
            else:
                first = length - 2 * (count - 1)
                token_ids.append(words[:first])
                labels.append({words[n]: scores[words[n + 1]] for n in range(first, length, 2)})
        return Sentences(img_ids, token_ids, labels)

    def token_ids(self, number: int) -> tuple[int, ...]:
        """Those of one sentence, and nothing else of it."""
        rows, at = self._views["rows"], FIELDS * self._place(number)
        return self._words(rows[at], rows[at + FIELDS] - 2 * max(0, rows[at + LABELS] - 1))

    def image(self, number: int) -> int:
        """Code of a sentence's image."""
        return self._views["rows"][FIELDS * self._place(number) + IMAGE]

    @property
    def places(self) -> np.ndarray:
        """Which sentences of the files these are, by number, shape (len,)."""
        return np.arange(self._length) if self._places is None else self._places

    @property
    def images(self) -> np.ndarray:
        """Codes of all sentences' images, uint32, shape (len,)."""
        return self._field(IMAGE)

    @property
    def questions(self) -> np.ndarray:
        """Which sentences are questions, bool, shape (len,)."""
        return self._field(LABELS) > 0

    @property
    def answered(self) -> np.ndarray:
        """Which sentences have an answer that the answer table knows, bool, shape (len,)."""
        return self._field(LABELS) > 1

    @property
    def category_codes(self) -> np.ndarray:
        """Which of `categories` each sentence belongs to, shape (len,)."""
        return self._field(CATEGORY_AND_INDEX) >> 16

    @property
    def question_ids(self) -> np.ndarray:
        """The questions' own numbers, int64, shape (len,); only in stores of a format that has them."""
        ids = self.columns["question_ids"]
        return ids if self._places is None else ids[self._places]

    @property
    def uid_codes(self) -> np.ndarray:
        """A number for each uid, the same for the same one; uint64, shape (len,)."""
        return self.images.astype(np.uint64) << 32 | self._field(CATEGORY_AND_INDEX)

    @property
    def image_ids(self) -> list[str]:
        """The images' names by code; a selection keeps them all."""
        names = self.columns["image_names"].tobytes()
        return [names[first:last].decode() for first, last in itertools.pairwise(self.columns["image_starts"].tolist())]

    def digests(self) -> dict[str, str]:
        """sha256 of what sentences give to a training, in their order: their texts, their images' names, their labels.

        The same content has the same digests, however files, shards and columns hold it, and wherever its images lie.
        """
        texts, images, labels = hashlib.sha256(), hashlib.sha256(), hashlib.sha256()
        words, scores = self.columns["words"], self.columns["score_values"]
        used = np.bincount(self.images) > 0
        image_numbers = np.cumsum(used) - 1
        for rows, lengths in self._chunks():
            counts = 2 * np.maximum(rows[:, LABELS] - 1, 0)
            texts.update(lengths.astype("<u4").data)
            texts.update(_ranges(words, rows[:, START], lengths).astype("<u4").data)
            images.update(image_numbers[rows[:, IMAGE]].astype("<u4").data)
            labels.update(rows[:, LABELS].astype("<u4").data)
            answers, codes = _ranges(words, rows[:, START] + lengths, counts).reshape(-1, 2).T
            labels.update(answers.astype("<u4").data)
            labels.update(scores[codes].astype("<f8").data)
        names = self.image_ids
        for code in np.flatnonzero(used).tolist():
            images.update(f"{name_in_place(names[code])}\0".encode())
        return {"texts": texts.hexdigest(), "images": images.hexdigest(), "labels": labels.hexdigest()}

    def count_words(self, longest: int, unknown: int | None) -> WordCount:
        """Of all sentences, a chunk at a time.

        Args:
            longest: word pieces of a sentence that isn't too long.
            unknown: the id of what stands for unknown words.
        """
        longer = pieces = unknown_ones = 0
        for rows, lengths in self._chunks():
            longer += int(np.count_nonzero(lengths > longest))
            pieces += int(lengths.sum())
            if unknown is not None:
                words = _ranges(self.columns["words"], rows[:, START], lengths)
                unknown_ones += int(np.count_nonzero(words == unknown))
        return WordCount(self._length, longer, pieces, unknown_ones)

    def text_hashes(self) -> np.ndarray:
        """64 bits of a hash of each sentence's token ids, the same in every version: uint64, shape (len,)."""
        words, found = self.columns["words"], [np.empty(0, np.uint64)]
        for rows, lengths in self._chunks():
            ends = np.cumsum(lengths)
            positions = np.arange(lengths.sum()) - np.repeat(ends - lengths, lengths)
            powers = np.uint64(BASE) ** np.arange(lengths.max(), dtype=np.uint64)  # modulo 2^64, as all that follows
            values = _ranges(words, rows[:, START], lengths).astype(np.uint64) + 1
            sums = np.append(np.uint64(0), np.cumsum(values * powers[positions]))
            found.append(sums[ends] - sums[ends - lengths])
        return np.concatenate(found)

    def select(self, chosen: np.ndarray) -> "AnnotationStore":
        """The sentences for which a bool array of shape (len,) is true."""
        places = np.flatnonzero(chosen) if self._places is None else self._places[chosen]
        return AnnotationStore(self.columns, SharedColumns.of({"places": places.astype("<u4")}))

    def _chunks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows of up to CHUNK sentences, int64 (n, FIELDS), and how many word pieces each has, int64 (n,)."""
        all_places = self.places
        for first in range(0, self._length, CHUNK):
            places = all_places[first : first + CHUNK]
            rows, following = self._rows[places].astype(np.int64), self._rows[places + 1]
            yield rows, following[:, START] - rows[:, START] - 2 * np.maximum(rows[:, LABELS] - 1, 0)

    def _place(self, number: int) -> int:
        """Where a sentence of this selection lies in the columns."""
        if not 0 <= number < self._length:
            raise IndexError(f"sentence {number} of {self._length}")
        return number if self._places is None else self._places.item(number)

    def _field(self, field: int) -> np.ndarray:
        values = self._rows[:-1, field]
        return values if self._places is None else values[self._places]

    def _words(self, first: int, last: int) -> tuple[int, ...]:
        return self._unpack[last - first](self._packed, first * self._word_size)

    def _text(self, starts: str, texts: str, number: int) -> str:
        first, last = self._views[starts][number], self._views[starts][number + 1]
        return str(self._views[texts][first:last], "utf-8")


def _ranges(values: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """values[start : start + length] of each start, one behind the other."""
    ends = np.cumsum(lengths)
    return values[np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)]


class _Unpack(dict[int, Callable[[Any, int], tuple[int, ...]]]):
    """Reads N words at an offset, the quickest way from memory to Python's integers."""

    def __init__(self, typecode: str) -> None:
        self.typecode = typecode

    def __missing__(self, count: int) -> Callable[[Any, int], tuple[int, ...]]:
        read = self[count] = struct.Struct(f"{count}{self.typecode}").unpack_from
        return read
