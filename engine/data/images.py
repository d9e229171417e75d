"""Where the images lie, how large they are, and their pixels."""

import os
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from engine.data.answers import read_json
from engine.data.transforms import Size, resize_and_pad
from engine.errors import UserError

COCO_SPLITS = ("train2014", "val2014", "test2015")
SIZES_FILE = Path("mscoco/width_heigths.json")  # the original's spelling


class UnreadableImage(Exception):
    """A file that is no image or a damaged one; the message names it."""


def image_path(img_id: str) -> Path:
    """Path of an image below the data root: COCO names carry their split, all others are Visual Genome's."""
    for split in COCO_SPLITS:
        if img_id.startswith(f"COCO_{split}"):
            return Path("mscoco", split, f"{img_id}.jpg")
    return Path("vg_raw_images", "VG_100K", f"{img_id}.jpg")


def missing_images(img_ids: Iterable[str], data_root: Path) -> list[str]:
    """The ids without a file. Each folder is listed once, so that 180,000 images cost no look-up each."""
    missing: list[str] = []
    listings: dict[Path, set[str]] = {}
    for img_id in img_ids:
        path = data_root / image_path(img_id)
        if path.parent not in listings:
            try:
                listings[path.parent] = set(os.listdir(path.parent))
            except OSError as error:
                raise UserError(
                    f"the image folder {path.parent} can't be read ({error.strerror}), and {img_id} should be in it; "
                    "unpack the images there or point --data_root at the folder that holds mscoco/"
                ) from None
        if path.name not in listings[path.parent]:
            missing.append(img_id)
    return missing


def image_sizes(img_ids: Collection[str], data_root: Path, *, progress: bool = False) -> dict[str, Size]:
    """(width, height) of each image, from `width_heigths.json` where it lists the image, else from the file's header.

    The JSON's pairs are (height, width), whatever its name says. An unreadable file counts as square here; it is
    met again, and reported, when its pixels are wanted.
    """
    recorded = read_json(data_root / SIZES_FILE) if (data_root / SIZES_FILE).exists() else {}
    if not isinstance(recorded, dict):
        raise UserError(f"{data_root / SIZES_FILE}: an object of path: [height, width] was expected; remove the file")

    def size(img_id: str) -> tuple[str, Size]:
        path = image_path(img_id)
        entry = recorded.get(f"data/{path.as_posix()}")
        if entry is not None:
            try:
                height, width = map(int, entry)
            except (TypeError, ValueError):
                height = width = 0
            if height < 1 or width < 1:
                raise UserError(f"{data_root / SIZES_FILE}, {path}: [height, width] was expected, found {entry!r}")
            return img_id, (width, height)
        try:
            with Image.open(data_root / path) as image:
                return img_id, image.size
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            return img_id, (1, 1)

    with ThreadPoolExecutor() as pool:
        sizes = pool.map(size, img_ids)
        return dict(tqdm(sizes, desc="image sizes", total=len(img_ids), unit="image", disable=not progress))


def load_image(path: Path, min_size: int, max_size: int, *, orient_after_resize: bool = False) -> np.ndarray:
    """Decode, resize and pad: uint8 (3, H, W).

    Raises:
        UnreadableImage: if the file is missing, truncated or no image.
    """
    try:
        with Image.open(path) as image:
            return resize_and_pad(image, min_size, max_size, orient_after_resize=orient_after_resize)
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UnreadableImage(f"{path}: {error}") from None
