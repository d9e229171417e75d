"""How an annotation store is made.

    files -> build -> CACHE/annotations-KEY.store -> verify -> sealed memory -> ranks and workers

KEY is a hash of everything that the content depends on, so a store is never out of date. The first process to need it
builds it, others on the machine wait for its lock; a builder that is killed leaves nothing that the next one minds.
"""

import contextlib
import errno
import fcntl
import hashlib
import itertools
import json
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tqdm import tqdm

from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.columns import ColumnWriter, DamagedFile, SharedColumns, new_memory
from engine.data.annotations.formats.file import AnnotationFile, FieldError, Texts
from engine.data.annotations.named import Part
from engine.data.annotations.store import AnnotationStore, LabelCount
from engine.data.annotations.text import TextEncoder, WordByWordEncoder
from engine.errors import UserError
from engine.files import NO_SPACE
from engine.progress import Bar

FORMAT = 2  # of the columns; see store.py
LIMIT = 1 << 16  # of categories, of sentences of one category of one image, of different scores
LARGEST_START = (1 << 30) - 1  # its place in bytes fits in 32 bits
FLUSH = 1 << 16  # numbers in `rows` between two writes
CANT_WRITE = (errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class AnnotationSource:
    """What a store is made of."""

    parts: tuple[Part, ...]
    encoder: TextEncoder
    answers: AnswerTable
    with_text: bool = False

    @property
    def name(self) -> str:
        """Its parts, as --train names them, without folders and weights."""
        return ",".join(part.name for part in self.parts)

    @property
    def files(self) -> tuple[AnnotationFile, ...]:
        return tuple(file for part in self.parts for file in part.files)

    @property
    def has_question_ids(self) -> bool:
        return all(file.has_question_ids for file in self.files)

    @property
    def size(self) -> int:
        """Of all files, in bytes."""
        return sum(file.size() for file in self.files)

    def part_ends(self, store: AnnotationStore) -> list[int]:
        """How many of all sentences there are up to the end of each part."""
        last_files = itertools.accumulate(len(part.files) for part in self.parts)
        return [store.columns.header["file_ends"][number - 1] for number in last_files]

    def digests(self) -> list[str]:
        """Of each file; reads them side by side."""
        with ThreadPoolExecutor() as pool:
            return list(pool.map(lambda file: file.digest(), self.files))

    def key(self, digests: list[str]) -> str:
        """Hash of the files, the vocabulary, the answers, the options and the format."""
        vocabulary = hashlib.sha256(self.encoder.tokenizer.to_str().encode()).hexdigest()
        formats: Any = [[file.format, *file.identity] for file in self.files]
        if all(one == [self.files[0].format] for one in formats):  # as earlier versions named their stores
            formats = self.files[0].format
        parts = [FORMAT, formats, digests, vocabulary, self.answers.answers, self.with_text]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def open(self, cache: Path, *, digests: list[str] | None = None, progress: bool = False) -> AnnotationStore:
        """The store, from the cache folder or built now.

        Where the cache can't be written at all, the store is built in memory, with a warning.

        Args:
            digests: of the files, where somebody has them already.

        Raises:
            UserError: for a broken annotation file, a damaged store, a full disk.
        """
        digests = digests if digests is not None else self.digests()
        key = self.key(digests)
        path = cache / f"annotations-{key[:32]}.store"
        if not path.exists():
            try:
                cache.mkdir(parents=True, exist_ok=True)
                with _locked(path.with_suffix(".lock"), progress):
                    if not path.exists():  # else another process built it while this one waited
                        publish(path, lambda file: self.build(file, cache, key, digests, progress=progress))
            except OSError as error:
                if error.errno not in CANT_WRITE:
                    raise self._no_cache(cache, error) from None
                if progress:
                    tqdm.write(
                        f"{cache} can't be written ({error.strerror}): the annotations are read anew at each start; "
                        "pass --cache_dir with a folder that can be"
                    )
                return AnnotationStore(self._build_in_memory(key, digests, progress))
        try:
            columns = SharedColumns.load(path)
        except DamagedFile as error:
            raise UserError(f"{path} is damaged: {error}; delete it, and it is built anew at the next start") from None
        except OSError as error:
            raise UserError(f"{path} can't be read ({error.strerror}); mend its rights or delete it") from None
        if columns.header.get("key") != key:
            raise UserError(f"{path} was made from other data than its name says; delete it")
        return AnnotationStore(columns)

    def build(
        self, target: BinaryIO, folder: Path | None, key: str, digests: list[str], *, progress: bool = False
    ) -> None:
        """Read the files and write the store; temporary files go to `folder`, or into memory.

        Raises:
            UserError: for a broken file, or one that isn't any more what `digests` say.
        """
        builder = _Builder(self, folder)
        with Bar(total=self.size, desc="annotations", unit="B", unit_scale=True, disable=not progress) as bar:
            for file, digest in zip(self.files, digests, strict=True):
                for texts in file.texts(bar):
                    try:
                        builder.add(texts)
                    except FieldError as error:
                        raise file.error(error) from None
                    bar.set_postfix_str(f"{builder.sentences:,} sentences", refresh=False)
                if not file.was(digest):
                    raise UserError(f"{file.path} changed while it was read; start again when it is complete")
                builder.file_ends.append(builder.sentences)
                builder.dropped.update(file.dropped)
        self._check_parts(builder.file_ends)
        builder.finish(target, key)

    def _check_parts(self, file_ends: list[int]) -> None:
        """Raises UserError if all of a part's files, which may each be empty, have no sentence."""
        begin = last = 0
        for part in self.parts:
            last += len(part.files)
            if file_ends[last - 1] == begin and (error := part.files[-1].nothing_found()) is not None:
                raise error
            begin = file_ends[last - 1]

    def _build_in_memory(self, key: str, digests: list[str], progress: bool) -> SharedColumns:
        with new_memory() as memory:
            self.build(memory, None, key, digests, progress=progress)
            return SharedColumns.seal(memory)

    def _no_cache(self, cache: Path, error: OSError) -> UserError:
        if error.errno not in NO_SPACE:
            return UserError(f"the cache folder {cache} can't be used ({error.strerror}); choose one with --cache_dir")
        megabytes = self.size >> 20
        return UserError(
            f"no space is left in {cache}, where preparing the annotations takes about {megabytes + 1} MB; "
            "free some or choose another folder with --cache_dir"
        )


class _Builder:
    """Sentences to columns. Holds the images' names and remembered words, but no sentences beyond a few thousand."""

    def __init__(self, source: AnnotationSource, folder: Path | None) -> None:
        self.answers = source.answers
        largest = max([len(source.answers), *source.encoder.tokenizer.get_vocab().values()])
        self.pending: dict[str, Any] = {
            "rows": array("I"),
            "words": array("H" if largest < 1 << 16 else "I"),
            "score_values": array("d"),
            "image_starts": array("I"),
            "image_names": bytearray(),
        }
        if source.has_question_ids:
            self.pending["question_ids"] = array("q")
        if source.with_text:
            self.pending |= {"text_starts": array("Q"), "texts": bytearray()}
        self.encode = WordByWordEncoder(source.encoder, self.pending["words"].typecode)
        self.columns = ColumnWriter(
            {name: np.asarray(values).dtype.str for name, values in self.pending.items()}, folder
        )
        self.written = dict.fromkeys(self.pending, 0)
        self.images: dict[str, int] = {}
        self.categories: dict[str, int] = {}
        self.score_codes: dict[float, int] = {}
        self.label_count = LabelCount()
        self.sentences = 0
        self.file_ends: list[int] = []  # how many sentences there are up to the end of each file
        self.dropped: Counter[str] = Counter()

    def add(self, texts: Texts) -> None:
        """Raises FieldError for what no column can hold."""
        count, rows, words = len(texts.texts), self.pending["rows"], self.pending["words"]
        if count > LIMIT:
            raise FieldError(f"category {texts.category!r} has {count:,} sentences, more than {LIMIT:,}")
        category = self.categories.setdefault(texts.category, len(self.categories))
        if category >= LIMIT:
            raise FieldError(f"there are more than {LIMIT:,} categories")
        try:
            encoded = list(map(self.encode, texts.texts))
            image = self.images.get(texts.img_id)
            if image is None:
                image = self.images[texts.img_id] = len(self.images)
                self._append_bytes("image_starts", "image_names", texts.img_id.encode())
            if "texts" in self.pending:
                for text in texts.texts:
                    self._append_bytes("text_starts", "texts", text.encode())
        except (UnicodeEncodeError, TypeError):  # half of a surrogate pair; the tokeniser calls it a wrong type
            raise FieldError(f"category {texts.category!r} has a text that is no valid Unicode") from None
        labels = texts.labels or itertools.repeat(None)
        for code, ids, scores in zip(itertools.count(category << 16), encoded, labels, strict=False):
            start = self.written["words"] + len(words)
            if start > LARGEST_START:
                raise FieldError(f"there are more than {LARGEST_START:,} words in all; train on fewer files")
            words.frombytes(ids)
            rows.extend((start, image, code, 0 if scores is None else 1 + self._append_label(scores)))
        if texts.question_id is not None:
            self.pending["question_ids"].append(texts.question_id)
        self.sentences += count
        if len(rows) >= FLUSH:
            self._flush()

    def _append_bytes(self, starts: str, name: str, data: bytes) -> None:
        self.pending[starts].append(self.written[name] + len(self.pending[name]))
        self.pending[name] += data

    def _append_label(self, scores: dict[str, float]) -> int:
        label = self.answers.label(scores)
        for answer, score in label.items():
            code = self.score_codes.get(score)
            if code is None:
                if not is_score(score):
                    raise FieldError(f"the score {score} of an answer is no number from 0 to 1")
                if len(self.score_codes) == LIMIT:
                    raise FieldError(f"there are more than {LIMIT:,} different scores; round them")
                code = self.score_codes[score] = len(self.score_codes)
                self.pending["score_values"].append(score)
            self.pending["words"].extend((answer, code))
        self.label_count.known += len(label)
        if not label and scores:
            self.label_count.unknown += 1
            self.label_count.example = self.label_count.example or next(iter(scores))
        return len(label)

    def _flush(self) -> None:
        for name, values in self.pending.items():
            self.columns.append(name, values)
            self.written[name] += len(values)
            del values[:]

    def finish(self, target: BinaryIO, key: str) -> None:
        """Close each column of starts with the place where the last entry ends, and write the file."""
        self._flush()
        self.pending["rows"].extend((self.written["words"], 0, 0, 0))
        self.pending["words"].append(0)  # so that each start is a place in the column
        self.pending["image_starts"].append(self.written["image_names"])
        if "texts" in self.pending:
            self.pending["text_starts"].append(self.written["texts"])
        self._flush()
        header = {
            "key": key,
            "file_ends": self.file_ends,
            "categories": list(self.categories),
            "label_count": asdict(self.label_count),
            **({"dropped": dict(self.dropped)} if self.dropped else {}),
        }
        self.columns.finish(target, header)


def is_score(score: float) -> bool:
    """Whether it is a number from 0 to 1. n answers of a table count 1/n each, which may add up to a little more."""
    return 0 <= score <= 1 + 1e-9  # n roundings of 2^-53 each, of up to a million answers


@contextlib.contextmanager
def _locked(path: Path, progress: bool) -> Iterator[None]:
    """Hold a lock of this machine; the kernel frees it whatever becomes of this process."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress:
                tqdm.write(f"waiting for another process, which prepares {path.with_suffix('.store')}")
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def publish(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Write a file that is there whole or not at all: it gets its name when it is on the disk."""
    partial = path.with_suffix(".partial")
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        try:
            file = os.fdopen(os.open(path.parent, os.O_TMPFILE | os.O_RDWR, 0o644), "w+b")
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
                raise
            # A file system without O_TMPFILE: what a kill leaves, the next builder overwrites.
            file = partial.open("w+b")
        with file:
            write(file)
            os.fsync(file.fileno())
            if isinstance(file.name, int):
                with contextlib.suppress(FileExistsError):  # a builder whose lock we couldn't see; its file is the same
                    os.link(f"/proc/self/fd/{file.fileno()}", path, src_dir_fd=folder)  # src_dir_fd: follows the link
            else:
                partial.replace(path)
        os.fsync(folder)
    finally:
        partial.unlink(missing_ok=True)
        os.close(folder)
