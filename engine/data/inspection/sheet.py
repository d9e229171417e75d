"""A sheet of pictures with their captions, drawn by Pillow alone."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from engine.data.images.decoding import IMAGE_ERRORS, open_image
from engine.data.images.folder import ImageFolder
from engine.errors import UserError
from engine.files import replacing

ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
COLUMNS, WIDTH, HEIGHT = 6, 240, 180  # of a picture, in pixels
MARGIN, LINE, LINES = 8, 15, 4
LONGEST = 400  # characters of a caption that are looked at
FONT = "DejaVuSans.ttf"  # has more scripts than the one that Pillow brings

Font = Any  # one of ImageFont's classes
Pictures = list[tuple[str, str, str]]  # name of each, a word on it, its caption


def read_font(font: str | None) -> Font:
    """Of captions.

    Raises:
        UserError: if the file that was given can't be read.
    """
    size = LINE - 3
    try:
        return ImageFont.truetype(font or FONT, size)
    except OSError as error:
        if font is not None:
            raise UserError(f"--font {font} can't be read ({error}); name a TrueType or OpenType file") from None
        return ImageFont.load_default(size)


def write_sheet(path: Path, images: ImageFolder, rows: Iterable[tuple[str, Pictures]], font: Font) -> None:
    """Pictures in rows, under a headline for each part.

    Raises:
        UserError: if the file can't be written.
    """
    parts = [drawn for headline, pictures in rows for drawn in draw_part(headline, pictures, images, font)]
    sheet = Image.new("RGB", (COLUMNS * (WIDTH + MARGIN) + MARGIN, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    try:
        with replacing(path, "wb") as file:
            sheet.save(file, ENDINGS[path.suffix.lower()])
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror or error}); choose another place") from None


def draw_part(headline: str, pictures: Pictures, images: ImageFolder, font: Font) -> list[Image.Image]:
    """A headline, and rows of pictures below it."""
    width = COLUMNS * (WIDTH + MARGIN) + MARGIN
    drawn = [Image.new("RGB", (width, 2 * LINE), "white")]
    ImageDraw.Draw(drawn[0]).text((MARGIN, LINE // 2), headline, fill="black", font=font)
    for first in range(0, len(pictures), COLUMNS):
        row = Image.new("RGB", (width, HEIGHT + (LINES + 1) * LINE + 2 * MARGIN), "white")
        for column, picture in enumerate(pictures[first : first + COLUMNS]):
            row.paste(draw_cell(*picture, images, font), (MARGIN + column * (WIDTH + MARGIN), MARGIN))
        drawn.append(row)
    return drawn


def draw_cell(img_id: str, word: str, caption: str, images: ImageFolder, font: Font) -> Image.Image:
    """A picture as training sees it, with its size, its file's name and its caption."""
    cell = Image.new("RGB", (WIDTH, HEIGHT + (LINES + 1) * LINE + MARGIN), "white")
    draw = ImageDraw.Draw(cell)
    draw.rectangle((0, 0, WIDTH - 1, HEIGHT - 1), fill="gainsboro")
    try:
        with images.open(img_id) as file, open_image(file, as_original=images.as_original(img_id)) as opened:
            size = opened.size
            scale = min(WIDTH / size[0], HEIGHT / size[1])
            fitting = (max(1, round(size[0] * scale)), max(1, round(size[1] * scale)))
            picture = opened.rgb(fitting).resize(fitting, Image.Resampling.BILINEAR)
        cell.paste(picture, ((WIDTH - fitting[0]) // 2, (HEIGHT - fitting[1]) // 2))
        label = "{} x {}".format(*size)
        draw.rectangle((0, 0, WIDTH - 1, HEIGHT - 1), outline="gray")
    except IMAGE_ERRORS:  # it was there when it was looked at
        label = "can't be read any more"
    first = ", ".join(part for part in (word, label, Path(img_id).name) if part)
    lines = [first, *lines_of(caption, font)]
    for number, line in enumerate(lines):
        draw.text((0, HEIGHT + 2 + number * LINE), line, fill="black" if number else "gray", font=font)
    return cell


def lines_of(caption: str, font: Font) -> list[str]:
    """A caption in lines that fit below a picture."""
    text = " ".join(caption[:LONGEST].encode("utf-8", "replace").decode().split())
    width = int(0.9 * WIDTH * len(text) / max(1, font.getlength(text)))  # characters of its average width
    return textwrap.wrap(text, max(width, 8), max_lines=LINES, placeholder=" ...")
