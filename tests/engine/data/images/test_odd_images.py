"""Images as people have them: each gives the pixels that it shows, or it is unreadable and says why.

Nearly all are made of one field of colours, which has the size of the canvas, so that nothing is resized.
"""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from engine.data.images.decoding import DRAFT_PIXELS, ImageShape, UnreadableImage, open_image, to_pixels
from engine.data.images.folder import ImageFolder
from engine.data.images.lmdb_store import ImageStore
from engine.data.images.places import image_path
from engine.data.images.writer import write_image_store
from tests.conftest import ROOT, environment

OWN = "my photo ü"
SHAPE = ImageShape(24, 40)
ROWS, COLUMNS = np.mgrid[:24, :40]
FIELD = np.stack([COLUMNS * 6, ROWS * 10, 60 + 0 * ROWS], axis=2).astype(np.uint8)
GREY = FIELD[..., 0]
PALETTE = np.array([[200, 0, 0], [0, 100, 0], [0, 0, 50], [250, 240, 10]], dtype=np.uint8)
INDICES = (ROWS // 12 * 2 + COLUMNS // 20).astype(np.uint8)
EXACT, ROUNDED = 0, 1
# Of quality 100 or 95, on a field as smooth as this. test_field_shows_what_is_wrong has what is off by far more.
LOSSY = 10


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def on_white(colours: np.ndarray, alpha: np.ndarray | int) -> np.ndarray:
    return np.rint(255 - (255 - colours.astype(float)) * np.expand_dims(alpha, -1) / 255)


def file(pixels: np.ndarray | Image.Image, format: str, **options: Any) -> bytes:
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def palette(**options: Any) -> bytes:
    image = Image.fromarray(INDICES).convert("P")
    image.putpalette(PALETTE.tobytes())
    return file(image, **options)


def palette_and_alpha() -> Image.Image:
    image = Image.open(io.BytesIO(palette(format="PNG")))
    image.putalpha(Image.fromarray(ALPHA))
    assert image.mode == "PA"
    return image


def two(format: str, **options: Any) -> bytes:
    """FIELD, and after it its inverse: a second frame or page."""
    return file(FIELD, format, save_all=True, append_images=[Image.fromarray(255 - FIELD)], **options)


def lab() -> Image.Image:
    """Neutral: only lightness, in 255ths of 100."""
    neutral = Image.fromarray(np.full_like(GREY, 128))
    return Image.merge("LAB", (Image.fromarray(GREY), neutral, neutral))


def greys_of_lightness() -> np.ndarray:
    """CIE's lightness to sRGB's curve (IEC 61966-2-1); both have a straight part near black."""
    lightness = GREY / 255 * 100
    linear = np.where(lightness > 8, ((lightness + 16) / 116) ** 3, lightness / 903.3)
    return grey(255 * np.where(linear > 0.0031308, 1.055 * linear ** (1 / 2.4) - 0.055, 12.92 * linear))


def ycck() -> bytes:
    """Adobe's inverted CMYK without black is RGB with white for a fourth; libjpeg stores it as YCCK."""
    simplejpeg = pytest.importorskip("simplejpeg")
    inks = np.dstack([FIELD, np.full_like(GREY, 255)])
    return simplejpeg.encode_jpeg(inks, quality=100, colorspace="CMYK", colorsubsampling="444")


ALPHA = (ROWS * 11).astype(np.uint8)
BEST = {"quality": 100, "subsampling": 0}
READABLE: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    "jpeg": (lambda: file(FIELD, "JPEG", **BEST), FIELD, LOSSY),
    "jpeg_grey": (lambda: file(GREY, "JPEG", **BEST), grey(GREY), LOSSY),
    "jpeg_progressive": (lambda: file(FIELD, "JPEG", progressive=True, **BEST), FIELD, LOSSY),
    "jpeg_without_ycbcr": (lambda: file(FIELD, "JPEG", keep_rgb=True, quality=100), FIELD, LOSSY),
    "jpeg_cmyk": (lambda: file(Image.fromarray(FIELD).convert("CMYK"), "JPEG", **BEST), FIELD, LOSSY),
    "jpeg_ycck": (ycck, FIELD, LOSSY),
    "mpo": (lambda: two("MPO", **BEST), FIELD, LOSSY),
    "png": (lambda: file(FIELD, "PNG"), FIELD, EXACT),
    "png_animated": (lambda: two("PNG"), FIELD, EXACT),
    "png_1_bit": (lambda: file(Image.fromarray(GREY > 99), "PNG"), grey((GREY > 99) * np.uint8(255)), EXACT),
    "png_16_bits": (lambda: file(GREY * np.uint16(257), "PNG"), grey(GREY), EXACT),
    "png_la": (lambda: file(np.dstack([GREY, ALPHA]), "PNG"), on_white(grey(GREY), ALPHA), ROUNDED),
    "png_rgba": (lambda: file(np.dstack([FIELD, ALPHA]), "PNG"), on_white(FIELD, ALPHA), ROUNDED),
    "png_palette": (lambda: palette(format="PNG"), PALETTE[INDICES], EXACT),
    "png_palette_clear": (
        lambda: palette(format="PNG", transparency=1),
        np.where(INDICES[..., None] == 1, 255, PALETTE[INDICES]),
        EXACT,
    ),
    "png_palette_alpha": (
        lambda: palette(format="PNG", transparency=bytes([0, 51, 102, 255])),
        on_white(PALETTE[INDICES], np.array([0, 51, 102, 255])[INDICES]),
        ROUNDED,
    ),
    "png_rgb_clear": (
        lambda: file(PALETTE[INDICES], "PNG", transparency=(0, 100, 0)),
        np.where(INDICES[..., None] == 1, 255, PALETTE[INDICES]),
        EXACT,
    ),
    "gif": (lambda: palette(format="GIF"), PALETTE[INDICES], EXACT),
    "gif_clear": (
        lambda: palette(format="GIF", transparency=1),
        np.where(INDICES[..., None] == 1, 255, PALETTE[INDICES]),
        EXACT,
    ),
    "gif_animated": (
        lambda: palette(format="GIF", save_all=True, append_images=[Image.new("RGB", (40, 24), "white")]),
        PALETTE[INDICES],
        EXACT,
    ),
    "webp": (lambda: file(FIELD, "WEBP", lossless=True), FIELD, EXACT),
    "webp_lossy": (lambda: file(FIELD, "WEBP", quality=100), FIELD, LOSSY),
    "webp_animated": (lambda: two("WEBP", lossless=True), FIELD, EXACT),
    "webp_alpha": (
        lambda: file(np.dstack([FIELD, ALPHA]), "WEBP", lossless=True, exact=True),
        on_white(FIELD, ALPHA),
        ROUNDED,
    ),
    "avif": (lambda: file(FIELD, "AVIF", quality=95), FIELD, LOSSY),
    "avif_animated": (lambda: two("AVIF", quality=95), FIELD, LOSSY),
    "bmp": (lambda: file(FIELD, "BMP"), FIELD, EXACT),
    "tiff": (lambda: file(FIELD, "TIFF", compression="tiff_lzw"), FIELD, EXACT),
    "tiff_pages": (lambda: two("TIFF"), FIELD, EXACT),
    "tiff_16_bits": (lambda: file(GREY * np.uint16(257), "TIFF"), grey(GREY), EXACT),
    "tiff_16_bits_big_endian": (lambda: file((GREY * np.uint16(257)).astype(">u2"), "TIFF"), grey(GREY), EXACT),
    "tiff_32_bits": (lambda: file(GREY * np.int32(257), "TIFF"), grey(GREY), EXACT),
    "tiff_cmyk": (lambda: file(Image.fromarray(FIELD).convert("CMYK"), "TIFF"), FIELD, EXACT),
    "tiff_lab": (lambda: file(lab(), "TIFF"), greys_of_lightness(), LOSSY),
    "tiff_pa": (lambda: file(palette_and_alpha(), "TIFF"), on_white(PALETTE[INDICES], ALPHA), ROUNDED),
    "pgm_16_bits": (lambda: b"P5 40 24 65535 " + (GREY * np.uint16(257)).astype(">u2").tobytes(), grey(GREY), EXACT),
}


