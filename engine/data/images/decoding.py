"""An image's bytes to pixels of one size."""

import io
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from engine.data.images.transforms import Size, centre, placement, resize_and_pad
from engine.data.images.upright import orientation, upright
from engine.errors import UserError

UNREADABLE_SIZE = (1, 1)
# Pillow's for bad bytes; its warnings are errors where Python is told to take them for such.
IMAGE_ERRORS = (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError, Warning)

Decoder = Literal["pillow", "simplejpeg"]


class UnreadableImage(Exception):
    """An image that is missing, damaged or none at all; the message names it."""


@dataclass(frozen=True)
class ImageShape:
    """What images are resized and padded to; see transforms.resize_and_pad."""

    min_size: int
    max_size: int
    orient_after_resize: bool = False


def to_pixels(
    image: bytes | np.ndarray,
    shape: ImageShape,
    decoder: Decoder,
    original: Size | None = None,
    *,
    stand_up: bool = False,
) -> np.ndarray:
    """An image file's bytes, or uint8 (H, W, 3), resized and padded: uint8 (3, H, W).

    `original` is the size before an earlier resizing. `stand_up` has it turned as EXIF says. What simplejpeg doesn't
    take, or would leave lying, goes Pillow's way.

    Raises:
        One of IMAGE_ERRORS.
    """
    if decoder == "simplejpeg" and isinstance(image, bytes) and not (stand_up and _lies(image)):
        decoded = _decode_jpeg(image)
        if decoded is not None:
            size, canvas = placement(
                original or (decoded.shape[1], decoded.shape[0]),
                shape.min_size,
                shape.max_size,
                orient_after_resize=shape.orient_after_resize,
            )
            return centre(_resize_tensor(decoded, size), canvas)
    with Image.open(io.BytesIO(image)) if isinstance(image, bytes) else Image.fromarray(image) as opened:
        return resize_and_pad(
            upright(opened) if stand_up else opened,
            shape.min_size,
            shape.max_size,
            orient_after_resize=shape.orient_after_resize,
            original=original,
        )


def _lies(data: bytes) -> bool:
    with Image.open(io.BytesIO(data)) as image:
        return orientation(image) != 1


def _decode_jpeg(data: bytes) -> np.ndarray | None:
    """uint8 (H, W, 3), or None for what Pillow had better see: damage to report, no JPEG, CMYK, a size it refuses."""
    import simplejpeg  # an optional package

    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        if colours not in ("YCbCr", "Gray", "RGB") or width * height > (Image.MAX_IMAGE_PIXELS or np.inf):
            return None
        return simplejpeg.decode_jpeg(data)
    except ValueError:
        return None


def _resize_tensor(pixels: np.ndarray, size: Size) -> np.ndarray:
    """uint8 (H, W, 3) to (size H, size W, 3), by torch's antialiased bilinear filter."""
    if (pixels.shape[1], pixels.shape[0]) == size:
        return pixels
    import torch  # those who stay with Pillow don't pay for it

    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    resized = torch.nn.functional.interpolate(channels_first, size=size[::-1], mode="bilinear", antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def check_decoder(decoder: Decoder) -> None:
    """Raises UserError where the decoder's package is missing."""
    if decoder == "simplejpeg" and find_spec("simplejpeg") is None:
        raise UserError(
            "the image decoder simplejpeg is not installed; run `pip install simplejpeg`, or use the decoder pillow"
        )


def reason(error: Exception) -> str:
    """What was wrong with an image; Pillow would name the buffer that it couldn't identify."""
    return "cannot identify image file" if isinstance(error, UnidentifiedImageError) else str(error)
