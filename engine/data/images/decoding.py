"""An image's bytes to pixels of one size."""

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from engine.data.images.transforms import Size, centre, placement, resize_and_pad
from engine.data.images.upright import orientation, to_rgb, upright, upright_size
from engine.errors import UserError

UNREADABLE_SIZE = (1, 1)
DRAFT_PIXELS = 1 << 24  # a JPEG of more is decoded at a half, a quarter or an eighth where that is enough
HEIC_BRANDS = (b"heic", b"heix", b"hevc", b"mif1", b"msf1")  # behind "ftyp", of photos that phones write
# Pillow's for bad bytes; its warnings are errors where Python is told to take them for such.
IMAGE_ERRORS = (OSError, SyntaxError, TypeError, ValueError, Image.DecompressionBombError, Warning)

# Pillow would have every worker print lines about images that it reads all the same: those with damaged EXIF, with a
# transparent palette, and the original's of up to 179 million pixels.
warnings.filterwarnings("ignore", module=r"PIL\.")

Decoder = Literal["pillow", "simplejpeg"]


class UnreadableImage(Exception):
    """An image that is missing, damaged or none at all; the message names it."""


@dataclass(frozen=True)
class ImageShape:
    """What images are resized and padded to; see transforms.resize_and_pad."""

    min_size: int
    max_size: int
    orient_after_resize: bool = False


@dataclass(frozen=True)
class OpenImage:
    """An image of which only the header has been read; `size` is that of its pixels, upright unless `as_original`."""

    image: Image.Image
    size: Size
    orientation: int = 1
    as_original: bool = False

    def rgb(self, smallest: Size = (1, 1)) -> Image.Image:
        """Decoded, upright, RGB. Of a JPEG of more than DRAFT_PIXELS, the smallest of its whole size, a half, a quarter
        and an eighth that is at least twice `smallest`.

        Raises:
            One of IMAGE_ERRORS.
        """
        large = self.size[0] * self.size[1] > DRAFT_PIXELS and not self.as_original
        if large and isinstance(self.image, JpegImageFile):
            width, height = upright_size(smallest, self.orientation)
            self.image.draft(None, (2 * width, 2 * height))
            check_pixels(self.image)
        with _as_image_errors():
            self.image.load()
        return upright(to_rgb(self.image), self.orientation)


@contextmanager
def _as_image_errors() -> Iterator[None]:
    """Around Pillow's decoders, of which some have yet other exceptions for damaged files."""
    try:
        yield
    except IMAGE_ERRORS:
        raise
    except Exception as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error


@contextmanager
def open_image(image: bytes | BinaryIO, *, as_original: bool = False) -> Iterator[OpenImage]:
    """An image file that is open, or its bytes, to be measured or decoded; of an animation or of pages, the first.

    `as_original` reads it as the original did: EXIF isn't heeded, and what is large is left to Pillow's own checks.
    Without it, images of more than Pillow's MAX_IMAGE_PIXELS are refused without a warning, except JPEGs that can be
    decoded small (`OpenImage.rgb`).

    Raises:
        One of IMAGE_ERRORS.
    """
    with io.BytesIO(image) if isinstance(image, bytes) else nullcontext(image) as file:
        with _as_image_errors():
            opened = Image.open(file) if as_original else _identify(file)
        if as_original:
            yield OpenImage(opened, opened.size, as_original=True)
            return
        if opened.mode == "F":
            raise ValueError("floating-point pixels don't tell what is white; convert to 8 bits")
        if not _has_one_scan(opened):
            check_pixels(opened)
        turn = orientation(opened)
        yield OpenImage(opened, upright_size(opened.size, turn), turn)


def size_in_header(image: bytes, formats: Sequence[str]) -> Size:
    """What an image file of one of Pillow's `formats` says of its size; nothing is decoded, nor turned upright.

    Raises:
        One of IMAGE_ERRORS.
    """
    with _as_image_errors():
        return _identify(io.BytesIO(image), formats).size


def _identify(file: BinaryIO, formats: Sequence[str] | None = None) -> Image.Image:
    """Pillow's `Image.open` without its check of the size, which warns, and refuses what a draft makes small."""
    Image.init()
    prefix, problems = file.read(16), []
    for name in Image.ID if formats is None else formats:
        factory, accept = Image.OPEN[name]
        try:
            accepted = accept is None or accept(prefix)
            if isinstance(accepted, str):  # a format that this Pillow was built without
                problems.append(accepted)
            elif accepted:
                file.seek(0)
                return factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            if accept is not None and prefix:
                problems.append(f"{name}: {error}")
    if prefix[4:8] == b"ftyp" and prefix[8:12] in HEIC_BRANDS:
        raise ValueError("this is a HEIC photo, which Pillow doesn't read; save it as JPEG")
    raise ValueError(": ".join(["cannot identify image file", *problems[:1]]))


def _has_one_scan(image: Image.Image) -> bool:
    """Whether it is a JPEG that libjpeg decodes row by row; of others, it holds the coefficients of the whole image."""
    if type(image) is not JpegImageFile or "progressive" in image.info or image.fp is None:
        return False
    length = 6 + 2 * image.layers  # of the header of a scan with all colours, which Pillow has just read
    image.fp.seek(-length, io.SEEK_CUR)
    return image.fp.read(length).startswith(bytes([0, length, image.layers]))


def check_pixels(image: Image.Image) -> None:
    """Raises ValueError where an image would take too much memory."""
    most = Image.MAX_IMAGE_PIXELS or np.inf
    if image.width * image.height > most:
        raise ValueError(
            f"{image.width:,} x {image.height:,} pixels are more than the {most:,} that are decoded; save it smaller"
        )


def to_pixels(
    image: bytes | np.ndarray,
    shape: ImageShape,
    decoder: Decoder,
    original: Size | None = None,
    *,
    as_original: bool = False,
) -> np.ndarray:
    """An image file's bytes, or uint8 (H, W, 3), resized and padded: uint8 (3, H, W).

    `original` is the size before an earlier resizing; for `as_original` see `open_image`. What simplejpeg doesn't take,
    would leave lying, or would decode at its full size although it is large, goes Pillow's way.

    Raises:
        One of IMAGE_ERRORS.
    """
    geometry = asdict(shape)
    if isinstance(image, np.ndarray):
        return resize_and_pad(Image.fromarray(image), **geometry, original=original)
    if decoder == "simplejpeg" and (as_original or _is_plain(image)):
        decoded = _decode_jpeg(image)
        if decoded is not None:
            size, canvas = placement(original or (decoded.shape[1], decoded.shape[0]), **geometry)
            return centre(_resize_tensor(decoded, size), canvas)
    with open_image(image, as_original=as_original) as opened:
        whole = original or opened.size
        size, _ = placement(whole, **geometry)
        return resize_and_pad(opened.rgb(size), **geometry, original=whole)


def _is_plain(data: bytes) -> bool:
    with open_image(data) as image:
        return image.orientation == 1 and image.size[0] * image.size[1] <= DRAFT_PIXELS


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
    if isinstance(error, Image.DecompressionBombError):
        return f"{str(error).rstrip('.')}; save it smaller"
    return "cannot identify image file" if isinstance(error, UnidentifiedImageError) else str(error)
