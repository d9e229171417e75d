"""Where image files lie: in the original's folders, in a folder of one's own, in tar shards, in a saved dataset.

A place knows its images by names, and gives their bytes. What becomes of them is the same for all (folder.py).
"""

import difflib
import io
import os
import re
from bisect import bisect
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from engine.errors import UserError

COCO_SPLITS = ("train2014", "val2014", "test2015")
GENOME_FOLDER = Path("vg_raw_images/VG_100K")
# Images that a task brings along: their ids begin with the task's word and a colon.
GQA, FLICKR30K = "gqa", "flickr30k"
TASK_FOLDERS = {GQA: Path("gqa_raw_images/images"), FLICKR30K: Path("flickr30k/flickr30k_images")}
OWN_FOLDER = Path("images")  # for images of one's own, below the data root, in folders of their own if wanted
ENDINGS = ("jpg", "jpeg", "png", "webp", "avif", "gif", "bmp", "tif", "tiff", "ppm")  # usual ones of image files
SUFFIXES = tuple(f".{spelt}" for change in (str.lower, str.upper, str.title) for spelt in map(change, ENDINGS))
COMPARED_NAMES = 1000  # at most, in the search for the nearest name: those around it in the order of names
SEARCHED_FOLDERS = 1000  # at most, for an image that isn't where its name says
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

    def sought(self, name: str) -> str:
        """Of an image that isn't there: where it was looked for, and which names are nearest."""

    def stamp(self, name: str) -> str:
        """Changes when the image may have."""


def without_suffix(name: str) -> str:
    """A name without the usual suffix of an image file, however that is spelt; any other name as it is."""
    stem, _, ending = name.rpartition(".")
    return stem if stem and ending.lower() in ENDINGS else name


def bare_name(img_id: str) -> str:
    """An id without the word of a task."""
    word, colon, name = img_id.partition(":")
    return name if colon and word in TASK_FOLDERS else img_id


def image_path(img_id: str) -> Path:
    """Path of an image of the original's below the data root; an id without a suffix is that of a .jpg.

    COCO's names carry their split, those of a task's own images its word; all others are Visual Genome's.
    """
    name = bare_name(img_id)
    file = f"{name}.jpg" if without_suffix(name) == name else name
    if name != img_id:
        return TASK_FOLDERS[img_id.removesuffix(f":{name}")] / file
    for split in COCO_SPLITS:
        if img_id.startswith(f"COCO_{split}"):
            return Path("mscoco", split, file)
    return GENOME_FOLDER / file


def spellings(name: str) -> Iterator[str]:
    """What an image's file may be called: by its id if that has a suffix, else with each usual one; the likely first.

    Earlier versions wanted one more suffix behind that of an id.
    """
    stem = without_suffix(name)
    if stem != name:
        yield name
    yield from (f"{stem}{suffix}" for suffix in SUFFIXES)
    if stem != name:
        yield f"{name}.jpg"


def spelt_in(folder: Path, names: Collection[str], file: str) -> list[Path]:
    """Which of a folder's names may be meant by `file`: the file itself if it is there, else all other spellings."""
    found = dict.fromkeys(name for name in spellings(file) if name in names) if names else ()
    return [folder / name for name in ([file] if file in found else found)]


