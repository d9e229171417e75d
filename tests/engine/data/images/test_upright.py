"""Images as people have them: 16 bits, transparency, and photos that lie on their side."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from engine.data.images.decoding import ImageShape, to_pixels
from engine.data.images.folder import ImageFolder
from engine.data.images.lmdb_store import ImageStore
from engine.data.images.places import image_path, is_originals
from engine.data.images.upright import to_rgb
from engine.data.images.writer import write_image_store

OWN, COCO, GENOME = "my photo ü", "COCO_val2014_000000000042", "2359296"
SHAPE = ImageShape(12, 20)


def test_sixteen_bits_are_scaled_and_not_clipped():
    """A ramp over all 65,536 values: each comes out as the nearest of 256. Clipped, 99.6% of it would be white."""
    ramp = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    for image in (Image.open(buffer), Image.fromarray(ramp.astype(np.int32))):
        expected = np.rint(ramp.astype(np.float64) * 255 / 65535).astype(np.uint8)
        assert np.array_equal(np.asarray(to_rgb(image)), np.repeat(expected[..., None], 3, axis=2))


def palette() -> Image.Image:
    image = Image.new("P", (4, 3), 1)
    image.putpalette([9, 9, 9, 200, 0, 0])
    image.info["transparency"] = 1
    return image


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("RGBA", (4, 3), (200, 0, 0, 0)), (255, 255, 255)),
        (Image.new("RGBA", (4, 3), (200, 0, 0, 255)), (200, 0, 0)),
        (Image.new("RGBA", (4, 3), (200, 0, 0, 51)), (244, 204, 204)),  # a fifth: 255 - 51 * (255 - 200) / 255
        (Image.new("LA", (4, 3), (10, 0)), (255, 255, 255)),
        (palette(), (255, 255, 255)),
    ],
    ids=["clear", "opaque", "a fifth", "grey", "palette"],
)
def test_what_is_transparent_is_white(image, colour):
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert np.abs(np.asarray(rgb).astype(int) - colour).max() <= 1  # Pillow rounds the product of two bytes its own way


def test_rgb_is_given_back_as_it_is():
    image = Image.new("RGB", (4, 3), (1, 2, 3))
    assert to_rgb(image) is image


def photo(orientation: int, size=(20, 12)) -> Image.Image:
    """Noise, so that each of the eight ways to lie has other pixels."""
    pixels = np.random.default_rng(1).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[ExifTags.Base.Orientation] = orientation
    return image


def save(data_root, img_id, image, **options):
    path = data_root / image_path(img_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "PNG", exif=image.getexif(), **options)
    return path


@pytest.mark.parametrize(("img_id", "known"), [(COCO, True), (GENOME, True), (OWN, False), ("12a", False)])
def test_the_originals_images_are_known_by_their_names(img_id, known):
    assert is_originals(img_id) is known


@pytest.mark.parametrize("orientation", range(1, 9))
def test_own_photos_stand_upright_wherever_they_are_read_from(tmp_path, orientation):
    """Folder, store of the files, store of resized images: as Pillow's own `exif_transpose` would have them."""
    path = save(tmp_path, OWN, photo(orientation))
    expected = ImageOps.exif_transpose(Image.open(path))
    assert (expected.size == (12, 20)) == (orientation >= 5)
    pixels = np.asarray(expected).transpose(2, 0, 1)
    sources = [ImageFolder(tmp_path, SHAPE)]
    for name, resize in (("as they are", None), ("resized", (12, 20))):
        write_image_store(tmp_path / name, [OWN], tmp_path, resize=resize, quality=100, workers=0, progress=False)
        sources.append(ImageStore(tmp_path / name, tmp_path, SHAPE))
    for source in sources:
        assert tuple(source.sizes([OWN])[0]) == expected.size
        assert source.load(OWN).shape == pixels.shape
    for source in sources[:2]:
        assert np.array_equal(source.load(OWN), pixels)
    # JPEG of quality 100 with halved colours: noise is off by far less than other noise, 104 grey levels in the mean.
    assert np.abs(sources[2].load(OWN).astype(int) - pixels).mean() < 50


@pytest.mark.parametrize("img_id", [COCO, GENOME])
def test_the_originals_images_stay_as_they_were(tmp_path, img_id):
    path = save(tmp_path, img_id, photo(6))
    folder = ImageFolder(tmp_path, SHAPE)
    assert tuple(folder.sizes([img_id])[0]) == (20, 12)
    assert np.array_equal(folder.load(img_id), np.asarray(Image.open(path)).transpose(2, 0, 1))


def test_simplejpeg_turns_them_as_well():
    pytest.importorskip("simplejpeg")
    buffer, image = io.BytesIO(), photo(6)
    image.save(buffer, "JPEG", exif=image.getexif())
    turned, lying = (to_pixels(buffer.getvalue(), SHAPE, "simplejpeg", as_original=lying) for lying in (False, True))
    assert turned.shape == (3, 20, 12)
    assert lying.shape == (3, 12, 20)
    assert np.array_equal(turned, to_pixels(buffer.getvalue(), SHAPE, "pillow", as_original=False))


def test_exif_that_cant_be_read_leaves_a_sound_image_as_it_is(monkeypatch):
    """Some releases of Pillow raise SyntaxError for a header that a camera wrote twice."""

    def getexif(image):
        raise SyntaxError("not a TIFF file")

    buffer = io.BytesIO()
    photo(1).save(buffer, "JPEG")
    monkeypatch.setattr(Image.Image, "getexif", getexif)
    stood_up, left = (to_pixels(buffer.getvalue(), SHAPE, "pillow", as_original=lying) for lying in (False, True))
    assert np.array_equal(stood_up, left)
