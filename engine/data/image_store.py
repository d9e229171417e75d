"""Images in one LMDB file, and the source that reads it; image_writer.py writes it.

A record is an lz4 frame of msgpack, {"jpeg": bytes, "size": [width, height]}, under the image's id. The bytes are
those of the file, or a JPEG of the image resized but not padded; the size is the original's. Two more keys hold what
the store is (FORMAT_KEY, in the same framing) and a database of all sizes (INDEX_KEY). That one is written in the
transaction that writes the images, so that it is right whenever a writer is killed.

Other programs' LMDB files are read as well: see `image_of`.
"""

import contextlib
import io
import os
import re
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lmdb
import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np
from PIL import Image

from engine.data.images import (
    IMAGE_ERRORS,
    UNREADABLE_SIZE,
    Decoder,
    ImageShape,
    UnreadableImage,
    check_decoder,
    file_stamp,
    reason,
    recorded_or_measured_sizes,
    to_pixels,
)
from engine.data.transforms import Size
from engine.errors import UserError

VERSION = 1
RESERVED = b"__clipvil"
FORMAT_KEY = RESERVED + b"__"
INDEX_KEY = RESERVED + b"_sizes__"
NO_KEY = RESERVED  # under which nothing is stored
INDEX_ENTRY = struct.Struct("<ii")
LONGEST_KEY = 511  # LMDB's own limit
LARGEST_RECORD = 256 << 20  # bytes, decompressed; a record that claims more is a trap or damaged
IMAGE_FIELDS = (b"jpeg", b"jpg", b"image", b"img")
PLAIN_NUMBERS = re.compile(rb"[<>|=]?[biuf]\d{1,2}")  # numpy's names of bool, integer and float types

BUILD = "build it with `python launch/prepare.py images`"


# The framing of a record


def pack(record: object) -> bytes:
    """msgpack in an lz4 frame. JPEG doesn't shrink; the frame's checksum is what tells a damaged record."""
    return lz4.frame.compress(msgpack.packb(record), content_checksum=True)


