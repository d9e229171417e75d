"""Shards of WebDataset: tar files in which the files of a sample share a name and stand one after the other.

    000017.jpg  000017.txt  000017.json  000018.jpg ...

Images stay where they are and are read at their place, in any order, so shuffling and resuming are as everywhere.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

from engine.data.annotations.answers import no_such_file
from engine.data.annotations.formats.file import FieldError
from engine.data.annotations.formats.table import Columns, Row, TableFile
from engine.data.images.places import ENDINGS, Folder, Place, file_stamp
from engine.errors import UserError
from engine.progress import Bar

IMAGES = (*ENDINGS, "img")
IMAGE, TEXT, FIELDS = "image file", "txt", "json"  # what a sample's row calls its files
LARGEST_TEXT = 1 << 24  # bytes of a member that isn't an image


class ShardFile(TableFile):
    """A sample's text is its .txt, or a field of its .json; questions, answers and splits are fields."""

    format = "tar"
    unit = "sample"

    def __init__(self, path: Path, columns: Columns | None = None, split: str | None = "train") -> None:
        super().__init__(path, replace(columns or Columns(), image=IMAGE, image_root=None), split)

    @property
    def place(self) -> tuple[str, Place]:
        return super().place[0], Folder(self.path.parent)

    @property
    def identity(self) -> list[Any]:
        return [self.path.name, *super().identity]

    def digest(self) -> str:
        """Size and time: shards have hundreds of gigabytes."""
        try:
            return file_stamp(self.path)
        except OSError as error:
            raise no_such_file(self.path, error) from None

    def was(self, digest: str) -> bool:
        return self.digest() == digest

    def rows(self, bar: Bar | None) -> Iterator[Row]:
        try:
            with tarfile.open(self.path, "r:") as shard:
                self.number = 0
                for _, files in groupby(self.files(shard, bar), key=sample_of):
                    self.number += 1
                    try:
                        row = self.row_of(shard, files)
                    except UserError as error:
                        self.pass_over(error)
                        continue
                    yield row
        except tarfile.TarError as error:
            raise UserError(
                f"{self.path} can't be read as an uncompressed tar file ({error}) behind sample {self.number}; "
                "unpack a compressed one, copy a broken one again"
            ) from None
        except OSError as error:
            raise no_such_file(self.path, error) from None

    def files(self, shard: tarfile.TarFile, bar: Bar | None) -> Iterator[tarfile.TarInfo]:
        """Those that belong to a sample."""
        size = self.size()
        for member in shard:
            shard.members = []  # type: ignore[attr-defined]  # tarfile would keep all of them
            end = member.offset_data + member.size
            if end > size:
                raise tarfile.ReadError(f"{member.name} ends {end - size:,} bytes behind the end of the file")
            if bar is not None:
                bar.update(shard.offset - member.offset)
            if member.isfile() and not Path(member.name).name.startswith("."):
                yield member

    def row_of(self, shard: tarfile.TarFile, files: Iterator[tarfile.TarInfo]) -> Row:
        row: Row = {IMAGE: None}
        for member in files:
            ending = member.name[len(sample_of(member)) + 1 :].lower()
            if ending in IMAGES and row[IMAGE] is None:
                row[IMAGE] = f"{self.path.name}/{member.offset_data}+{member.size}/{member.name}"
            elif ending in (TEXT, FIELDS):
                if member.size > LARGEST_TEXT:
                    raise self.error(FieldError(f"{member.name} has {member.size:,} bytes"))
                content = shard.extractfile(member)
                data = content.read() if content is not None else b""
                row |= self.text_of(member, data) if ending == TEXT else self.fields_of(member, data)
        if len(row) == 1:
            row[TEXT] = None
        return row

    def text_of(self, member: tarfile.TarInfo, data: bytes) -> Row:
        try:
            return {TEXT: data.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            raise self.error(FieldError(f"{member.name} is not UTF-8 ({error.reason})")) from None

    def fields_of(self, member: tarfile.TarInfo, data: bytes) -> Row:
        try:
            fields = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise self.error(FieldError(f"{member.name} is not valid JSON ({error})")) from None
        if not isinstance(fields, dict):
            raise self.error(FieldError(f"{member.name}: a JSON object was expected, found {type(fields).__name__}"))
        return fields


def sample_of(member: tarfile.TarInfo) -> str:
    """The name that the files of a sample share: up to the first dot of the last part."""
    folder, slash, name = member.name.rpartition("/")
    return folder + slash + name.partition(".")[0]
