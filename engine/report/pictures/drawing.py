"""Images as the model sees them, with the cells that it read and where it looked."""

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from engine.inference.reading import Reading
from engine.model.clip_resnet import STRIDE

GAP = 6  # between two images, in pixels
WIDTH = 320  # of a picture, and of a landscape
HALF = (WIDTH - GAP) // 2  # of a portrait
COLOURS = 64  # of a PNG's palette, the transparent one not among them
UNREAD = 0.25  # brightness of cells that weren't read
HEAT = np.array([230, 159, 0])  # orange
MOST_HEAT = 0.7  # its share in the cell that gets most


def picture_of(images: Sequence[Image.Image], *, below: bool = False) -> bytes:
    """A PNG, WIDTH pixels across, of images beside or below each other; around them it is transparent."""
    steps = [image.height if below else image.width for image in images]
    starts = [sum(steps[:number]) + GAP * number for number in range(len(images))]
    total, height = starts[-1] + steps[-1], max(image.height for image in images)
    size = (WIDTH, total if below else height)
    sheet, empty = Image.new("RGB", size), Image.new("1", size, 1)
    for image, start in zip(images, starts, strict=True):
        corner = (0, start) if below else ((WIDTH - total) // 2 + start, 0)
        sheet.paste(image, corner)
        empty.paste(0, (*corner, corner[0] + image.width, corner[1] + image.height))
    few = sheet.quantize(COLOURS, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    palette = (few.getpalette() or [])[: 3 * COLOURS]  # it may have fewer
    few.putpalette(palette + [0] * (3 * (COLOURS + 1) - len(palette)))
    few.paste(COLOURS, mask=empty)
    file = io.BytesIO()
    few.save(file, "PNG", optimize=True, transparency=COLOURS)
    return file.getvalue()


def is_landscape(reading: Reading) -> bool:
    return reading.pixels.shape[1] > reading.pixels.shape[0]


def seen(reading: Reading, width: int | None = None) -> Image.Image:
    """The image as the model sees it, on its canvas."""
    image = Image.fromarray(np.ascontiguousarray(reading.pixels))
    width = width or (WIDTH if is_landscape(reading) else HALF)
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.BICUBIC)


def with_cells(reading: Reading) -> Image.Image:
    """The image with the cells that were read; the others are dark."""
    image = seen(reading)
    bright = Image.fromarray((np.asarray(image) * _light(reading, image)).astype(np.uint8))
    draw, side = ImageDraw.Draw(bright), STRIDE * image.width / reading.pixels.shape[1]
    for cell in reading.cells.tolist():
        row, column = divmod(cell, reading.grid[1])
        corners = [round(place * side) for place in (column, row, column + 1, row + 1)]
        draw.rectangle(corners, outline="white")
    return bright


def with_heat(reading: Reading, weights: np.ndarray) -> Image.Image:
    """The image in grey, the more orange the more a cell weighs; cells that weren't read are dark.

    Args:
        weights: (S,) of the cells that were read, 0 or more.
    """
    image = seen(reading)
    shares = np.zeros(reading.grid[0] * reading.grid[1])
    shares[reading.cells] = MOST_HEAT * weights / max(float(weights.max()), 1e-12)
    heat = _by_pixel(shares, reading, image)
    grey = np.asarray(image.convert("L"))[..., None] * _light(reading, image)
    return Image.fromarray((grey * (1 - heat) + HEAT * heat).astype(np.uint8))


def _light(reading: Reading, image: Image.Image) -> np.ndarray:
    light = np.full(reading.grid[0] * reading.grid[1], UNREAD)
    light[reading.cells] = 1
    return _by_pixel(light, reading, image)


def _by_pixel(values: np.ndarray, reading: Reading, image: Image.Image) -> np.ndarray:
    """A value for each cell, row by row, to one for each pixel of the image in its new size, (H, W, 1).

    A rim that is no whole cell has the value of the last ones.
    """
    side = STRIDE * image.width / reading.pixels.shape[1]
    rows, columns = (
        np.minimum(np.arange(size) / side, cells - 1).astype(int)
        for size, cells in zip((image.height, image.width), reading.grid, strict=True)
    )
    return values.reshape(reading.grid)[rows][:, columns, None]
