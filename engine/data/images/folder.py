"""Where the images come from: which there are, how large they are, and their pixels.

Here is the folder of files; lmdb_store.py has the LMDB store.
"""

import os
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

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
from engine.data.images.transforms import Size
from engine.distributed.workers import reading
from engine.errors import UserError
from engine.progress import Bar

COCO_SPLITS = ("train2014", "val2014", "test2015")
GENOME_FOLDER = Path("vg_raw_images/VG_100K")
SIZES_FILE = Path("mscoco/width_heigths.json")  # the original's spelling
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

    def sizes(self, img_ids: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """Width and height of each image before any resizing: int32 (N, 2).

        An unreadable image counts as 1 x 1; it is met again, and reported, when its pixels are wanted.
        """

    def stamp(self, img_id: str) -> str:
        """Changes when the image may have: size and time of the file that it is in."""

    def load(self, img_id: str) -> np.ndarray:
        """Decoded, resized and padded: uint8 (3, H, W).

        Raises:
            UnreadableImage: if the image is missing, damaged or none at all.
        """


def image_path(img_id: str) -> Path:
    """Path of an image below the data root: COCO names carry their split, all others are Visual Genome's."""
    for split in COCO_SPLITS:
        if img_id.startswith(f"COCO_{split}"):
            return Path("mscoco", split, f"{img_id}.jpg")
    return GENOME_FOLDER / f"{img_id}.jpg"


def is_originals(img_id: str) -> bool:
    """Whether an image is COCO's or, with a number for a name, Visual Genome's: those the original knows."""
    return image_path(img_id).parent != GENOME_FOLDER or img_id.isdecimal()


@dataclass(frozen=True)
class ImageFolder:
    """Image files below a data root, in the original project's folders."""

    data_root: Path
    shape: ImageShape
    decoder: Decoder = "pillow"

    def __post_init__(self) -> None:
        check_decoder(self.decoder)

    def __str__(self) -> str:
        return f"the image folders of {self.data_root}"

    def missing(self, img_ids: Iterable[str]) -> list[str]:
        """The ids without a file. Each folder is listed once, so that 180,000 images cost no look-up each."""
        missing: list[str] = []
        listings: dict[Path, set[str]] = {}
        for img_id in img_ids:
            path = self.data_root / image_path(img_id)
            if path.parent not in listings:
                try:
                    listings[path.parent] = set(os.listdir(path.parent))
                except OSError as error:
                    raise UserError(
                        f"the image folder {path.parent} can't be read ({error.strerror}), and {img_id} should be in "
                        "it; unpack the images there or point --data_root at the folder that holds mscoco/"
                    ) from None
            if path.name not in listings[path.parent]:
                missing.append(img_id)
        return missing

    def sizes(self, img_ids: Sequence[str], *, progress: bool = False) -> np.ndarray:
        """(N, 2), from `width_heigths.json` where it lists the image, else from the file's header."""

        def measure(img_id: str) -> Size:
            with open_image(self.data_root / image_path(img_id), as_original=is_originals(img_id)) as image:
                return image.size

        return recorded_or_measured_sizes(img_ids, self.data_root, measure, progress=progress)

    def stamp(self, img_id: str) -> str:
        return file_stamp(self.data_root / image_path(img_id))

    def load(self, img_id: str) -> np.ndarray:
        path = self.data_root / image_path(img_id)
        try:
            with reading(str(path)):
                return to_pixels(path.read_bytes(), self.shape, self.decoder, as_original=is_originals(img_id))
        except IMAGE_ERRORS as error:
            raise UnreadableImage(f"{path}: {reason(error)}") from None


def file_stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}:{status.st_mtime_ns}"


def recorded_or_measured_sizes(
    img_ids: Sequence[str], data_root: Path, measure: Callable[[str], Size], *, progress: bool = False
) -> np.ndarray:
    """Width and height, int32 (N, 2): those of `width_heigths.json`, measured by threads where it lacks one.

    The JSON's pairs are (height, width), whatever its name says. Some are compared with the images. `measure` raises
    one of IMAGE_ERRORS.

    Raises:
        UserError: if the file can't be read, or has height and width the wrong way round.
    """
    file = data_root / SIZES_FILE
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

    def measured(number: int) -> Size:
        try:
            return measure(img_ids[number])
        except IMAGE_ERRORS:
            return UNREADABLE_SIZE

    known, unknown = np.flatnonzero(sizes[:, 0]).tolist(), np.flatnonzero(sizes[:, 0] == 0).tolist()
    sample = random.Random(0).sample(known, min(COMPARED_SIZES, len(known)))
    with ThreadPoolExecutor() as pool:
        compared = dict(zip(sample, pool.map(measured, sample), strict=True))
        found = pool.map(measured, unknown)
        bar = Bar(found, desc="image sizes", total=len(unknown), unit="image", disable=not (progress and unknown))
        for number, size in zip(unknown, bar, strict=True):
            sizes[number] = size
    told = check_recorded_sizes(file, {img_ids[n]: (tuple(sizes[n].tolist()), compared[n]) for n in sample})
    if recorded and img_ids and not known:
        told = (
            f"{file} lists none of these {len(img_ids):,} images, so each start has to measure them: its keys are like "
            f"{next(iter(recorded))!r}, and 'data/{image_path(img_ids[0]).as_posix()}' was looked for"
        )
    if told and progress:
        print(f"warning: {told}", flush=True)
    return sizes


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
            f"compared ({example}); it wants [height, width]: mend it, or remove it and let `prepare.py sizes` write it"
        )
    return (
        f"{file} differs from {len(differing)} of {len(sizes)} images that were compared ({example}); "
        "`prepare.py verify` compares all of them"
    )
