"""Sizes of one's own images, kept beside the annotation store, so that each is measured once and not at each start."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from engine.data.annotations.columns import ColumnWriter, DamagedFile, SharedColumns
from engine.data.annotations.source import publish
from engine.data.images.decoding import UNREADABLE_SIZE
from engine.data.images.folder import ImageFolder, ImageSource

NAMES = ("width", "height")


class SizeCache:
    """A file of the sizes of a store's images, by their codes. The original's images have a file of their own.

    A cache that is damaged, or can't be written, costs a start the time to measure, and nothing else.
    """

    def __init__(self, cache: Path, key: str, images: ImageSource, count: int) -> None:
        """Args:
        key: of the annotation store.
        count: of its images.
        """
        self.path: Path | None = None
        self.count = count
        if isinstance(images, ImageFolder) and (images.places or images.own_folder):
            folders = {name: str(Path(str(place)).resolve()) for name, place in images.places.items()}
            folders |= {"": str(images.own_folder.resolve())} if images.own_folder else {}
            name = hashlib.sha256(json.dumps([key, folders], sort_keys=True).encode()).hexdigest()
            self.path = cache / f"sizes-{name[:32]}.store"

    def read(self) -> np.ndarray:
        """int32 (images, 2), 0 for an image that hasn't been measured."""
        if self.path is not None:
            with suppress(DamagedFile, OSError, KeyError):
                columns = SharedColumns.load(self.path)
                sizes = np.stack([columns[name] for name in NAMES], axis=1)
                if len(sizes) == self.count:
                    return sizes
        return np.zeros((self.count, 2), np.int32)

    def keep(self, known: np.ndarray, sizes: np.ndarray) -> None:
        """Write what differs from what was read. Images that couldn't be measured are tried again at the next start."""
        measured = np.where((sizes == UNREADABLE_SIZE).all(axis=1, keepdims=True), known, sizes)
        if self.path is None or (measured == known).all():
            return
        writer = ColumnWriter({name: measured.dtype.str for name in NAMES}, None)
        for name, values in zip(NAMES, measured.T, strict=True):
            writer.append(name, np.ascontiguousarray(values))
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            publish(self.path, lambda file: writer.finish(file, {}))
