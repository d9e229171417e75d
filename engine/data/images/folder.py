"""Where the images come from: which there are, how large they are, and their pixels.

Here are images that have a file each, or a part of one (places.py); lmdb_store.py has the LMDB store.
"""

import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np

from engine.commands import command
from engine.data.annotations.answers import read_json
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
from engine.data.images.places import (
    OWN_FOLDER,
    SIZES,
    OriginalFolders,
    Place,
    image_path,
    is_originals,
    sizes_file,
)
from engine.data.images.transforms import Size
from engine.distributed.workers import reading
from engine.errors import UserError
from engine.printing import warn
from engine.progress import Bar

SIZES_FILE = Path("mscoco", SIZES)  # of COCO's and Visual Genome's images
SOUGHT = 3  # images that aren't there for which a message says where they were looked for
COMPARED_SIZES = 256  # recorded sizes that are compared with the images at each start


class ImageSource(Protocol):
    """Images by id. Sources are small to pickle and open nothing that a loading worker would share with its parent.

    `str(source)` names it within a sentence.
    """

    def missing(self, img_ids: Iterable[str]) -> list[str]:
        """The ids that have no image, in order.

        Raises:
            UserError: if the source can't be read.
        """

    def sought(self, img_id: str) -> str:
        """Of an image that isn't there: where it was looked for, and which names are nearest."""

    def sizes(self, img_ids: Sequence[str], *, known: np.ndarray | None = None, progress: bool = False) -> np.ndarray:
        """Width and height of each image before any resizing: int32 (N, 2).

        An unreadable image counts as 1 x 1; it is met again, and reported, when its pixels are wanted.

        Args:
            known: what was measured earlier, int32 (N, 2), with 0 for images that weren't.
        """

    def stamp(self, img_id: str) -> str:
        """Changes when the image may have: size and time of the file that it is in."""

    def load(self, img_id: str) -> np.ndarray:
        """Decoded, resized and padded: uint8 (3, H, W).

        Raises:
            UnreadableImage: if the image is missing, damaged or none at all.
        """


