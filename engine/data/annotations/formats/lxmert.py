"""LXMERT's annotation files, read as a stream: an item at a time, in little memory, with the place of any error."""

import codecs
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from engine.data.annotations.answers import no_such_file
from engine.data.annotations.formats.file import CHUNK, AnnotationFile, FieldError, Texts
from engine.errors import UserError
from engine.progress import Bar

# How far before the end of a buffer an unfinished item can be called broken: "\uD83D\uDE00" and "-Infinity" fit in.
UNFINISHED = 16
NUMBER = (int, float)  # and no bool, which is an int as well

Member = TypeVar("Member")


class LxmertFile(AnnotationFile):
    """[{"img_id": ..., "sentf": {category: [text]}, "labelf": {category: [{answer: score}]}}, ...]

    Categories with labels are questions.
    """

    format: ClassVar[str] = "lxmert"

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.sha256 = ""  # of the bytes that were read, once all are

    def texts(self, bar: Bar | None = None) -> Iterator[Texts]:
        self.read = 0
        for number, item in enumerate(self.items(bar)):
            self.number = number
            try:
                yield from self.texts_of(item)
                self.read += 1
            except FieldError as error:
                self.pass_over(self.error(error))

    def texts_of(self, item: Any) -> Iterator[Texts]:
        """The texts of one item.

        Raises:
            FieldError: naming the field that is missing or wrong.
        """
        img_id = field(item, "img_id", str)
        texts_by_category = field(item, "sentf", dict)
        labels_by_category: Mapping[str, Any] = field(item, "labelf", dict) if "labelf" in item else {}
        for category, texts in texts_by_category.items():
            if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
                raise FieldError(f"'sentf', category {category!r}: a list of sentences was expected")
            labels = labels_by_category.get(category)
            if labels is not None and (not isinstance(labels, list) or len(labels) != len(texts)):
                found = len(labels) if isinstance(labels, list) else type(labels).__name__
                raise FieldError(f"category {category!r} has {len(texts)} sentences and {found} labels")
            for scores in labels or ():
                if not is_label(scores):
                    raise FieldError(f"'labelf', category {category!r}: answers with scores were expected")
            yield Texts(img_id, category, texts, labels)

    def was(self, digest: str) -> bool:
        return self.sha256 == digest

    def items(self, bar: Bar | None = None) -> Iterator[Any]:
        """The items of the list; `bar` advances by bytes."""
        stream = JsonStream(self.path, bar)
        with stream.file:  # also of who doesn't read on
            yield from self._items(stream)

    def _items(self, stream: "JsonStream") -> Iterator[Any]:
        if stream.next_character() != "[":
            found = type(stream.decode()).__name__
            raise UserError(f"{self.path}: a list of items was expected, found {found}")
        yield from stream.members("]", stream.decode)
        self.sha256 = stream.digest.hexdigest()


class JsonStream:
    """A text file that is decoded from a buffer; what is used up is dropped."""

    def __init__(self, path: Path, bar: Bar | None) -> None:
        try:
            self.file = path.open("rb", buffering=0)
        except OSError as error:
            raise no_such_file(path, error) from None
        self.path, self.bar = path, bar
        self.digest = hashlib.sha256()
        self.text_of = codecs.getincrementaldecoder("utf-8-sig")()
        self.scan = json.JSONDecoder().raw_decode
        self.buffer, self.position, self.ended = "", 0, False
        self.bytes_read, self.lines, self.column = 0, 0, 0  # line and column at which the buffer begins

    def next_character(self) -> str:
        """Skip white space; the character there, or "" at the end of the file."""
        while True:
            while self.position < len(self.buffer) and self.buffer[self.position] in " \t\r\n":
                self.position += 1
            if self.position < len(self.buffer):
                return self.buffer[self.position]
            if self.ended:
                return ""
            self.read_more()

    def members(self, end: str, member: Callable[[], Member]) -> Iterator[Member]:
        """What stands between the bracket that is here and the last one of the file, with commas between.

        Args:
            end: the last bracket, ] or }.
            member: reads one, and goes behind it.
        """
        self.position += 1
        if self.next_character() == end:
            self.position += 1
        else:
            while True:
                yield member()
                mark = self.next_character()
                if mark not in (",", end):
                    raise self.broken("Expecting ',' delimiter")
                self.position += 1
                if mark == end:
                    break
                if self.next_character() == end:
                    raise self.broken(f"Illegal trailing comma before end of {'array' if end == ']' else 'object'}")
        if self.next_character():
            raise self.broken("Extra data")

    def pair(self) -> tuple[str, Any]:
        """The name and the value of an object's member."""
        if self.next_character() != '"':
            raise self.broken("Expecting property name enclosed in double quotes")
        name = self.decode()
        if self.next_character() != ":":
            raise self.broken("Expecting ':' delimiter")
        self.position += 1
        return name, self.decode()

    def decode(self) -> Any:
        """The value that begins here, after white space."""
        self.next_character()
        while True:
            try:
                value, end = self.scan(self.buffer, self.position)
            except json.JSONDecodeError as error:
                # A value that only goes on behind the buffer fails at its end, or at the start of an open string.
                certain = len(self.buffer) - error.pos > UNFINISHED and not error.msg.startswith("Unterminated")
                if self.ended or certain:
                    raise self.broken(error.msg, error.pos) from None
                self.read_more()
            except RecursionError:
                raise self.broken("nested too deeply") from None
            else:
                self.position = end
                return value

    def read_more(self) -> None:
        """Drop what is used up and read on: as much again as is left, so that a long item isn't scanned too often."""
        used = self.buffer[: self.position]
        newlines = used.count("\n")
        self.lines += newlines
        self.column = len(used) - used.rfind("\n") - 1 if newlines else self.column + len(used)
        self.buffer, self.position = self.buffer[self.position :], 0
        try:
            data = self.file.read(max(CHUNK, len(self.buffer)))
            text = self.text_of.decode(data, final=not data)
        except UnicodeDecodeError as error:
            place = self.bytes_read - len(error.object) + len(data) + error.start
            raise UserError(f"{self.path}, byte {place}: not UTF-8; download the file again") from None
        except OSError as error:
            raise no_such_file(self.path, error) from None
        self.digest.update(data)
        self.bytes_read += len(data)
        self.buffer += text
        if self.bar is not None:
            self.bar.update(len(data))
        if not data:
            self.ended = True
            self.file.close()

    def broken(self, reason: str, position: int | None = None) -> UserError:
        before = self.buffer[: self.position if position is None else position]
        newlines = before.count("\n")
        column = len(before) - before.rfind("\n") if newlines else self.column + len(before) + 1
        return UserError(
            f"{self.path}, line {self.lines + newlines + 1}, column {column}: not valid JSON ({reason}); "
            "download the file again or mend that line"
        )


def field(item: Any, name: str, kind: type) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise FieldError(f"the field '{name}' is missing")
    if not isinstance(item[name], kind):
        raise FieldError(f"the field '{name}' is {type(item[name]).__name__}, not {kind.__name__}")
    return item[name]


def is_label(value: Any) -> bool:
    """Whether it is answers with their scores."""
    return isinstance(value, dict) and all(type(score) in NUMBER for score in value.values())
