"""Tables in lines of text: JSON objects, or values with commas or tabs between them."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any, ClassVar

from engine.data.annotations.answers import no_such_file
from engine.data.annotations.formats.file import CHUNK, FieldError
from engine.data.annotations.formats.table import TableFile
from engine.errors import UserError
from engine.progress import Bar

LONGEST_FIELD = 1 << 24  # characters; csv's own limit of 131,072 would refuse long lists


class _Hashed(io.RawIOBase):
    """A file that is hashed as it is read."""

    def __init__(self, file: io.FileIO, bar: Bar | None) -> None:
        self.file, self.bar = file, bar
        self.sha256 = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        read = self.file.readinto(buffer) or 0
        self.sha256.update(memoryview(buffer)[:read])
        if self.bar is not None:
            self.bar.update(read)
        return read


class LinesFile(TableFile):
    """UTF-8 text, with or without a byte order mark."""

    unit: ClassVar[str] = "line"
    sha256: str = ""  # of the bytes that were read, once all are

    def was(self, digest: str) -> bool:
        return self.sha256 == digest

    def lines(self, bar: Bar | None) -> Iterator[str]:
        """With their ends; `number` is that of the line, from 1."""
        try:
            with self.path.open("rb", buffering=0) as file:
                hashed = _Hashed(file, bar)
                for self.number, line in enumerate(io.BufferedReader(hashed, CHUNK), start=1):
                    try:
                        text = line.decode("utf-8-sig" if self.number == 1 else "utf-8")
                    except UnicodeDecodeError as error:
                        self.pass_over(
                            UserError(f"{self.path}, line {self.number}: not UTF-8 ({error.reason}); mend that line")
                        )
                        continue
                    yield text
                self.sha256 = hashed.sha256.hexdigest()
        except OSError as error:
            raise no_such_file(self.path, error) from None


class JsonLinesFile(LinesFile):
    """A JSON object in each line. Rows needn't have the same columns."""

    format = "jsonl"

    def rows(self, bar: Bar | None) -> Iterator[dict[str, Any]]:
        scan = json.JSONDecoder().raw_decode  # quicker than loads for a short line
        for line in self.lines(bar):
            try:
                try:
                    row, end = scan(line)
                    if end < len(line) - 1:
                        row = self.parsed(line)
                except (ValueError, RecursionError):
                    if line.isspace():
                        continue
                    row = self.parsed(line)
                if not isinstance(row, dict):
                    raise self.error(FieldError(f"a JSON object was expected, found {type(row).__name__}"))
            except UserError as error:
                self.pass_over(error)
                continue
            yield row

    def parsed(self, line: str) -> Any:
        """A line that has spaces around it, or isn't JSON."""
        try:
            return json.loads(line)
        except json.JSONDecodeError as error:
            place = f"{self.path}, line {self.number}, column {error.colno}"
            hint = "this is one JSON list, and an object in each line is needed" if line[0] == "[" else error.msg
            raise UserError(f"{place}: not valid JSON ({hint}); mend that line") from None
        except RecursionError:
            raise self.error(FieldError("nested too deeply")) from None


class CommaFile(LinesFile):
    """A first line that names the columns, and a row in each other; quotes as in spreadsheets' files."""

    format = "csv"
    delimiter: ClassVar[str] = ","

    def rows(self, bar: Bar | None) -> Iterator[dict[str, Any]]:
        csv.field_size_limit(LONGEST_FIELD)
        reader = self.values(bar)
        columns = next(reader, [])
        if len(set(columns)) < len(columns):
            repeated = next(name for name in columns if columns.count(name) > 1)
            raise self.error(FieldError(f"two columns are called {repeated!r}"))
        for values in reader:
            if not values:
                continue  # an empty line
            if len(values) != len(columns):
                self.pass_over(self.error(FieldError(f"{len(columns)} values were expected, found {len(values)}")))
                continue
            yield dict(zip(columns, values, strict=True))

    def values(self, bar: Bar | None) -> Iterator[list[str]]:
        """Of each row."""
        reader = csv.reader(self.lines(bar), delimiter=self.delimiter, strict=True)
        while True:
            try:
                yield next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                reason = f"{error}; a value with quotes in it has to be quoted itself"
                self.pass_over(self.error(FieldError(reason)))


class TabFile(CommaFile):
    """The same with tabs."""

    format = "tsv"
    delimiter = "\t"
