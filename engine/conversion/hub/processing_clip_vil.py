"""Images and texts as CLIP-ViL reads them; needs nothing but torch, transformers and Pillow.

An image stands upright, its short side is resized to `image_size_min`, or to less if the long side would pass
`image_size_max`, and it is centred on a black canvas. Sizes are (width, height) in pixels.
"""

from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from PIL import ExifTags, Image
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor
from transformers import BatchFeature, ImageProcessingMixin, ProcessorMixin

Size = tuple[int, int]
Turn = Image.Transpose
# How to undo each orientation that EXIF knows; 1 is upright.
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
DRAFT_PIXELS = 1 << 24  # a JPEG of more is decoded at a half, a quarter or an eighth where that is enough


def orientation(image: Image.Image) -> int:
    """EXIF's number from the header, 1 where there is none or where it can't be read, and where Pillow turns itself."""
    if image.format == "TIFF":
        return 1
    try:
        return int(Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1))  # a PNG's own would decode it all
    except Exception:  # Pillow has many for broken EXIF, and the image itself may be whole
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """RGB, of any mode: 16 bits are scaled to 8, and what is transparent is white.

    Raises:
        ValueError: for pixels of 32 bits that don't have the range of 16 bits, so that their white isn't known.
    """
    if image.mode == "F":
        raise ValueError("floating-point pixels don't tell what is white; convert to 8 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):  # Pillow would clip them to 255
        grey = np.asarray(image).astype(np.int64)
        if image.mode == "I" and not (grey.min() >= 0 and 255 < grey.max() <= 65535):
            raise ValueError(f"32 bits from {grey.min()} to {grey.max()} don't tell what is white; convert to 8 bits")
        image = Image.fromarray(((grey + 128) // 257).astype(np.uint8))  # 65,535 / 255 = 257
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def resized_size(size: Size, min_size: int, max_size: int) -> Size:
    """What an image of a size is resized to. The long side can come out a few pixels over `max_size`."""
    width, height = size
    short, long = min(size), max(size)
    if long / short * min_size > max_size:
        min_size = round(max_size * short / long)
    if min_size < 1:
        raise ValueError(f"{width} x {height} pixels are too narrow for {min_size} x {max_size}")
    return (min_size, int(min_size * height / width)) if width < height else (int(min_size * width / height), min_size)


def centred(pixels: np.ndarray, canvas: Size) -> np.ndarray:
    """uint8 (H, W, 3) in the middle of a black canvas, cropped where it is too large: (3, canvas H, canvas W)."""
    height, width = pixels.shape[:2]
    left, top = ((spare + 1) // 2 for spare in (canvas[0] - width, canvas[1] - height))
    part = pixels[max(-top, 0) : canvas[1] - top, max(-left, 0) : canvas[0] - left]
    row, column = max(top, 0), max(left, 0)
    out = np.zeros((canvas[1], canvas[0], 3), dtype=np.uint8)
    out[row : row + part.shape[0], column : column + part.shape[1]] = part
    return out.transpose(2, 0, 1)


class PixelOptions(TypedDict, total=False):
    """What `from_pretrained` takes to override preprocessor_config.json."""

    image_size_min: int
    image_size_max: int
    orient_after_resize: bool
    do_normalize: bool
    image_mean: Sequence[float]
    image_std: Sequence[float]


class ClipVilImageProcessor(ImageProcessingMixin):
    """Pillow's images to a batch.

    Args:
        image_size_min, image_size_max: the canvas is max wide and min high, or the other way round.
        orient_after_resize: whether the resized size decides between the two. A square is a portrait.
        do_normalize: give floats by `image_mean` and `image_std`; else uint8, which the model normalises by the same.
    """

    model_input_names = ("images",)
    valid_kwargs = PixelOptions

    def __init__(
        self,
        image_size_min: int = 384,
        image_size_max: int = 640,
        orient_after_resize: bool = False,
        do_normalize: bool = False,
        image_mean: Sequence[float] = (0.48145466, 0.4578275, 0.40821073),
        image_std: Sequence[float] = (0.26862954, 0.26130258, 0.27577711),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.image_size_min = image_size_min
        self.image_size_max = image_size_max
        self.orient_after_resize = orient_after_resize
        self.do_normalize = do_normalize
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """uint8 (3, H, W)."""
        turn = orientation(image)
        whole = image.size[::-1] if turn in EXCHANGED else image.size
        size = resized_size(whole, self.image_size_min, self.image_size_max)
        if isinstance(image, JpegImageFile) and image.width * image.height > DRAFT_PIXELS:
            lying = size[::-1] if turn in EXCHANGED else size
            image.draft(None, (2 * lying[0], 2 * lying[1]))  # does nothing if it has been decoded already
        image = to_rgb(image)
        image = image.transpose(TURNS[turn]) if turn in TURNS else image
        image = image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)
        width, height = size if self.orient_after_resize else whole
        sides = (self.image_size_max, self.image_size_min)
        return centred(np.asarray(image), sides if width > height else sides[::-1])

    def __call__(self, images: Image.Image | Sequence[Image.Image], return_tensors: str = "pt") -> BatchFeature:
        """One image or several to `images`, (G, 3, H, W), uint8 or fp32.

        Args:
            return_tensors: "pt" for torch, "np" for NumPy.

        Raises:
            ValueError: for portraits beside landscapes, which don't fit into one tensor.
        """
        arrays = [self.pixels(image) for image in ([images] if isinstance(images, Image.Image) else images)]
        if len({array.shape for array in arrays}) > 1:
            raise ValueError("portraits and landscapes don't fit into one batch; give them one after the other")
        batch: Tensor = torch.from_numpy(np.stack(arrays))
        if self.do_normalize:
            mean, std = (torch.tensor(values)[:, None, None] for values in (self.image_mean, self.image_std))
            batch = (batch / 255 - mean) / std
        return BatchFeature({"images": batch}, tensor_type=return_tensors)


class ClipVilProcessor(ProcessorMixin):
    """Images and texts to what the model takes."""

    def __init__(self, image_processor: ClipVilImageProcessor, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)

    def __call__(
        self,
        images: Image.Image | Sequence[Image.Image] | None = None,
        text: str | Sequence[str] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """`input_ids`, `token_type_ids` and `attention_mask`, int64 (B, L), and `images`, (B, 3, H, W).

        Texts are cut or padded to the tokenizer's `model_max_length`, the length that the model was trained with.

        Args:
            return_tensors: "pt" for torch, "np" for NumPy.
        """
        inputs: dict[str, Any] = {}
        if text is not None:
            texts = [each.strip() for each in ([text] if isinstance(text, str) else text)]
            inputs |= self.tokenizer(
                texts,
                padding="max_length",
                truncation=True,
                return_token_type_ids=True,
                return_tensors=return_tensors,
            )
        if images is not None:
            inputs |= self.image_processor(images, return_tensors)
        return BatchFeature(inputs)
