"""All images of a data set, or a sample of them, decoded once: what can't be read and why, sizes, bytes, one colour."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import NamedTuple

import numpy as np

from engine.data.images.decoding import IMAGE_ERRORS, ImageShape, open_image, reason
from engine.data.images.folder import SOUGHT, ImageFolder
from engine.data.images.transforms import Size, aspect_ratio_bins, aspect_ratio_group, placement
from engine.data.inspection.texts import Names, Problems
from engine.errors import UserError
from engine.progress import Bar

LISTED_AT_ONCE = 1 << 18  # images that are looked up in listings of their folders at a time
DECODED_AT_ONCE = 1 << 8


class Look(NamedTuple):
    """What an image turned out to be."""

    size: Size = (0, 0)
    digest: int = 0  # of the file's bytes
    one_colour: bool = False
    problem: str = ""
    is_missing: bool = False


class ImageTable:
    """What was found, by the images' numbers."""

    def __init__(self, numbers: np.ndarray) -> None:
        """Args:
        numbers: of the images to look at, ascending int64.
        """
        self.numbers = numbers
        self.sizes = np.zeros((len(numbers), 2), np.int32)  # width and height, 0 of what can't be read
        self.digests = np.zeros(len(numbers), np.uint64)
        self.one_colour = np.zeros(len(numbers), bool)
        self.missing: list[int] = []
        self.unreadable: list[int] = []
        self.missing_lines, self.unreadable_lines = Problems(), Problems()

    @property
    def readable(self) -> np.ndarray:
        """Places of the images that are, int64."""
        return np.flatnonzero(self.sizes[:, 0])

    def same_bytes(self) -> list[np.ndarray]:
        """Numbers of images whose files hold the same bytes, a group of two or more each."""
        places = self.readable
        order = places[np.argsort(self.digests[places], kind="stable")]
        ends = np.flatnonzero(np.diff(self.digests[order])) + 1
        groups = [np.sort(self.numbers[group]) for group in np.split(order, ends) if len(group) > 1]
        return sorted(groups, key=lambda group: int(group[0]))

    def enlarged(self, shape: ImageShape) -> int:
        """How many have fewer pixels than they are resized to."""
        return sum(placement(size, shape.min_size, shape.max_size)[0][0] > size[0] for size in self._sizes())

    def narrow(self, shape: ImageShape) -> int:
        """How many come out with a short side of less than half of the wanted one."""
        sides = self.sizes[self.readable].astype(np.int64)
        return int((sides.max(1) * shape.min_size > 2 * sides.min(1) * shape.max_size).sum())

    def groups(self, factor: int) -> dict[str, int]:
        """How many images each group of aspect ratios has, by its range of height / width."""
        bins = aspect_ratio_bins(factor)
        width, height = self.sizes[self.readable].T
        counts = np.bincount(aspect_ratio_group(height / width, bins), minlength=len(bins) + 1)
        edges = [f"{edge:.2f}" for edge in bins]
        names = [f"below {edges[0]}", *map("{} to {}".format, edges, edges[1:]), f"{edges[-1]} and more"]
        return {name: count for name, count in zip(names, counts.tolist(), strict=True) if count}

    def _sizes(self) -> Iterator[Size]:
        return map(tuple, self.sizes[self.readable].tolist())


def look_at_images(images: ImageFolder, names: Names, numbers: np.ndarray) -> ImageTable:
    """Find which images are missing, and decode those of these numbers on all cores, with progress."""
    found = ImageTable(numbers)
    missing = find_missing(images, names, found.missing_lines)
    for number in missing:
        name = names[number]
        told = f" ({images.sought(name)})" if len(found.missing) < SOUGHT else ""
        found.missing.append(number)
        found.missing_lines.add(f"{images.where(name)}: no such file{told}")
    todo = np.flatnonzero(~np.isin(numbers, missing))
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        Bar(total=len(todo), desc="looking at images", unit="image") as bar,
    ):
        for chunk in np.split(todo, range(DECODED_AT_ONCE, len(todo), DECODED_AT_ONCE)):
            looks = pool.map(lambda place: look_at(images, names[numbers[place]]), chunk)
            for place, look in zip(chunk.tolist(), looks, strict=True):
                bar.update()
                found.sizes[place], found.digests[place], found.one_colour[place] = look[:3]
                if look.problem:
                    lines = found.missing_lines if look.is_missing else found.unreadable_lines
                    lines.add(look.problem)
                    (found.missing if look.is_missing else found.unreadable).append(int(numbers[place]))
    return found


def find_missing(images: ImageFolder, names: Names, problems: Problems) -> list[int]:
    """Numbers of the images that listings of their folders don't have.

    Of a folder that can't be listed, each image will say so; a name that two files match is a problem, too.
    """
    found: list[int] = []
    for start in range(0, len(names), LISTED_AT_ONCE):
        part = names[start : start + LISTED_AT_ONCE]
        try:
            missing = set(images.missing(part))
        except UserError as error:
            problems.add(error)
            continue
        found += [start + n for n, name in enumerate(part) if name in missing]
    return found


def look_at(images: ImageFolder, img_id: str) -> Look:
    """Read and decode an image as a training would."""
    shape = images.shape
    try:
        with images.open(img_id) as file:
            data = file.read()
        with open_image(data, as_original=images.as_original(img_id)) as image:
            size, _ = placement(image.size, shape.min_size, shape.max_size)
            extrema = list(chain(*image.rgb(size).getextrema()))
            one_colour = extrema[::2] == extrema[1::2]
            return Look(image.size, digest_of(data), one_colour)
    except IMAGE_ERRORS as error:
        told = (error.strerror if isinstance(error, OSError) else None) or reason(error)
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        return Look(problem=f"{images.where(img_id)}: {told}", is_missing=missing)


def digest_of(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def oddest(found: ImageTable, names: Names, each: int) -> list[tuple[str, str]]:
    """The narrowest, the smallest and some of one colour, each once, with what they are."""
    places = found.readable
    sides = found.sizes[places].astype(np.int64)
    narrowest = places[np.argsort(sides.min(1) / np.maximum(1, sides.max(1)), kind="stable")]
    smallest = places[np.argsort(sides.prod(1), kind="stable")]
    kinds: Sequence[tuple[str, np.ndarray]] = (
        ("one colour", np.flatnonzero(found.one_colour)),
        ("narrowest", narrowest),
        ("smallest", smallest),
    )
    chosen: dict[str, str] = {}
    for kind, candidates in kinds:
        new = (name for place in candidates[: 3 * each] if (name := names[found.numbers[place]]) not in chosen)
        chosen |= {name: kind for name, _ in zip(new, range(each), strict=False)}
    return list(chosen.items())
