"""Images from wherever they come, as a model was trained to see them."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from engine.data.images.decoding import IMAGE_ERRORS, ImageShape, reason, to_pixels
from engine.data.images.transforms import resize_and_pad
from engine.data.images.upright import orientation, to_rgb, upright
from engine.errors import UserError

ImageLike = str | Path | bytes | Image.Image | np.ndarray


def read_pixels(image: ImageLike, shape: ImageShape) -> np.ndarray:
    """uint8 (3, H, W), resized and centred on a canvas.

    Args:
        image: the path of a file, a file's bytes, Pillow's image, or an array: uint8 (H, W, 3) of any size, or
            (3, H, W) that has been through this, as engine.data.images gives it.

    Raises:
        UserError: if it can't be read.
        TypeError: if it is something else.
    """
    name = str(image) if isinstance(image, str | Path) else "the image"
    try:
        if isinstance(image, str | Path):
            image = Path(image).read_bytes()
        if isinstance(image, bytes):
            return to_pixels(image, shape, "pillow")
        if isinstance(image, np.ndarray):
            return _of_array(image, shape)
        if isinstance(image, Image.Image):
            turned = upright(to_rgb(image), orientation(image))
            return resize_and_pad(turned, **asdict(shape))
    except IMAGE_ERRORS as error:
        told = (error.strerror if isinstance(error, OSError) else None) or reason(error)
        raise UserError(f"{name} can't be read ({told})") from None
    raise TypeError(f"an image is a path, bytes, Pillow's image or an array, and {type(image).__name__} was given")


def _of_array(pixels: np.ndarray, shape: ImageShape) -> np.ndarray:
    sides = {(shape.min_size, shape.max_size), (shape.max_size, shape.min_size)}
    if pixels.dtype != np.uint8 or pixels.ndim != 3:
        raise ValueError(f"an array of {pixels.dtype} {pixels.shape}; uint8 (height, width, 3) is needed")
    if pixels.shape[0] == 3 and pixels.shape[1:] in sides:
        return pixels
    if pixels.shape[2] != 3:
        raise ValueError(f"an array of {pixels.shape}; (height, width, 3) is needed, red, green and blue")
    return resize_and_pad(Image.fromarray(pixels), **asdict(shape))