def unpack(value: bytes) -> Any:
    """What `pack` packed, text as bytes; with numpy arrays of plain numbers where msgpack_numpy wrote them.

    Raises:
        ValueError: for a damaged record, one of more than LARGEST_RECORD bytes, and one with pickled objects in it,
            before anything is unpickled.
    """
    try:
        claimed = lz4.frame.get_frame_info(value)["content_size"]  # 0: not told
        frame = lz4.frame.LZ4FrameDecompressor()
        data = frame.decompress(value, max_length=min(claimed or LARGEST_RECORD, LARGEST_RECORD) + 1)
        if max(claimed, len(data)) > LARGEST_RECORD:
            raise ValueError(f"the record is larger than {LARGEST_RECORD >> 20} MiB when decompressed")
        if not frame.eof:
            raise ValueError("the record is cut off")
        # Text as bytes, because writers of old marked both alike.
        return msgpack.unpackb(data, raw=True, object_hook=_restore_array)
    except (RuntimeError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ValueError(f"the record is damaged ({error or type(error).__name__})") from None


def _restore_array(mapping: dict[Any, Any]) -> Any:
    """msgpack_numpy's decoding for plain numbers only. It would unpickle object arrays: they don't get there."""
    if b"nd" not in mapping and b"complex" not in mapping:
        return mapping
    kind, dtype = mapping.get(b"kind", b""), mapping.get(b"type")
    if b"nd" not in mapping or kind != b"" or not isinstance(dtype, bytes) or not PLAIN_NUMBERS.fullmatch(dtype):
        raise ValueError(f"the record holds numpy data of kind {kind!r}, type {dtype!r}; only plain numbers are read")
    return msgpack_numpy.decode(mapping)


def image_of(value: bytes) -> tuple[bytes | np.ndarray, Size | None]:
    """An image file's bytes or uint8 (H, W, 3) RGB, and the original size where the record tells it as ours do.

    A value may be an image file as it is, or an lz4 frame of msgpack of: an image file's bytes; a uint8 array
    (H, W, 3), or a flat one of an image file's bytes; a mapping with one of these under one of IMAGE_FIELDS.

    Raises:
        ValueError: if it is none of these; see `unpack`.
    """
    if not value.startswith(b"\x04\x22\x4d\x18"):
        return value, None
    record, size = unpack(value), None
    if isinstance(record, dict):
        if b"jpeg" in record and b"size" in record:
            size = record[b"size"]
            if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
                raise ValueError(f"the record's size is {size!r}, expected [width, height]")
            size = (size[0], size[1])
        record = next((record[field] for field in IMAGE_FIELDS if field in record), None)
    if isinstance(record, np.ndarray) and record.dtype == np.uint8:
        if record.ndim == 3 and record.shape[2] == 3 and record.size:
            return record, size
        if record.ndim and record.size == record.shape[0]:  # OpenCV's encoder gives (N,) or (N, 1)
            return record.tobytes(), size
    if isinstance(record, bytes):
        return record, size
    found = f"{record.dtype} {record.shape}" if isinstance(record, np.ndarray) else type(record).__name__
    raise ValueError(f"the record holds no image: expected bytes or uint8 (H, W, 3), found {found}")


def key_of(img_id: str) -> bytes | None:
    """The key of an image, or None where LMDB or this module can't have it as one."""
    key = img_id.encode("utf-8", "surrogatepass")
    return key if 0 < len(key) <= LONGEST_KEY and not key.startswith(RESERVED) else None


@dataclass(frozen=True)
class StoreFormat:
    """How a store's images were made; `resize` is (min, max), and without it there is no quality."""

    resize: Size | None
    quality: int | None
    version: int = VERSION

    def __str__(self) -> str:
        if self.resize is None:
            return "images as they are"
        return f"images resized to {self.resize[0]}x{self.resize[1]} at quality {self.quality}"


# Opening


# One environment per file and process: LMDB can't open a file twice in a process, and doesn't survive a fork.
_environments: dict[Path, tuple[int, lmdb.Environment]] = {}
_opening = threading.Lock()


def environment_of(path: Path) -> lmdb.Environment:
    """This process's environment of a store, opened when first asked for."""
    with _opening:
        owner, environment = _environments.get(path, (0, None))
        if environment is None or owner != os.getpid():
            release(path)  # an inherited one still counts as open
            environment = open_store(path)
            _environments[path] = os.getpid(), environment
        return environment


def release(path: Path) -> None:
    _, environment = _environments.pop(path, (0, None))
    if environment is not None:
        environment.close()


@contextlib.contextmanager
def _briefly_open(path: Path) -> Iterator[lmdb.Environment]:
    """Open for the main process's own questions, and closed again before workers are forked."""
    try:
        yield environment_of(path)
    finally:
        release(path)


def data_file(path: Path) -> Path:
    return path / "data.mdb" if path.is_dir() else path


def open_store(path: Path) -> lmdb.Environment:
    """Open for reading, without locks: nobody writes to a store that is trained from."""
    try:
        empty = data_file(path).stat().st_size == 0
    except OSError as error:
        raise UserError(f"the image store {path} can't be read ({error.strerror}); {BUILD}") from None
    if empty:
        raise UserError(f"the image store {path} is empty; {BUILD}")
    try:
        environment = lmdb.open(
            str(path),
            subdir=path.is_dir(),
            readonly=True,
            create=False,
            lock=False,
            readahead=False,
            meminit=False,
            max_dbs=1,
        )
    except lmdb.Error as error:
        raise UserError(f"the image store {path} can't be read ({short(error)}); remove it, and {BUILD}") from None
    needed = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    found = data_file(path).stat().st_size
    if found < needed:  # reading behind the end would be SIGBUS, which no process survives
        environment.close()
        raise UserError(
            f"the image store {path} is cut off ({found:,} bytes of {needed:,}); copy it again, or remove "
            f"it, and {BUILD}"
        )
    return environment


def short(error: lmdb.Error) -> str:
    return str(error).rpartition(": ")[2]


def read_format(environment: lmdb.Environment, path: Path) -> StoreFormat | None:
    """None for a store that another program wrote."""
    with environment.begin() as transaction:
        value = transaction.get(FORMAT_KEY)
    if value is None:
        return None
    try:
        fields = unpack(value)
        size, version = fields[b"resize"], fields[b"version"]
        store_format = StoreFormat(size and (size[0], size[1]), fields[b"quality"], version)
    except (ValueError, TypeError, LookupError) as error:
        raise UserError(f"the image store {path} is damaged ({error}); remove it, and {BUILD}") from None
    if version != VERSION:
        raise UserError(
            f"the image store {path} has format {version}, and this program reads {VERSION}; remove it, and {BUILD}"
        )
    return store_format


# Reading


class ImageStore:
    """The source of images that a store holds, by their ids; ours, or another program's (`image_of`).

    Each process opens it at its first `load`. An image of another program's store has the size that
    `mscoco/width_heigths.json` below `data_root` tells, else that of its record.

    Raises:
        UserError: if there is no store, if it is empty, cut off or no LMDB file, or holds images of another size than
            `shape` wants.
    """

    def __init__(self, path: Path, data_root: Path, shape: ImageShape, decoder: Decoder = "pillow") -> None:
        check_decoder(decoder)
        self.path = path.resolve()
        self.data_root = data_root
        self.shape = shape
        self.decoder = decoder
        with _briefly_open(self.path) as environment:
            self.format = read_format(environment, self.path)
            images = self._index(environment) if self.format else None
            with environment.begin(db=images) as transaction:
                if transaction.stat()["entries"] == 0:
                    raise UserError(f"the image store {self.path} holds no image; {BUILD}")
        resized = self.format and self.format.resize
        if resized and resized != (shape.min_size, shape.max_size):
            raise UserError(
                f"the image store {self.path} holds images of {resized[0]} x {resized[1]}, but --image_size_min "
                f"{shape.min_size} --image_size_max {shape.max_size} was asked for; give --image_size_min {resized[0]} "
                f"--image_size_max {resized[1]}, or build another store"
            )

    def __str__(self) -> str:
        return f"the image store {self.path}"

    def _index(self, environment: lmdb.Environment) -> Any:
        try:
            return environment.open_db(INDEX_KEY, create=False)
        except lmdb.Error as error:
            raise UserError(f"{self} is damaged (its index: {short(error)}); remove it, and {BUILD}") from None

    def missing(self, img_ids: Iterable[str]) -> list[str]:
        """The ids without a record, by the index where there is one, else by the keys; no record is read."""
        with _briefly_open(self.path) as environment:
            keys = self._index(environment) if self.format else None
            with environment.begin(db=keys) as transaction, transaction.cursor() as cursor:
                return [img_id for img_id in img_ids if (key := key_of(img_id)) is None or not cursor.set_key(key)]

    def sizes(self, img_ids: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """(N, 2), from the index; another program's store has none."""
        with _briefly_open(self.path) as environment:
            if self.format is None:
                return recorded_or_measured_sizes(img_ids, self.data_root, self._measure, progress=progress)
            unknown = INDEX_ENTRY.pack(*UNREADABLE_SIZE)
            with environment.begin(db=self._index(environment)) as transaction:
                entries = [transaction.get(key_of(img_id) or NO_KEY, unknown) for img_id in img_ids]
        return np.frombuffer(b"".join(entries), dtype="<i4").reshape(-1, 2).astype(np.int32)

    def _measure(self, img_id: str) -> Size:
        image, _ = image_of(self._value(img_id))
        if isinstance(image, np.ndarray):
            return image.shape[1], image.shape[0]
        with Image.open(io.BytesIO(image)) as opened:
            return opened.size

    def stamp(self, img_id: str) -> str:
        return file_stamp(data_file(self.path))

    def load(self, img_id: str) -> np.ndarray:
        """Decoded, resized and padded: uint8 (3, H, W). Raises UnreadableImage."""
        try:
            image, original = image_of(self._value(img_id))
            return to_pixels(image, self.shape, self.decoder, original)
        except IMAGE_ERRORS as error:
            raise UnreadableImage(f"{self.path}, key {img_id}: {reason(error)}") from None

    def _value(self, img_id: str) -> bytes:
        key = key_of(img_id)
        try:
            with environment_of(self.path).begin() as transaction:
                value = None if key is None else transaction.get(key)
        except lmdb.Error as error:
            raise ValueError(short(error)) from None
        if value is None:
            raise ValueError("no such record")
        return value
