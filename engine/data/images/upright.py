"""An image as its file has it, to RGB that stands upright. Sizes are (width, height) in pixels.

What the original's data have none of is done here as a viewer would do it: 16 bits are scaled to 8, and what is
transparent is white. EXIF's orientation turns images of other data; the original didn't heed it, so its own stay.
"""

import numpy as np
from PIL import ExifTags, Image

Turn = Image.Transpose
# How to undo each orientation that EXIF knows (its tag 0x0112; 1 is upright).
TURNS = {
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}
EXCHANGED = (5, 6, 7, 8)  # those that make height of width


def orientation(image: Image.Image) -> int:
    """EXIF's number from the header, 1 where there is none or where it can't be read, and where Pillow turns itself."""
    if image.format == "TIFF":  # already its size is that of the turned image
        return 1
    try:
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))  # a PNG's own would decode it all
    except Exception:  # Pillow has many for broken EXIF, and the image itself may be whole
        return 1


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """What an image of `size` has once it is turned, and the other way round."""
    return size[::-1] if orientation in EXCHANGED else size


def upright(image: Image.Image, orientation: int) -> Image.Image:
    """Turned as EXIF says."""
    turn = TURNS.get(orientation)
    return image if turn is None else image.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, of any mode; an image that is RGB is given back as it is.

    Raises:
        ValueError: for 32-bit pixels that don't have the range of 16 bits: which white and black they mean isn't told.
    """
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip them to 255
        grey = np.asarray(image).astype(np.int64)
        if image.mode == "I" and not (grey.min() >= 0 and 255 < grey.max() <= 65535):
            raise ValueError(f"32 bits from {grey.min()} to {grey.max()} don't tell what is white; convert to 8 bits")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # 65,535 / 255 = 257
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")
