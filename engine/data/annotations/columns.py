"""Columns of numbers: a file that is written by streaming and verified, and memory that all processes share.

    MAGIC | bytes of the header, uint64 | header, JSON | crc32 of all that, uint32 | column | column | ...

The widest columns come first, so each is aligned without a gap, and every byte of the file stands under a checksum.
The memory is an unnamed file (memfd) that is sealed when it is full: nobody can change it, it has no name in /dev/shm
that a killed process could leave behind, and it isn't bound by the size of /dev/shm.
"""

import fcntl
import json
import mmap
import os
import struct
import tempfile
import weakref
import zlib
from collections.abc import Mapping
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from engine.distributed.sharing import InSharedMemory

MAGIC = b"CLIPVIL\x01"
LENGTH, CHECKSUM = struct.Struct("<Q"), struct.Struct("<I")
ALIGNMENT = 8  # of the first column; no column is wider
CHUNK = 1 << 20
SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class DamagedFile(Exception):
    """A file that isn't what was written; the message says where it differs."""


class ColumnWriter:
    """Columns that grow side by side, each in an unnamed temporary file: little memory, and nothing left by a kill."""

    def __init__(self, dtypes: Mapping[str, str], folder: Path | None) -> None:
        """Args:
        dtypes: numpy's name of each column's type, such as "<u2".
        folder: where the temporary files live; None for memory.
        """
        self.dtypes = {name: np.dtype(dtype) for name, dtype in dtypes.items()}
        self.checksums = dict.fromkeys(dtypes, 0)
        self.lengths = dict.fromkeys(dtypes, 0)
        self.files = {name: new_memory() if folder is None else _unnamed_file(folder) for name in dtypes}

    def append(self, name: str, values: Any) -> None:
        """Add the content of a buffer: an array of the column's type, or its bytes."""
        data = memoryview(values).cast("B")
        self.checksums[name] = zlib.crc32(data, self.checksums[name])
        self.lengths[name] += len(data) // self.dtypes[name].itemsize
        self.files[name].write(data)

    def finish(self, target: BinaryIO, header: Mapping[str, Any]) -> None:
        """Write the whole file. `header` is what readers find under `SharedColumns.header`."""
        widest_first = sorted(self.dtypes, key=lambda name: -self.dtypes[name].itemsize)
        columns = [
            {"name": name, "dtype": self.dtypes[name].str, "length": self.lengths[name], "crc32": self.checksums[name]}
            for name in widest_first
        ]
        target.write(_encode_header({**header, "columns": columns}))
        for name in widest_first:
            self.files[name].seek(0)
            while data := self.files[name].read(CHUNK):
                target.write(data)
            self.files[name].close()
        target.flush()


class SharedColumns(InSharedMemory):
    """Read-only columns in sealed memory, as numpy arrays by name.

    Ranks of a machine receive the descriptor (engine.distributed.sharing.share_on_node), workers inherit it by fork, or
    as a duplicate under spawn and forkserver: pickling one of these hands over the memory, not its content.
    """

    def __init__(self, descriptor: int) -> None:
        """Take over the descriptor of a sealed memory file."""
        super().__init__(descriptor)
        weakref.finalize(self, os.close, descriptor)
        self.memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
        self.header, offset = _read_header(self.memory, len(self.memory))
        self.arrays: dict[str, np.ndarray] = {}
        self.offsets: dict[str, int] = {}  # in bytes, in `memory`
        for column in self.header["columns"]:
            dtype = np.dtype(column["dtype"])
            self.offsets[column["name"]] = offset
            self.arrays[column["name"]] = np.frombuffer(self.memory, dtype, column["length"], offset)
            offset += column["length"] * dtype.itemsize

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "SharedColumns":
        """Copy arrays into shared memory."""
        with new_memory() as memory:
            writer = ColumnWriter({name: array.dtype.str for name, array in arrays.items()}, None)
            for name, array in arrays.items():
                writer.append(name, np.ascontiguousarray(array))
            writer.finish(memory, {})
            return cls.seal(memory)

    @classmethod
    def seal(cls, memory: BinaryIO) -> "SharedColumns":
        """Freeze a memory file that is complete."""
        fcntl.fcntl(memory, fcntl.F_ADD_SEALS, SEALS)
        return cls(os.dup(memory.fileno()))

    @classmethod
    def load(cls, path: Path) -> "SharedColumns":
        """Verify a file and copy it into shared memory, in one pass.

        Raises:
            DamagedFile: if it is truncated or a byte of it has changed.
            OSError: if it can't be read.
        """
        with path.open("rb", buffering=0) as file, new_memory() as memory:
            size = os.fstat(file.fileno()).st_size
            header, offset = _read_header(file, size)
            file.seek(0)
            memory.write(file.read(offset))
            chunk = bytearray(CHUNK)
            for column in header["columns"]:
                left, checksum = column["length"] * np.dtype(column["dtype"]).itemsize, 0
                while left:
                    read = file.readinto(memoryview(chunk)[: min(left, CHUNK)])
                    if not read:
                        raise DamagedFile("it ends too early")
                    part = memoryview(chunk)[:read]
                    checksum = zlib.crc32(part, checksum)
                    memory.write(part)
                    left -= read
                if checksum != column["crc32"]:
                    raise DamagedFile(f"the checksum of its column '{column['name']}' is wrong")
            memory.flush()
            return cls.seal(memory)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    @property
    def nbytes(self) -> int:
        return len(self.memory)

    def __reduce__(self) -> tuple[Any, ...]:
        return _attach, (DupFd(self.descriptor),)


def _attach(duplicate: Any) -> SharedColumns:
    return SharedColumns(duplicate.detach())


def new_memory() -> BinaryIO:
    """An unnamed file in memory that `SharedColumns.seal` can freeze."""
    return os.fdopen(os.memfd_create("clipvil", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "w+b")


def _unnamed_file(folder: Path) -> BinaryIO:
    return tempfile.TemporaryFile(dir=folder)


def _encode_header(header: Mapping[str, Any]) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-(len(MAGIC) + LENGTH.size + len(text) + CHECKSUM.size) % ALIGNMENT)
    data = MAGIC + LENGTH.pack(len(text)) + text
    return data + CHECKSUM.pack(zlib.crc32(data))


def _read_header(file: Any, size: int) -> tuple[dict[str, Any], int]:
    """The header, and where the first column begins. `size` is that of the whole file, in bytes."""
    start = file.read(len(MAGIC) + LENGTH.size)
    if len(start) < len(MAGIC) + LENGTH.size:
        raise DamagedFile("it is empty" if not start else "it ends too early")
    if not start.startswith(MAGIC):
        raise DamagedFile("it doesn't begin as such a file")
    (length,) = LENGTH.unpack(start[len(MAGIC) :])
    if length + CHECKSUM.size > size - len(start):
        raise DamagedFile("it ends too early")
    rest = file.read(length + CHECKSUM.size)
    if zlib.crc32(start + rest[:length]) != CHECKSUM.unpack(rest[length:])[0]:
        raise DamagedFile("the checksum of its header is wrong")
    header = json.loads(rest[:length])
    offset = len(start) + len(rest)
    expected = offset + sum(column["length"] * np.dtype(column["dtype"]).itemsize for column in header["columns"])
    if expected != size:
        raise DamagedFile(f"it has {size:,} bytes, not {expected:,}")
    return header, offset
