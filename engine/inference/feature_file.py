"""Features in a file that safetensors reads, larger than memory: its rows are written in place, by several processes.

    8 bytes         the length of the header
    header          JSON: the tensors' dtypes, shapes and places, and what is told of the file
    tensors         one behind the other, each with all of its rows

Its form is that of https://github.com/huggingface/safetensors.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from engine.checkpoint.space import GB, free_bytes
from engine.errors import UserError
from engine.files import NO_SPACE, only_here
from engine.inference.features import Column

DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64"}
ALIGNMENT = 8  # bytes; no tensor begins in the middle of one of its numbers


class FeatureFile:
    """One process calls `create`, the others `open`; all `write` their rows and `sync`; then the first one `publish`es.

    Until then the file is called PATH.partial, so that what has its name is whole. At the end of a `with`, the first
    process removes it if it wasn't published.
    """

    def __init__(self, path: Path, columns: Mapping[str, Column], rows: int, about: Mapping[str, str]) -> None:
        """Args:
        about: what is told of the file, which safetensors calls metadata.
        """
        self.path, self.columns, self.rows = path, columns, rows
        self.partial = path.with_name(f"{path.name}.partial")
        self.owned: IO[bytes] | None = None  # the file as the process that created it holds and locks it
        header: dict[str, Any] = {"__metadata__": {"format": "pt", **about}}
        places, end = dict[str, int](), 0
        # The largest numbers first, so that all of them are aligned.
        for name, column in sorted(columns.items(), key=lambda item: -item[1].dtype.itemsize):
            places[name], end = end, end + rows * column.row_bytes
            header[name] = {
                "dtype": DTYPES[column.dtype],
                "shape": [rows, *column.shape],
                "data_offsets": [places[name], end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % ALIGNMENT)
        self.header = len(text).to_bytes(8, "little") + text
        self.places = {name: len(self.header) + place for name, place in places.items()}
        self.size = len(self.header) + end

    def __enter__(self) -> "FeatureFile":
        return self

    def __exit__(self, *error: object) -> None:
        if self.owned is not None:
            self.partial.unlink(missing_ok=True)
            self.owned.close()

    def create(self) -> None:
        """Make the file with all of its room, so that a disk that is too full is told of before anything is computed.

        Raises:
            UserError: if it can't be written, another process writes it, or there is no room.
        """
        if self.path.is_dir():
            raise UserError(f"{self.path} is a folder; choose another name")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = self.partial.open("ab")
        except OSError as error:
            raise self._refused(error) from None
        only_here(file, self.partial)
        self.owned = file
        try:
            file.truncate(0)  # what a run that was killed may have left
            if self.size > free_bytes(self.path.parent):
                raise self._no_room()
            os.posix_fallocate(file.fileno(), 0, self.size)
            self.open()
            _write(self.descriptor, self.header, 0)
        except OSError as error:
            raise self._no_room() if error.errno in NO_SPACE else self._refused(error) from None

    def open(self) -> None:
        """Open what another process has created.

        Raises:
            UserError: if it isn't there, as on another machine.
        """
        try:
            self.descriptor = os.open(self.partial, os.O_WRONLY)
        except OSError as error:
            raise UserError(
                f"{self.partial} can't be opened ({error.strerror}); name a folder that all machines share"
            ) from None

    def write(self, rows: Sequence[int], tensors: Mapping[str, Tensor]) -> None:
        """Write some rows of every column.

        Args:
            tensors: by name, (len(rows), ...) each; those that the file has no column for are passed over.

        Raises:
            UserError: if the disk doesn't take them.
        """
        try:
            for name, (dtype, shape) in self.columns.items():
                tensor = tensors[name].contiguous()
                assert (tensor.dtype, tensor.shape[1:]) == (dtype, shape), (name, tensor.dtype, tensor.shape)
                data, length = tensor.view(torch.uint8).numpy(), self.columns[name].row_bytes
                for row, values in zip(rows, data, strict=True):
                    _write(self.descriptor, values.data, self.places[name] + row * length)
        except OSError as error:
            raise self._refused(error) from None

    def sync(self) -> None:
        """Wait until what this process has written is on the disk."""
        try:
            os.fsync(self.descriptor)
            os.close(self.descriptor)
        except OSError as error:
            raise self._refused(error) from None

    def publish(self) -> None:
        """Give the file its name, once all processes have synced."""
        assert self.owned is not None
        try:
            self.partial.replace(self.path)
        except OSError as error:
            raise self._refused(error) from None
        self.owned.close()
        self.owned = None

    def _no_room(self) -> UserError:
        return UserError(
            f"{self.path} takes {self.size / GB:.3g} GB, and {free_bytes(self.path.parent) / GB:.3g} GB are free; free "
            "space, choose another disk, or keep less of each pair, such as --feature_parts pooled"
        )

    def _refused(self, error: OSError) -> UserError:
        return UserError(f"{self.path} can't be written ({error.strerror}); mend that or choose another place")


def _write(descriptor: int, data: bytes | memoryview, place: int) -> None:
    """All of it, however much the system takes at a time."""
    left = memoryview(data).cast("B")
    while left:
        written = os.pwrite(descriptor, left, place)
        left, place = left[written:], place + written