@dataclass(frozen=True)
class ImageFolder:
    """Image files: in folders below a data root, the original project's and `images`, and in places of one's own."""

    data_root: Path
    shape: ImageShape
    decoder: Decoder = "pillow"
    places: Mapping[str, Place] = field(default_factory=dict)  # by the name that ids of their images begin with

    def __post_init__(self) -> None:
        check_decoder(self.decoder)

    def __str__(self) -> str:
        return " or ".join(map(str, self.places.values())) or str(OriginalFolders(self.data_root))

    def find(self, img_id: str) -> tuple[Place, str]:
        """The place of an image, and its name there."""
        first, slash, rest = img_id.partition("/")
        if slash and first in self.places:
            return self.places[first], rest
        return OriginalFolders(self.data_root), img_id

    def open(self, img_id: str) -> BinaryIO:
        place, name = self.find(img_id)
        return place.open(name)

    def where(self, img_id: str) -> str:
        """What to call an image in a message."""
        place, name = self.find(img_id)
        return place.where(name)

    def as_original(self, img_id: str) -> bool:
        """Whether an image is read as the original reads it; see `open_image`."""
        place, name = self.find(img_id)
        if not isinstance(place, OriginalFolders) or not is_originals(name):
            return False
        return os.path.isfile(place.original(name))  # else it is one's own with a name like theirs

    def sought(self, img_id: str) -> str:
        place, name = self.find(img_id)
        return place.sought(name)

    @property
    def own_folder(self) -> Path | None:
        """The folder `images` below the data root, if it is there."""
        folder = self.data_root / OWN_FOLDER
        return folder if folder.is_dir() else None

    def is_own(self, img_ids: Sequence[str]) -> np.ndarray:
        """Which images are one's own, bool (N,): in a place of one's own, or in the folder `images`."""
        has_folder = self.own_folder is not None

        def is_own(place: Place, name: str) -> bool:
            if isinstance(place, OriginalFolders):
                return has_folder and not os.path.isfile(place.original(name))
            return True

        return np.array([is_own(*self.find(img_id)) for img_id in img_ids], bool)

    def missing(self, img_ids: Iterable[str]) -> list[str]:
        """The ids without a file."""
        by_place: dict[Place, dict[str, str]] = {}
        img_ids = list(img_ids)
        for img_id in img_ids:
            place, name = self.find(img_id)
            by_place.setdefault(place, {})[name] = img_id
        missing = {ids[name] for place, ids in by_place.items() for name in place.missing(ids)}
        return [img_id for img_id in img_ids if img_id in missing]

    def sizes(self, img_ids: Sequence[str], *, known: np.ndarray | None = None, progress: bool = False) -> np.ndarray:
        """(N, 2), from the files' headers, but for sizes that `width_heigths.json` lists or that are `known`."""
        own = self.is_own(img_ids)
        sizes = np.zeros((len(img_ids), 2), np.int32)
        if not own.all():
            originals = [img_ids[number] for number in np.flatnonzero(~own).tolist()]
            sizes[~own] = recorded_or_measured_sizes(originals, self.data_root, self.measure, progress=progress)
        if own.any():
            others = [img_ids[number] for number in np.flatnonzero(own).tolist()]
            earlier = known[own] if known is not None else np.zeros((len(others), 2), np.int32)
            sizes[own] = known_or_measured_sizes(others, earlier, self.measure, progress=progress)
        return sizes

    def measure(self, img_id: str) -> Size:
        """Raises one of IMAGE_ERRORS."""
        with self.open(img_id) as file, open_image(file, as_original=self.as_original(img_id)) as image:
            return image.size

    def stamp(self, img_id: str) -> str:
        """Of an image whose file can't be looked at, "": opening it tells why."""
        place, name = self.find(img_id)
        try:
            return place.stamp(name)
        except OSError:
            return ""

    def load(self, img_id: str) -> np.ndarray:
        try:
            with reading(self.where(img_id)), self.open(img_id) as file:
                return to_pixels(file.read(), self.shape, self.decoder, as_original=self.as_original(img_id))
        except IMAGE_ERRORS as error:
            raise UnreadableImage(f"{self.where(img_id)}: {reason(error)}") from None


def not_found(images: ImageSource, missing: Sequence[str]) -> list[str]:
    """What to say of images that aren't there: of the first few, where they were looked for, of the others the name."""
    return [*(f"{img_id} ({images.sought(img_id)})" for img_id in missing[:SOUGHT]), *missing[SOUGHT:]]


def recorded_or_measured_sizes(
    img_ids: Sequence[str], data_root: Path, measure: Callable[[str], Size], *, progress: bool = False
) -> np.ndarray:
    """Width and height, int32 (N, 2): those of `width_heigths.json`, measured by threads where it lacks one.

    COCO's and Visual Genome's images have one such file, and each task's own images have another. `measure` raises one
    of IMAGE_ERRORS.

    Raises:
        UserError: if a file can't be read, or has height and width the wrong way round.
    """
    sizes = np.zeros((len(img_ids), 2), dtype=np.int32)
    by_file: dict[Path, list[int]] = {}
    for number, img_id in enumerate(img_ids):
        by_file.setdefault(sizes_file(img_id), []).append(number)
    for file, numbers in by_file.items():
        ids = [img_ids[number] for number in numbers]
        sizes[numbers] = _recorded_or_measured(ids, data_root / file, measure, progress=progress)
    return sizes


