"""A record of an image store: an lz4 frame of msgpack, and what else other programs' stores may hold.

Ours is {"jpeg": bytes, "size": [width, height]} under the image's id. The bytes are those of the file, or a JPEG of the
image resized but not padded; the size is the original's. An image of one's own, whose id could be one of COCO's or
Visual Genome's, has "own": true as well.
"""

import re
import struct
from dataclasses import dataclass
from typing import Any, NamedTuple

import lz4.frame
import msgpack
import msgpack_numpy
import numpy as np

from engine.data.images.transforms import Size

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


class StoredImage(NamedTuple):
    """What a record holds."""

    image: bytes | np.ndarray  # an image file's bytes, or uint8 (H, W, 3) RGB
    size: Size | None = None  # the original's, where the record tells it as ours do
    is_own: bool = False  # of one's own, whatever its id


def image_of(value: bytes) -> StoredImage:
    """The image of a record.

    A value may be an image file as it is, or an lz4 frame of msgpack of: an image file's bytes; a uint8 array
    (H, W, 3), or a flat one of an image file's bytes; a mapping with one of these under one of IMAGE_FIELDS.

    Raises:
        ValueError: if it is none of these; see `unpack`.
    """
    if not value.startswith(b"\x04\x22\x4d\x18"):
        return StoredImage(value)
    record, size, is_own = unpack(value), None, False
    if isinstance(record, dict):
        is_own = record.get(b"own") is True
        if b"jpeg" in record and b"size" in record:
            size = record[b"size"]
            if not (isinstance(size, list) and len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size)):
                raise ValueError(f"the record's size is {size!r}, expected [width, height]")
            size = (size[0], size[1])
        record = next((record[field] for field in IMAGE_FIELDS if field in record), None)
    if isinstance(record, np.ndarray) and record.dtype == np.uint8:
        if record.ndim == 3 and record.shape[2] == 3 and record.size:
            return StoredImage(record, size, is_own)
        if record.ndim and record.size == record.shape[0]:  # OpenCV's encoder gives (N,) or (N, 1)
            return StoredImage(record.tobytes(), size, is_own)
    if isinstance(record, bytes):
        return StoredImage(record, size, is_own)
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