def claims(data: bytes, width: int, height: int) -> bytes:
    """A PNG or JPEG whose header tells another size."""
    if data.startswith(b"\x89PNG"):
        header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    frame = next(data.index(marker) for marker in (b"\xff\xc0", b"\xff\xc2") if marker in data) + 5
    return data[:frame] + struct.pack(">HH", height, width) + data[frame + 4 :]


def one_colour_a_scan() -> bytes:
    """Only the header of the scan is changed: nothing behind it is read."""
    data = claims(file(FIELD, "JPEG"), 20000, 8000)
    scan = data.index(b"\xff\xda")
    return data[:scan] + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + data[scan + 14 :]


LARGE = "pixels are more than the 89,478,485 that are decoded; save it smaller"
# What is refused, its cause, and whether its header shows that.
REFUSED: dict[str, tuple[Callable[[], bytes], str, bool]] = {
    "tiff_float": (lambda: file(GREY / np.float32(255), "TIFF"), "floating-point pixels don't tell", True),
    "pfm": (lambda: file(Image.fromarray(GREY / np.float32(255)), "PPM"), "floating-point pixels don't tell", True),
    "tiff_32_bits_full": (lambda: file(GREY * np.int32(1 << 20), "TIFF"), "32 bits from 0 to 245366784 don't", False),
    "tiff_32_bits_below_0": (lambda: file(GREY * np.int32(200) - 9, "TIFF"), "32 bits from -9 to 46791 don't", False),
    "tiff_32_bits_of_8": (lambda: file(GREY.astype(np.int32), "TIFF"), "32 bits from 0 to 234 don't tell", False),
    "png_100_megapixels": (lambda: claims(file(FIELD, "PNG"), 10000, 10000), f"10,000 x 10,000 {LARGE}", True),
    "png_400_megapixels": (lambda: claims(file(FIELD, "PNG"), 20000, 20000), f"20,000 x 20,000 {LARGE}", True),
    "jpeg_progressive_160_megapixels": (
        lambda: claims(file(FIELD, "JPEG", progressive=True), 20000, 8000),
        f"20,000 x 8,000 {LARGE}",
        True,
    ),
    "jpeg_of_scans_160_megapixels": (one_colour_a_scan, f"20,000 x 8,000 {LARGE}", True),
    "jpeg_12_bits": (lambda: file(FIELD, "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc0\x00\x11\x0c"), "12", True),
    "dds": (lambda: file(FIELD, "DDS")[:80] + bytes(48), "NotImplementedError: Unknown pixel format flags 0", True),
    "narrow": (lambda: file(np.zeros((1, 2000), np.uint8), "PNG"), "2000 x 1 pixels are too narrow for 24", False),
    "high": (lambda: file(np.zeros((2000, 1), np.uint8), "PNG"), "1 x 2000 pixels are too narrow for 24", False),
    "text": (lambda: b"<html>not found</html>", "cannot identify image file", True),
    "empty": (lambda: b"", "cannot identify image file", True),
    "heic": (lambda: b"\0\0\0\x18ftypheic" + bytes(40), "this is a HEIC photo, which Pillow doesn't read; ", True),
    "heic_of_a_sequence": (lambda: b"\0\0\0\x18ftypmsf1" + bytes(40), "this is a HEIC photo, which", True),
}


