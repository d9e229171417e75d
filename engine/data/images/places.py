"""Where image files lie: in the original's folders, in a folder of one's own, in tar shards, in a saved dataset.

A place knows its images by names, and gives their bytes. What becomes of them is the same for all (folder.py).
"""

import io
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from engine.errors import UserError

COCO_SPLITS = ("train2014", "val2014", "test2015")
GENOME_FOLDER = Path("vg_raw_images/VG_100K")
# Images that a task brings along: their ids begin with the task's word and a colon.
GQA, FLICKR30K = "gqa", "flickr30k"
TASK_FOLDERS = {GQA: Path("gqa_raw_images/images"), FLICKR30K: Path("flickr30k/flickr30k_images")}
SIZES = "width_heigths.json"  # the original's spelling, of a file beside the folders of images
MEMBER = re.compile(r"(?P<shard>.+\.tar)/(?P<offset>\d+)\+(?P<size>\d+)/(?P<member>.+)", re.DOTALL)


class Place(Protocol):
    """Small to pickle, and without anything open that a loading worker would share with its parent.

    `str(place)` names it within a sentence.
    """

    def missing(self, names: Iterable[str]) -> Iterator[str]:
        """Those that have no image, in order.

        Raises:
            UserError: if the place can't be read at all.
        """

    def open(self, name: str) -> BinaryIO:
        """An image file, from its first byte to its last. Raises OSError or ValueError."""

    def where(self, name: str) -> str:
        """What to call an image in a message."""

    def stamp(self, name: str) -> str:
        """Changes when the image may have."""


def image_path(img_id: str) -> Path:
    """Path of an image below the data root.

    COCO's names carry their split, those of a task's own images its word; all others are Visual Genome's.
    """
    for split in COCO_SPLITS:
        if img_id.startswith(f"COCO_{split}"):
            return Path("mscoco", split, f"{img_id}.jpg")
    word, colon, name = img_id.partition(":")
    if colon and word in TASK_FOLDERS:
        return TASK_FOLDERS[word] / f"{name}.jpg"
    return GENOME_FOLDER / f"{img_id}.jpg"


def name_in_place(img_id: str) -> str:
    """What is left of an id when files have been moved or packed anew: no name of a place, no offset in a shard."""
    first, slash, rest = img_id.partition("/")
    name = rest if slash else first
    return MEMBER.sub(r"\g<shard>/\g<member>", name) if ".tar/" in name else name


def sizes_file(img_id: str) -> Path:
    """Where the original records how large an image is, below the data root; Visual Genome's stand among COCO's."""
    folder = image_path(img_id).parent
    return Path("mscoco" if folder == GENOME_FOLDER else folder.parent, SIZES)


def is_originals(img_id: str) -> bool:
    """Whether an image is COCO's or, with a number for a name, Visual Genome's: those the original knows."""
    return "/" not in img_id and (image_path(img_id).parent != GENOME_FOLDER or img_id.isdecimal())


def file_stamp(path: Path) -> str:
    """Changes when a file is written to or replaced."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


@dataclass(frozen=True)
class OriginalFolders:
    """The original project's folders below a data root."""

    data_root: Path

    def __str__(self) -> str:
        return f"the image folders of {self.data_root}"

    def path(self, name: str) -> Path:
        return self.data_root / image_path(name)

    def missing(self, names: Iterable[str]) -> Iterator[str]:
        """Each folder is listed once, so that 180,000 images cost no look-up each."""
        listings: dict[Path, set[str]] = {}
        for name in names:
            path = self.path(name)
            if path.parent not in listings:
                try:
                    listings[path.parent] = set(os.listdir(path.parent))
                except OSError as error:
                    first = image_path(name).parts[0]
                    raise UserError(
                        f"the image folder {path.parent} can't be read ({error.strerror}), and {name} should be in "
                        f"it; unpack the images there or point --data_root at the folder that holds {first}/"
                    ) from None
            if path.name not in listings[path.parent]:
                yield name

    def open(self, name: str) -> BinaryIO:
        return self.path(name).open("rb")

    def where(self, name: str) -> str:
        return str(self.path(name))

    def stamp(self, name: str) -> str:
        return file_stamp(self.path(name))


class Window(io.RawIOBase):
    """A part of a file that reads like a file."""

    def __init__(self, path: Path, offset: int, size: int) -> None:
        self.file = path.open("rb", buffering=0)
        self.offset, self.size, self.position = offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.size}[whence]
        self.position = max(0, start + offset)
        return self.position

    def readinto(self, buffer: Any) -> int:
        left = max(0, self.size - self.position)
        read = os.preadv(self.file.fileno(), [memoryview(buffer)[:left]], self.offset + self.position)
        self.position += read
        return read

    def close(self) -> None:
        self.file.close()
        super().close()


@dataclass(frozen=True)
class Folder:
    """Image files by their paths below a folder, or by absolute ones; and members of tar shards in it.

    A member's name tells where its bytes are: SHARD.tar/OFFSET+SIZE/MEMBER. So nobody needs an index.
    """

    root: Path

    def __str__(self) -> str:
        return str(self.root)

    def missing(self, names: Iterable[str]) -> Iterator[str]:
        """Each folder is listed once. The members of a shard that is there are there."""
        listings: dict[str, set[str]] = {}
        for name in names:
            member = MEMBER.fullmatch(name) if ".tar/" in name else None
            folder, _, file = (member["shard"] if member else name).rpartition("/")
            if folder not in listings:
                try:
                    listings[folder] = set(os.listdir(self.root / (folder or ("/" if name.startswith("/") else ""))))
                except (OSError, ValueError):
                    listings[folder] = set()
            if file not in listings[folder]:
                yield name

    def open(self, name: str) -> BinaryIO:
        member = MEMBER.fullmatch(name) if ".tar/" in name else None
        if member is None:
            return (self.root / name).open("rb")
        window = Window(self.root / member["shard"], int(member["offset"]), int(member["size"]))
        return io.BufferedReader(window)

    def where(self, name: str) -> str:
        member = MEMBER.fullmatch(name)
        return f"{self.root / member['shard']}, member {member['member']}" if member else str(self.root / name)

    def stamp(self, name: str) -> str:
        member = MEMBER.fullmatch(name)
        return file_stamp(self.root / (member["shard"] if member else name))


@dataclass(frozen=True)
class Rows:
    """Images in the rows of a dataset that `datasets` has saved to disk, by the rows' numbers."""

    folder: Path
    column: str

    def __str__(self) -> str:
        return str(self.folder)

    def missing(self, names: Iterable[str]) -> Iterator[str]:
        rows = len(images_of(self.folder, self.column))
        return (name for name in names if int(name) >= rows)

    def open(self, name: str) -> BinaryIO:
        image = images_of(self.folder, self.column)[int(name)][self.column]
        if image is None:
            raise ValueError("this row has no image")
        return io.BytesIO(image["bytes"]) if image["bytes"] is not None else Path(image["path"]).open("rb")

    def where(self, name: str) -> str:
        return f"{self.folder}, row {name}"

    def stamp(self, name: str) -> str:
        return file_stamp(self.folder / "state.json")


@cache
def images_of(folder: Path, column: str) -> Any:
    """The dataset's images alone, not decoded. Its files are only mapped, which a process may do after a fork, too."""
    from engine.data.annotations.formats.dataset import load  # brings `datasets`

    return load(folder).select_columns([column])