def _recorded_or_measured(
    img_ids: Sequence[str], file: Path, measure: Callable[[str], Size], *, progress: bool
) -> np.ndarray:
    """The same of one file, whose pairs are (height, width), whatever its name says; some are compared."""
    recorded = read_json(file) if file.exists() else {}
    if not isinstance(recorded, dict):
        raise UserError(f"{file}: an object of path: [height, width] was expected; remove the file")
    sizes = np.zeros((len(img_ids), 2), dtype=np.int32)
    for number, img_id in enumerate(img_ids):
        path = image_path(img_id)
        entry = recorded.get(f"data/{path.as_posix()}")
        if entry is not None:
            try:
                height, width = map(int, entry)
                sizes[number] = width, height
            except (TypeError, ValueError, OverflowError):
                pass
            if sizes[number].min() < 1:
                raise UserError(f"{file}, {path}: [height, width] was expected, found {entry!r}")

    known, unknown = np.flatnonzero(sizes[:, 0]).tolist(), np.flatnonzero(sizes[:, 0] == 0).tolist()
    compared = compare(img_ids, sizes, measure)
    sizes[unknown] = measure_all([img_ids[number] for number in unknown], measure, progress=progress)
    told = check_recorded_sizes(file, compared)
    if recorded and img_ids and not known:
        told = (
            f"{file} lists none of these {len(img_ids):,} images, so each start has to measure them: its keys are like "
            f"{next(iter(recorded))!r}, and 'data/{image_path(img_ids[0]).as_posix()}' was looked for"
        )
    if progress:
        warn(told)
    return sizes


def known_or_measured_sizes(
    img_ids: Sequence[str], known: np.ndarray, measure: Callable[[str], Size], *, progress: bool = False
) -> np.ndarray:
    """Width and height, int32 (N, 2): what is `known` (int32 (N, 2), else 0), if a sample is still right."""
    if any(earlier != found for earlier, found in compare(img_ids, known, measure).values()):
        if progress:
            print("note: images have changed since they were measured, so all are measured again", flush=True)
        known = np.zeros_like(known)
    sizes = known.copy()
    unknown = np.flatnonzero(sizes[:, 0] == 0).tolist()
    sizes[unknown] = measure_all([img_ids[number] for number in unknown], measure, progress=progress)
    return sizes


def compare(img_ids: Sequence[str], sizes: np.ndarray, measure: Callable[[str], Size]) -> dict[str, tuple[Size, Size]]:
    """Some of the sizes that aren't 0, each with what the image's header says, by image."""
    known = np.flatnonzero(sizes[:, 0]).tolist()
    sample = random.Random(0).sample(known, min(COMPARED_SIZES, len(known)))
    found = measure_all([img_ids[number] for number in sample], measure).tolist()
    return {img_ids[n]: (tuple(sizes[n].tolist()), tuple(size)) for n, size in zip(sample, found, strict=True)}


def measure_all(img_ids: Sequence[str], measure: Callable[[str], Size], *, progress: bool = False) -> np.ndarray:
    """Width and height, int32 (N, 2), by threads; UNREADABLE_SIZE for what can't be measured."""

    def measured(img_id: str) -> Size:
        try:
            return measure(img_id)
        except IMAGE_ERRORS:
            return UNREADABLE_SIZE

    with ThreadPoolExecutor() as pool:
        found = pool.map(measured, img_ids)
        hidden = not (progress and img_ids)
        bar = Bar(found, desc="image sizes", total=len(img_ids), unit="image", disable=hidden)
        return np.array(list(bar), np.int32).reshape(-1, 2)


def check_recorded_sizes(file: Path, sizes: Mapping[str, tuple[Size, Size]]) -> str:
    """Compare recorded sizes with those of the images' headers; what to say of those that differ, or "".

    Raises:
        UserError: if most of them have height and width exchanged: each image would count as the other orientation.
    """
    differing = {img_id: pair for img_id, pair in sizes.items() if pair[0] != pair[1] != UNREADABLE_SIZE}
    if not differing:
        return ""
    img_id, (recorded, found) = next(iter(differing.items()))
    example = f"{image_path(img_id)} has {found[0]} x {found[1]} pixels, recorded are {recorded[0]} x {recorded[1]}"
    exchanged = sum(pair[0] == pair[1][::-1] for pair in differing.values())
    if 2 * exchanged > sum(pair[1][0] != pair[1][1] for pair in sizes.values()):
        raise UserError(
            f"{file} has height and width the wrong way round, in {exchanged} of {len(sizes)} images that were "
            f"compared ({example}); it wants [height, width]: mend it, or remove it and let "
            f"`{command('prepare')} sizes` write it"
        )
    return (
        f"{file} differs from {len(differing)} of {len(sizes)} images that were compared ({example}); "
        f"`{command('prepare')} verify` compares all of them"
    )
