"""What a visitor sends, read within the limits or refused with one line. Nothing of it is written to a disk."""

import logging
from collections.abc import AsyncGenerator

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from engine.data.images.decoding import IMAGE_ERRORS, size_in_header

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of forms that are refused here
LONGEST_TEXT = 2000  # characters, a hundred times what a model reads of them


class Refusal(Exception):
    """A request that isn't answered: the status to refuse it with, and one line for the visitor."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


async def read_upload(request: Request, max_bytes: int) -> tuple[bytes, str]:
    """The photo's bytes and the text, from a form's fields `photo` and `text`; the file's name isn't looked at.

    Raises:
        Refusal: if there is more of it than is allowed, or something else.
        ClientDisconnect: if the visitor hangs up.
    """
    kind = request.headers.get("content-type", "").lower()
    if kind.split(";")[0].strip() != "multipart/form-data" or "charset=" in kind:  # some of Python's take for ever
        raise Refusal(415, "a form is needed, sent as multipart/form-data without a charset")
    body = _limited(request, max_bytes)
    parser = MultiPartParser(request.headers, body, max_files=1, max_fields=1, max_part_size=max_bytes)
    parser.spool_max_size = max_bytes + 1  # what is larger would go to a file
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, f"the form can't be read ({error.message})") from None
    photo, text = form.get("photo"), form.get("text")
    if not isinstance(photo, UploadFile) or not isinstance(text, str):
        raise Refusal(400, "the form needs a file `photo` and a field `text`")
    if not (content := await photo.read()):
        raise Refusal(422, "the photo's file is empty")
    if not text.strip():
        raise Refusal(422, "write something in the text field")
    if len(text) > LONGEST_TEXT:
        raise Refusal(422, f"the text has {len(text):,} characters; {LONGEST_TEXT:,} are read at most")
    return content, text


async def _limited(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body as it comes, refused as soon as it is told or found to be too large."""
    size = 0
    refusal = Refusal(413, f"that is more than {most / 1e6:,.0f} MB; send a smaller photo")
    if int(request.headers.get("content-length", 0)) > most:
        raise refusal
    async for chunk in request.stream():
        size += len(chunk)
        if size > most:
            raise refusal
        yield chunk


def check_photo(photo: bytes, max_pixels: int) -> None:
    """Look at a file's header.

    Raises:
        Refusal: if it isn't an image of one of FORMATS, or has more pixels.
    """
    too_large = Refusal(413, f"the photo has more than {max_pixels / 1e6:,.0f} megapixels; make it smaller")
    try:
        width, height = size_in_header(photo, FORMATS)
    except Image.DecompressionBombError:  # of the formats whose decoders look at the size themselves
        raise too_large from None
    except IMAGE_ERRORS:
        raise Refusal(415, "the file is no photo that can be read: send JPEG, PNG, WebP, GIF, BMP or TIFF") from None
    if width * height > max_pixels:
        raise too_large