Image.init()
LACKING = tuple(name for name in ("webp", "avif") if name.upper() not in Image.SAVE)  # in Pillow of some builds


def build(name: str) -> bytes:
    if name.startswith(LACKING):
        pytest.skip(f"this Pillow can't write {name}")
    return (READABLE.get(name) or REFUSED[name])[0]()


def put(data_root, data, img_id=OWN):
    path = data_root / image_path(img_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def difference(pixels: np.ndarray, expected: np.ndarray) -> float:
    assert pixels.shape == (3, *expected.shape[:2])
    return np.abs(pixels.transpose(1, 2, 0) - expected.astype(float)).max()


def test_field_shows_what_is_wrong():
    """Whatever is turned, inverted, or has its channels exchanged differs by more than any tolerance here."""
    wrong = [255 - FIELD, FIELD[::-1], FIELD[:, ::-1], FIELD[::-1, ::-1], FIELD[..., ::-1], grey(GREY)]
    assert min(np.abs(FIELD.astype(int) - other).mean() for other in wrong) > 2 * LOSSY


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("name", READABLE)
def test_odd_image_shows_its_colours(tmp_path, name, decoder):
    put(tmp_path, build(name))
    _, expected, tolerance = READABLE[name]
    folder = ImageFolder(tmp_path, SHAPE, decoder)
    assert folder.sizes([OWN]).tolist() == [[40, 24]]
    assert difference(folder.load(OWN), expected) <= tolerance


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("name", REFUSED)
def test_odd_image_is_unreadable_with_its_cause(tmp_path, name, decoder):
    path = put(tmp_path, build(name))
    _, cause, by_header = REFUSED[name]
    folder = ImageFolder(tmp_path, SHAPE, decoder)
    with pytest.raises(UnreadableImage) as error:
        folder.load(OWN)
    assert str(error.value).startswith(f"{path}: ")
    assert cause in str(error.value)
    assert (folder.sizes([OWN]).tolist() == [[1, 1]]) == by_header


def test_stores_take_what_can_be_read_and_name_the_rest(tmp_path):
    """A store of the files has the folder's pixels, and everything that is damaged is told when it is written."""
    left_out = ("narrow", "high", *LACKING)  # the first two are no damage
    path, names = tmp_path / "store", [name for name in [*READABLE, *REFUSED] if not name.startswith(left_out)]
    paths = {name: put(tmp_path, build(name), name) for name in names}
    found = write_image_store(path, names, tmp_path, resize=None, quality=95, workers=0, progress=False)
    causes = dict(problem.split(": ", 1) for problem in found.unreadable)
    assert set(causes) == {str(paths[name]) for name in names if name in REFUSED}
    assert all(REFUSED[name][1] in causes[str(paths[name])] for name in names if name in REFUSED)
    store, folder = ImageStore(path, tmp_path, SHAPE), ImageFolder(tmp_path, SHAPE)
    for name in READABLE.keys() & paths:
        assert store.sizes([name]).tolist() == [[40, 24]]
        assert np.array_equal(store.load(name), folder.load(name)), name


def lying(orientation: int) -> np.ndarray:
    """FIELD as a camera stores it that was held so: EXIF's number says where the first row and column are."""
    return {
        1: FIELD,
        2: FIELD[:, ::-1],  # the first row is at the top, the first column at the right
        3: FIELD[::-1, ::-1],
        4: FIELD[::-1],
        5: FIELD.transpose(1, 0, 2),  # the first row is at the left, the first column at the top
        6: np.rot90(FIELD, 1),  # the first row is at the right, the first column at the top
        7: np.rot90(FIELD, 2).transpose(1, 0, 2),
        8: np.rot90(FIELD, -1),
    }[orientation]


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(
    ("format", "options", "tolerance"),
    [
        ("JPEG", BEST, LOSSY),
        ("MPO", {"save_all": True, "append_images": [Image.new("RGB", (40, 24))], **BEST}, LOSSY),
        ("PNG", {}, EXACT),
        ("WEBP", {"lossless": True}, EXACT),
        ("AVIF", {"quality": 95}, LOSSY),
        ("TIFF", {}, EXACT),
        ("TIFF", {"compression": "tiff_lzw"}, EXACT),
    ],
)
def test_every_format_is_turned_as_its_exif_says(tmp_path, format, options, tolerance, orientation, decoder):
    if format.lower() in LACKING:
        pytest.skip(f"this Pillow can't write {format}")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    put(tmp_path, file(np.ascontiguousarray(lying(orientation)), format, exif=exif, **options))
    folder = ImageFolder(tmp_path, SHAPE, decoder)
    assert folder.sizes([OWN]).tolist() == [[40, 24]]
    assert difference(folder.load(OWN), FIELD) <= tolerance


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_one_pixel_wide_or_high_is_a_line_in_the_middle(format, decoder):
    """Its short side can't become 24 without the long one passing 40, so it stays as it is."""
    line = np.zeros((24, 40, 3))
    line[12, 5:35] = 200, 100, 50
    row, column = (file(Image.new("RGB", size, (200, 100, 50)), format) for size in ((30, 1), (1, 30)))
    assert difference(to_pixels(row, SHAPE, decoder), line) <= 2  # of JPEG's YCbCr
    assert difference(to_pixels(column, SHAPE, decoder), line.transpose(1, 0, 2)) <= 2


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "AVIF", "TIFF", "BMP"])
def test_what_is_cut_off_is_unreadable(tmp_path, format, decoder):
    if format.lower() in LACKING:
        pytest.skip(f"this Pillow can't write {format}")
    noise = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
    for share in (0.5, 0.9):
        data = file(noise, format)
        put(tmp_path, data[: int(len(data) * share)])
        with pytest.raises(UnreadableImage):
            ImageFolder(tmp_path, SHAPE, decoder).load(OWN)


