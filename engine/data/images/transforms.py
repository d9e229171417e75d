"""Image geometry: resize, pad, group by aspect ratio. Sizes are (width, height) in pixels."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from engine.data.images.upright import to_rgb

Size = tuple[int, int]
MEAN_COLOR = (123, 117, 104)  # what CLIP's normalisation makes 0, to the nearest grey level


def resized_size(size: Size, min_size: int, max_size: int) -> Size:
    """Short side to `min_size`, less if the long side would pass `max_size`.

    The short side is rounded and the long side cut off, as in the original, so a long side can come out a few
    pixels over `max_size`; padding then crops it.
    """
    width, height = size
    short, long = min(size), max(size)
    if long / short * min_size > max_size:
        min_size = round(max_size * short / long)
    if width < height:
        return min_size, int(min_size * height / width)
    return int(min_size * width / height), min_size


def canvas_size(landscape: bool, min_size: int, max_size: int) -> Size:
    return (max_size, min_size) if landscape else (min_size, max_size)


def padding(size: Size, canvas: Size) -> tuple[int, int, int, int]:
    """Left, top, right, bottom border that centres `size` on `canvas`; negative where it has to be cropped."""
    spare_width, spare_height = canvas[0] - size[0], canvas[1] - size[1]
    right, bottom = spare_width // 2, spare_height // 2
    return spare_width - right, spare_height - bottom, right, bottom


def placement(size: Size, min_size: int, max_size: int, *, orient_after_resize: bool = False) -> tuple[Size, Size]:
    """The size that an image of `size` is resized to, and the canvas that it is centred on.

    A square image is a portrait. `orient_after_resize` judges orientation by the rounded size, as the original did:
    an image of 1001 x 1000 becomes a portrait although its aspect-ratio group holds landscapes.

    Raises:
        ValueError: if the image is so narrow that nothing of it would be left.
    """
    resized = resized_size(size, min_size, max_size)
    if min(resized) < 1:
        raise ValueError(f"{size[0]} x {size[1]} pixels are too narrow for {min_size} x {max_size}")
    width, height = resized if orient_after_resize else size
    return resized, canvas_size(width > height, min_size, max_size)


def resize_rgb(image: Image.Image, size: Size) -> Image.Image:
    """RGB, resized (bilinear); an image that has the size keeps its pixels."""
    rgb = to_rgb(image)
    return rgb if rgb.size == size else rgb.resize(size, Image.Resampling.BILINEAR)


def centre(pixels: np.ndarray, canvas: Size) -> np.ndarray:
    """uint8 (H, W, 3) in the middle of a black canvas, cropped where it is too large: uint8 (3, canvas H, canvas W)."""
    height, width = pixels.shape[:2]
    left, top, _, _ = padding((width, height), canvas)
    part = pixels[max(-top, 0) : canvas[1] - top, max(-left, 0) : canvas[0] - left]
    row, column = max(top, 0), max(left, 0)
    centred = np.zeros((3, canvas[1], canvas[0]), dtype=np.uint8)
    for channel in range(3):  # a third quicker than part.transpose(2, 0, 1) at once
        centred[channel, row : row + part.shape[0], column : column + part.shape[1]] = part[..., channel]
    return centred


def resize_and_pad(
    image: Image.Image,
    min_size: int,
    max_size: int,
    *,
    orient_after_resize: bool = False,
    original: Size | None = None,
) -> np.ndarray:
    """RGB image, resized and centred on black: uint8 (3, min, max), or (3, max, min) for a portrait.

    Of an image that was resized before, `original` is the size until then: an almost square landscape of 1001 x 1000
    is square by now, yet goes on the canvas of a landscape.
    """
    size, canvas = placement(original or image.size, min_size, max_size, orient_after_resize=orient_after_resize)
    return centre(np.asarray(resize_rgb(image, size)), canvas)


def stack_images(images: Sequence[np.ndarray], fill: tuple[int, int, int] = (0, 0, 0)) -> np.ndarray:
    """(3, H, W) arrays to one (B, 3, H, W) of the first one's size; others are cropped or filled up to it."""
    height, width = images[0].shape[1:]
    batch = np.empty((len(images), 3, height, width), dtype=images[0].dtype)
    batch[:] = np.reshape(fill, (3, 1, 1))
    for target, image in zip(batch, images, strict=True):
        part = image[:, :height, :width]
        target[:, : part.shape[1], : part.shape[2]] = part
    return batch


def aspect_ratio_bins(factor: int) -> list[float]:
    """Edges of the groups of height / width: 2 * factor + 1 powers of 2 from 1/2 to 2; the one edge 1 for factor 0."""
    return (2.0 ** np.linspace(-1, 1, 2 * factor + 1)).tolist() if factor > 0 else [1.0]


def aspect_ratio_group(height_over_width: ArrayLike, bins: Sequence[float]) -> Any:
    """Number of the group, or an array of numbers; a value on an edge goes to the upper one."""
    return np.searchsorted(bins, height_over_width, side="right")
