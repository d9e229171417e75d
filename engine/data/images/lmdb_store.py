"""Images in one LMDB file, and the source that reads it; writer.py writes it.

Each image is a record under its id (records.py). Two more keys hold what the store is (FORMAT_KEY, in the same framing)
and a database of all sizes (INDEX_KEY). That one is written in the transaction that writes the images, so that it is
right whenever a writer is killed.

Other programs' LMDB files are read as well: see records.image_of.
"""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from engine.commands import command
from engine.data.images.decoding import (
    IMAGE_ERRORS,
    UNREADABLE_SIZE,
    Decoder,
    ImageShape,
    UnreadableImage,
    check_decoder,
    open_image,
    reason,
    to_pixels,
)
from engine.data.images.folder import recorded_or_measured_sizes
from engine.data.images.places import (
    COMPARED_NAMES,
    file_stamp,
    is_originals,
    spellings,
    told_nearest,
    without_suffix,
)
from engine.data.images.records import (
    FORMAT_KEY,
    INDEX_ENTRY,
    INDEX_KEY,
    NO_KEY,
    VERSION,
    StoreFormat,
    image_of,
    key_of,
    unpack,
)
from engine.data.images.transforms import Size
from engine.distributed.workers import reading
from engine.errors import UserError

BUILD = f"build it with `{command('prepare')} images`"

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


def find_key(has: Callable[[bytes], bool], img_id: str, store: object) -> bytes | None:
    """The key of an image: its id, else its id with the suffix in another spelling; None if no such key is there.

    Images in a place of one's own go by their paths, which are exact.

    Args:
        has: whether a key is there.
        store: what to call it in a message.

    Raises:
        UserError: if several keys may be meant.
    """
    if (key := key_of(img_id)) is not None and has(key):
        return key
    if "/" in img_id:
        return None
    others = dict.fromkeys((without_suffix(img_id), *spellings(img_id)))
    found = [other for other in others if (key := key_of(other)) is not None and has(key)]
    if len(found) > 1:
        raise UserError(f"the image {img_id} may be {' or '.join(found)} in {store}; write the id with its suffix")
    return key_of(found[0]) if found else None


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
                return [img_id for img_id in img_ids if find_key(cursor.set_key, img_id, self) is None]

    def sought(self, img_id: str) -> str:
        wanted = key_of(img_id) or NO_KEY
        with _briefly_open(self.path) as environment:
            keys = self._index(environment) if self.format else None
            with environment.begin(db=keys) as transaction, transaction.cursor() as cursor:
                cursor.set_range(wanted)
                before = itertools.islice(cursor.iterprev(values=False), COMPARED_NAMES // 2)
                names = [key.decode(errors="replace") for key in before]
                cursor.set_range(wanted)
                after = itertools.islice(cursor.iternext(values=False), COMPARED_NAMES // 2)
                names += [key.decode(errors="replace") for key in after]
        return f"looked for that key, with any usual suffix{told_nearest(img_id, names)}"

    def sizes(self, img_ids: Sequence[str], *, known: np.ndarray | None = None, progress: bool = False) -> np.ndarray:
        """(N, 2), from the index; another program's store has none."""
        with _briefly_open(self.path) as environment:
            if self.format is None:
                return recorded_or_measured_sizes(img_ids, self.data_root, self._measure, progress=progress)
            unknown = INDEX_ENTRY.pack(*UNREADABLE_SIZE)
            with environment.begin(db=self._index(environment)) as transaction:
                with transaction.cursor() as cursor:
                    keys = [find_key(cursor.set_key, img_id, self) for img_id in img_ids]
                entries = [transaction.get(key or NO_KEY, unknown) for key in keys]
        return np.frombuffer(b"".join(entries), dtype="<i4").reshape(-1, 2).astype(np.int32)

    def _measure(self, img_id: str) -> Size:
        image, _, is_own = image_of(self._value(img_id))
        if isinstance(image, np.ndarray):
            return image.shape[1], image.shape[0]
        with open_image(image, as_original=is_originals(img_id) and not is_own) as opened:
            return opened.size

    def stamp(self, img_id: str) -> str:
        return file_stamp(data_file(self.path))

    def load(self, img_id: str) -> np.ndarray:
        """Decoded, resized and padded: uint8 (3, H, W). Raises UnreadableImage."""
        try:
            with reading(f"{self.path}, key {img_id},"):
                image, original, is_own = image_of(self._value(img_id))
                as_original = is_originals(img_id) and not is_own
                return to_pixels(image, self.shape, self.decoder, original, as_original=as_original)
        except IMAGE_ERRORS as error:
            raise UnreadableImage(f"{self.path}, key {img_id}: {reason(error)}") from None

    def _value(self, img_id: str) -> bytes:
        try:
            with environment_of(self.path).begin() as transaction:
                value = transaction.get(key_of(img_id) or NO_KEY)
                if value is None:
                    with transaction.cursor() as cursor:
                        value = transaction.get(find_key(cursor.set_key, img_id, self) or NO_KEY)
        except lmdb.Error as error:
            raise ValueError(short(error)) from None
        if value is None:
            raise ValueError("no such record")
        return value