@pytest.mark.parametrize("name", ["IMG 0042.JPG", "größer 大.Png", "no_ending", "a'b\"c;$(d).webp"])
def test_a_path_may_have_any_name_and_be_a_link(tmp_path, name):
    (tmp_path / "elsewhere").write_bytes(file(FIELD, "PNG"))
    (tmp_path / name).symlink_to("elsewhere")
    with (tmp_path / name).open("rb") as opened, open_image(opened) as image:
        assert image.size == (40, 24)
        assert np.array_equal(image.rgb(), FIELD)


def large_jpeg(width: int, colours: list[tuple[int, int, int]], bands: int, **options: Any) -> bytes:
    """`bands` x 16 rows of one colour each, in turn, put together from the bytes of JPEGs of 16 rows.

    A restart marker stands before each band: there a decoder begins anew.
    """
    strips = [
        file(Image.new("RGB", (width, 16), colour), "JPEG", quality=90, restart_marker_rows=1, **options)
        for colour in colours
    ]
    begin = strips[0].index(b"\xff\xda") + 14
    parts = [claims(strips[0], width, 16 * bands)[:begin]]
    for band in range(bands):
        parts += [strips[band % len(strips)][begin:-2], bytes([0xFF, 0xD0 + band % 8])]
    return b"".join(parts[:-1]) + b"\xff\xd9"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_large_jpeg_is_decoded_small(tmp_path, monkeypatch, orientation, decoder):
    """Two halves, 20,000 x 8,000 pixels in all: 640 x 256 of them are wanted, which an eighth has more than twice."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    colours = [(200, 100, 50)] * 250 + [(20, 60, 240)] * 250
    put(tmp_path, large_jpeg(20000, colours, 500, exif=exif))
    folder = ImageFolder(tmp_path, ImageShape(384, 640), decoder)
    decoded, load = [], Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda image: decoded.append(image.size) or load(image))
    pixels = folder.load(OWN)
    assert max(decoded) == (2500, 1000)
    assert folder.sizes([OWN]).tolist() == [[20000, 8000] if orientation == 1 else [8000, 20000]]
    if orientation == 6:  # the first row is at the right
        pixels = np.rot90(pixels, 1, (1, 2))
    assert pixels.shape == (3, 384, 640)
    image = pixels[:, 64:320]  # 256 rows in the middle of 384
    for half, colour in ((image[:, :126], colours[0]), (image[:, 130:], colours[-1])):
        assert np.abs(half - np.array(colour).reshape(3, 1, 1)).max() <= 2  # of JPEG's YCbCr


@pytest.mark.parametrize(
    ("height", "wanted", "decoded"),
    [
        (3504, (34, 24), (625, 438)),
        (3504, (1142, 800), (2500, 1752)),
        (3504, (1251, 876), (5000, 3504)),
        (3344, (34, 24), (5000, 3344)),
    ],
    ids=["eighth", "half", "whole", "few pixels"],
)
def test_draft_leaves_twice_the_pixels(height, wanted, decoded):
    with open_image(large_jpeg(5000, [(200, 100, 50)], height // 16)) as image:
        assert (image.size[0] * image.size[1] > DRAFT_PIXELS) == (height == 3504)
        assert image.rgb(wanted).size == decoded


def test_simplejpeg_leaves_large_images_to_the_draft(monkeypatch):
    monkeypatch.setattr("engine.data.images.decoding._decode_jpeg", lambda _: pytest.fail("decoded at its whole size"))
    assert to_pixels(large_jpeg(5000, [(200, 100, 50)], 219), SHAPE, "simplejpeg").shape == (3, 24, 40)


LOAD = """
import sys
from engine.data.images.decoding import Image, ImageShape, to_pixels
for name, pixels in (("exif", 1e6), ("palette", 1e6), ("large", 700)):  # Pillow warns above, and refuses twice as many
    Image.MAX_IMAGE_PIXELS = pixels
    to_pixels(open(f"{sys.argv[1]}/{name}", "rb").read(), ImageShape(24, 40), "pillow", as_original=name != "exif")