def nearest_names(name: str, names: Iterable[str]) -> list[str]:
    """The up to three names that are most like another one; suffixes and capitals don't count."""
    by_stem = {without_suffix(other).casefold(): other for other in names}
    stems, wanted = sorted(by_stem), without_suffix(name).casefold()
    place = bisect(stems, wanted)
    around = stems[max(0, place - COMPARED_NAMES // 2) : place + COMPARED_NAMES // 2]
    return [by_stem[stem] for stem in difflib.get_close_matches(wanted, around)]


def names_in(folder: Path) -> list[str]:
    """Those in a folder; none if it can't be listed."""
    with suppress(OSError, ValueError):
        return os.listdir(folder)
    return []


def told_nearest(name: str, names: Iterable[str]) -> str:
    """The nearest names as the end of a sentence; "" where none is like it."""
    nearest = nearest_names(name, names)
    return f"; the nearest names there are {', '.join(nearest)}" if nearest else ""


def told_elsewhere(folder: Path, file: str) -> str:
    """Files of this name in a folder and in those below it, as the end of a sentence; "" where there are none."""
    paths = [
        path.relative_to(folder)
        for found, _, names in islice(os.walk(folder), SEARCHED_FOLDERS)
        for path in spelt_in(Path(found), set(names), file)
    ]
    return f"; {folder} has it as {' and as '.join(map(str, sorted(paths)[:3]))}: name it so" if paths else ""


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
    """Whether a name is that of an image of COCO's, of a task's own or, if it is a number, of Visual Genome's."""
    named = image_path(img_id).parent != GENOME_FOLDER or without_suffix(img_id).isdecimal()
    return "/" not in img_id and named


def file_stamp(path: Path) -> str:
    """Changes when a file is written to or replaced."""
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


@dataclass(frozen=True)
class OriginalFolders:
    """The original project's folders below a data root, and beside them `images`, for images of one's own.

    An id may have a suffix or none, and the file may spell it otherwise. Where the file is at the place that its id
    tells, as all of the original's are, no folder is searched to open it.
    """

    data_root: Path

    def __str__(self) -> str:
        return f"the image folders of {self.data_root}"

    def original(self, name: str) -> Path:
        """Where the original has an image."""
        return self.data_root / image_path(name)

    def own(self, name: str) -> Path:
        """Where an image of one's own is, but for the suffix."""
        return self.data_root / OWN_FOLDER / bare_name(name)

    def path(self, name: str) -> Path:
        """Where an image is; for one that is nowhere, where the original has it."""
        original, own = self.original(name), self.own(name)
        if os.path.isfile(original):
            return original
        for folder in (own.parent, original.parent):
            for file in spellings(own.name):
                if os.path.lexists(f"{folder}/{file}"):  # as `missing` sees it: a link may lead nowhere
                    return folder / file
        return original

    def missing(self, names: Iterable[str]) -> Iterator[str]:
        """Each folder is listed once, so that 180,000 images cost no look-up each.

        Raises:
            UserError: if a folder can't be read and `images` doesn't have its image, either; if an id may mean two
                files.
        """
        listings: dict[Path, set[str]] = {}
        errors: dict[Path, str] = {}
        own_folder = self.data_root / OWN_FOLDER
        has_own = own_folder.is_dir()

        def listed(folder: Path) -> set[str]:
            if folder not in listings:
                listings[folder] = set()
                try:
                    listings[folder] = set(os.listdir(folder))
                except (OSError, ValueError) as error:
                    errors[folder] = getattr(error, "strerror", None) or str(error)
            return listings[folder]

        for name in names:
            original = self.original(name)
            folder, originals = original.parent, listed(original.parent)
            if original.name in originals and not has_own:
                continue
            own = self.own(name)
            found = spelt_in(folder, originals, original.name) + spelt_in(own.parent, listed(own.parent), own.name)
            if len(set(found)) > 1:
                raise UserError(
                    f"the image {name} may be {' or '.join(map(str, found))}; remove or rename all but one of them"
                )
            if not found and own.parent in errors and os.path.isdir(own.parent):
                raise UserError(f"the image folder {own.parent} can't be read ({errors[own.parent]}); mend its rights")
            if not found and folder in errors and not has_own:
                raise UserError(
                    f"the image folder {folder} can't be read ({errors[folder]}), and {name} should be in it; unpack "
                    f"the images there, put images of your own into {own_folder}, or point --data_root at the folder "
                    f"that holds {image_path(name).parts[0]}/"
                )
            if not found:
                yield name

    def open(self, name: str) -> BinaryIO:
        try:
            return self.original(name).open("rb")
        except FileNotFoundError:
            return self.path(name).open("rb")

    def where(self, name: str) -> str:
        return str(self.path(name))

    def sought(self, name: str) -> str:
        original, own = self.original(name), self.own(name)
        names = names_in(original.parent) + names_in(own.parent)
        suffix = ".jpg" if without_suffix(own.name) == own.name else ""
        told = told_elsewhere(self.data_root / OWN_FOLDER, own.name) or told_nearest(own.name, names)
        if own.name in names:
            told = f"; {own.name} is there, but an image needs one of these: {', '.join(ENDINGS)}"
        return f"looked for {original} and {own}{suffix}, with any usual suffix{told}"

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

    def sought(self, name: str) -> str:
        member = MEMBER.fullmatch(name)
        path = self.root / (member["shard"] if member else name)
        told = told_elsewhere(self.root, path.name) or told_nearest(path.name, names_in(path.parent))
        return f"looked for {path}{told}"

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

    def sought(self, name: str) -> str:
        return f"there are {len(images_of(self.folder, self.column)):,} rows"

    def stamp(self, name: str) -> str:
        return file_stamp(self.folder / "state.json")


@cache
def images_of(folder: Path, column: str) -> Any:
    """The dataset's images alone, not decoded. Its files are only mapped, which a process may do after a fork, too."""
    from engine.data.annotations.formats.dataset import load  # brings `datasets`

    return load(folder).select_columns([column])
