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

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
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
                row, end = scan(line)
            except (ValueError, RecursionError):
                row, end = None, 0
            if end < len(line) - 1 or not isinstance(row, dict):
                if line.isspace():
                    continue
                try:
                    row = self.parsed(line)
                except UserError as error:
                    self.pass_over(error)
                    continue
            yield row

    def parsed(self, line: str) -> dict[str, Any]:
        """The object in a line that has spaces around it; raises UserError for another line."""
        try:
            row = json.loads(line.rstrip())
        except json.JSONDecodeError as error:
            if not line.startswith("["):  # the begin of a list, which is no object either
                place = f"{self.path}, line {self.number}, column {error.colno}"
                raise UserError(f"{place}: not valid JSON ({error.msg}); mend that line") from None
            row = []
        except RecursionError:
            raise self.error(FieldError("nested too deeply")) from None
        if not isinstance(row, dict):
            raise self.error(FieldError(f"an object in each line was expected, found {type(row).__name__}"))
        return row


class CommaFile(LinesFile):
    """A first line that names the columns, and a row in each other; quotes as in spreadsheets' files.

    An empty value is none.
    """

    format = "csv"
    delimiter: ClassVar[str] = ","

    def rows(self, bar: Bar | None) -> Iterator[dict[str, Any]]:
        csv.field_size_limit(LONGEST_FIELD)
        reader = self.values(bar)
        columns = next(reader, [])
        if len(set(columns)) < len(columns):
            repeated = next(name for name in columns if columns.count(name) > 1)
            raise self.error(FieldError(f"two columns are called {repeated!r}"))
        self.check_columns(columns)
        for values in reader:
            if not values:
                continue  # an empty line
            if len(values) != len(columns):
                self.pass_over(self.error(FieldError(f"{len(columns)} values were expected, found {len(values)}")))
                continue
            yield {name: value or None for name, value in zip(columns, values, strict=True)}

    def check_columns(self, columns: list[str]) -> None:
        """Raises UserError, of the first line, if its names aren't separated or don't tell what the columns hold."""
        try:
            if len(columns) == 1:
                self.check_separated(columns[0])
            if columns:
                self.find_roles(tuple(columns))
        except FieldError as error:
            raise self.error(error) from None

    def check_separated(self, column: str) -> None:
        """Raises FieldError if the name of the only column holds what separates columns in other files."""
        wanted = SEPARATORS[self.delimiter]
        if found := [name for separator, name in SEPARATORS.items() if separator in column and name != wanted]:
            raise FieldError(
                f"there are {found[0]} between the columns, and {self.path.suffix} is read with {wanted}",
                f"save the table with {wanted}",
            )

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