"""


def test_what_is_read_all_the_same_is_read_without_a_word(tmp_path):
    """In a process of its own: pytest keeps warnings to itself."""
    (tmp_path / "exif").write_bytes(file(FIELD, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05\x01\x12\0\x03\0\0"))
    (tmp_path / "palette").write_bytes(palette(format="PNG", transparency=bytes([0, 51, 102, 255])))
    (tmp_path / "large").write_bytes(file(FIELD, "JPEG"))
    command = [sys.executable, "-c", LOAD, tmp_path]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
    assert done.stderr == ""


PEAK = """
import sys
from engine.data.images.decoding import ImageShape, to_pixels
with open(sys.argv[1], "rb") as file:
    to_pixels(file.read(), ImageShape(384, 640), "pillow")
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def test_large_jpeg_takes_the_memory_of_its_draft(tmp_path):
    """20,000 x 8,000 pixels have 640 MB as Pillow keeps RGB, in 4 bytes. An eighth of both sides has 10 MB."""
    peaks = []
    for name, data in (("small", file(FIELD, "JPEG")), ("large", large_jpeg(20000, [(200, 100, 50)], 500))):
        (tmp_path / name).write_bytes(data)
        command = [sys.executable, "-c", PEAK, tmp_path / name]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=True)
        peaks.append(int(done.stdout) * 1024)  # ru_maxrss would be this process's own, if that is larger
    draft = 2500 * 1000 * 4
    # Beside it, the file's bytes, and a few rows in libjpeg: 20,000 x 16 of three colours at most.
    assert peaks[1] - peaks[0] < draft + len(data) + 20000 * 16 * 3 + (4 << 20)
