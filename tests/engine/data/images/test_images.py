import io
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from engine.data.images import decoding
from engine.data.images import folder as module
from engine.data.images.decoding import IMAGE_ERRORS, ImageShape, UnreadableImage, to_pixels
from engine.data.images.folder import SIZES_FILE, ImageFolder
from engine.data.images.places import image_path
from engine.data.images.transforms import resize_and_pad
from engine.errors import UserError

COCO, GENOME = "COCO_val2014_000000000042", "2359296"
SHAPE = ImageShape(12, 20)


def noise(size):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def smooth(size):
    """Grey waves of 24 pixels' length: one pixel aside, the values differ by 11 (RMS)."""
    rows, columns = np.mgrid[: size[1], : size[0]] * 2 * np.pi / 24
    waves = 128 + 60 * np.sin(columns) + 60 * np.cos(rows)
    return Image.fromarray(waves.astype(np.uint8)).convert("RGB")


def save(data_root, img_id, size=(20, 12), *, draw=noise, **options):
    """A small image at the place of `img_id`, by default a JPEG of noise."""
    path = data_root / image_path(img_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    draw(size).save(path, **options)
    return path


def write_sizes(data_root, entries):
    (data_root / SIZES_FILE).parent.mkdir(parents=True, exist_ok=True)
    (data_root / SIZES_FILE).write_text(json.dumps(entries))


@pytest.fixture
def folder(tmp_path):
    return ImageFolder(tmp_path, SHAPE)


@pytest.mark.parametrize(
    ("img_id", "path"),
    [
        ("COCO_train2014_000000000009", "mscoco/train2014/COCO_train2014_000000000009.jpg"),
        ("COCO_val2014_000000000042", "mscoco/val2014/COCO_val2014_000000000042.jpg"),
        ("COCO_test2015_000000000001", "mscoco/test2015/COCO_test2015_000000000001.jpg"),
        ("2359296", "vg_raw_images/VG_100K/2359296.jpg"),
    ],
)
def test_path_follows_from_the_name(img_id, path):
    assert image_path(img_id).as_posix() == path


def test_images_without_a_file_are_named_in_order(tmp_path, folder):
    save(tmp_path, COCO)
    save(tmp_path, GENOME)
    assert folder.missing([GENOME, "8", COCO, "7"]) == ["8", "7"]
    assert folder.missing([GENOME, COCO]) == []


def test_missing_folder_is_refused_with_what_to_do(tmp_path, folder):
    save(tmp_path, COCO)
    with pytest.raises(UserError) as error:
        folder.missing([COCO, GENOME])
    assert str(error.value) == (
        f"the image folder {tmp_path / 'vg_raw_images' / 'VG_100K'} can't be read (No such file or directory), and "
        f"{GENOME} should be in it; unpack the images there, put images of your own into {tmp_path / 'images'}, or "
        "point --data_root at the folder that holds vg_raw_images/"
    )


def test_sizes_are_width_and_height_of_the_header(tmp_path, folder):
    save(tmp_path, COCO, (20, 12))
    save(tmp_path, GENOME, (12, 30))
    sizes = folder.sizes([COCO, GENOME])
    assert sizes.dtype == np.int32
    assert sizes.tolist() == [[20, 12], [12, 30]]


def test_no_images_have_no_sizes(folder):
    assert folder.sizes([]).shape == (0, 2)


def test_recorded_sizes_are_height_and_width_and_need_no_file(tmp_path, folder):
    save(tmp_path, GENOME, (12, 30))
    write_sizes(tmp_path, {f"data/{image_path(COCO).as_posix()}": [480, 640]})
    assert folder.sizes([COCO, GENOME]).tolist() == [[640, 480], [12, 30]]


def test_unreadable_file_counts_as_square(tmp_path, folder):
    save(tmp_path, COCO).write_bytes(b"no image")
    assert folder.sizes([COCO, GENOME]).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    "entry", [[480], [480, 640, 3], 480, [0, 640], [480, -1], ["tall", "wide"], [480, 1 << 40]], ids=str
)
def test_broken_recorded_size_is_refused_with_its_image(tmp_path, folder, entry):
    write_sizes(tmp_path, {f"data/{image_path(COCO).as_posix()}": entry})
    with pytest.raises(UserError) as error:
        folder.sizes([COCO])
    assert str(error.value) == (
        f"{tmp_path / SIZES_FILE}, {image_path(COCO)}: [height, width] was expected, found {entry!r}"
    )


def test_sizes_file_that_is_no_object_is_refused(tmp_path, folder):
    write_sizes(tmp_path, [[480, 640]])
    with pytest.raises(UserError, match=r"width_heigths\.json: an object of path: \[height, width\] was expected"):
        folder.sizes([COCO])


def test_loaded_pixels_are_those_of_the_file(tmp_path, folder):
    with Image.open(save(tmp_path, COCO, (40, 30))) as image:
        expected = resize_and_pad(image, 12, 20)
    assert np.array_equal(folder.load(COCO), expected)


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_orientation_option_reaches_the_transform(tmp_path, decoder):
    save(tmp_path, COCO, (101, 100))
    assert ImageFolder(tmp_path, SHAPE, decoder).load(COCO).shape == (3, 12, 20)
    assert ImageFolder(tmp_path, ImageShape(12, 20, True), decoder).load(COCO).shape == (3, 20, 12)


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: b"<html>not found</html>", "cannot identify image file"),
        (lambda data: b"", "cannot identify image file"),
    ],
    ids=["truncated", "no_image", "empty"],
)
def test_damaged_file_is_named_with_the_reason(tmp_path, damage, reason, decoder):
    path = save(tmp_path, COCO, (64, 64))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UnreadableImage, match=reason) as error:
        ImageFolder(tmp_path, SHAPE, decoder).load(COCO)
    assert str(error.value).startswith(f"{path}: ")


def test_missing_file_is_unreadable(folder):
    with pytest.raises(UnreadableImage, match=r"COCO_val2014_000000000042\.jpg: .*No such file"):
        folder.load(COCO)


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_image_too_large_to_decode_safely_is_unreadable(tmp_path, monkeypatch, decoder):
    save(tmp_path, COCO)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 12 // 2 - 1)  # Pillow refuses more than twice as many
    with pytest.raises(UnreadableImage, match=r"decompression bomb DOS attack; save it smaller$"):
        ImageFolder(tmp_path, SHAPE, decoder).load(COCO)


@pytest.mark.parametrize("decoder", ["pillow", "simplejpeg"])
def test_image_too_narrow_to_leave_anything_is_unreadable(tmp_path, decoder):
    save(tmp_path, COCO, (2000, 1))
    with pytest.raises(UnreadableImage, match="2000 x 1 pixels are too narrow for 12 x 20"):
        ImageFolder(tmp_path, SHAPE, decoder).load(COCO)


@pytest.mark.parametrize("draw", [noise, smooth])
@pytest.mark.parametrize("size", [(320, 240), (201, 301), (96, 144), (60, 50)], ids=str)
def test_simplejpeg_is_within_two_levels_of_pillow(tmp_path, size, draw):
    """The decoders agree bit for bit, so the filters are what differs. Both are separable, with weights that add up to
    1, and round to a level after each of the two passes. Pillow's weights are exact to 2^-23 and torch's, of int16, to
    2^-15 at least. With at most 7 taps here (twice the ratio of 2.5, and 2), a pass errs by 7 * 255 * 2^-15 = 0.06: its
    rounded values differ by 1 at most. The second pass carries that on: 1.06 before rounding, so 2 after it.
    """
    path = save(tmp_path, COCO, size, draw=draw)
    assert np.array_equal(decoding._decode_jpeg(path.read_bytes()), np.asarray(Image.open(path)))
    shape = ImageShape(96, 160)
    ours = ImageFolder(tmp_path, shape, "simplejpeg").load(COCO)
    pillows = ImageFolder(tmp_path, shape).load(COCO)
    assert ours.shape == pillows.shape
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - pillows).max() <= 2


def encoded(mode, **options):
    buffer = io.BytesIO()
    noise((40, 30)).convert(mode).save(buffer, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [encoded("RGB", format="PNG"), encoded("CMYK", format="JPEG"), encoded("P", format="GIF")],
    ids=["png", "cmyk", "gif"],
)
def test_what_simplejpeg_does_not_take_goes_pillows_way(data):
    assert np.array_equal(to_pixels(data, SHAPE, "simplejpeg"), to_pixels(data, SHAPE, "pillow"))


def test_simplejpeg_is_used_where_it_can_be(monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_: pytest.fail("Pillow was asked"))
    for mode in ("RGB", "L"):
        assert to_pixels(encoded(mode, format="JPEG"), SHAPE, "simplejpeg").shape == (3, 12, 20)


def test_missing_simplejpeg_is_told_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "find_spec", lambda name: None)
    ImageFolder(tmp_path, SHAPE)
    with pytest.raises(UserError, match=r"simplejpeg is not installed; run `pip install simplejpeg`"):
        ImageFolder(tmp_path, SHAPE, "simplejpeg")


def test_folder_is_small_to_pickle_and_says_what_it_is(tmp_path, folder):
    save(tmp_path, COCO)
    pickled = pickle.dumps(folder)
    assert len(pickled) < 1000
    assert np.array_equal(pickle.loads(pickled).load(COCO), folder.load(COCO))
    assert str(folder) == f"the image folders of {tmp_path}"


def test_pillows_users_do_not_load_torch():
    program = (
        "import sys, engine.data.images.lmdb_store; from engine.data.images.decoding import *\n"
        "from PIL import Image; to_pixels(__import__('numpy').zeros((9, 9, 3), 'u1'), ImageShape(12, 20), 'pillow')\n"
        "sys.exit('torch' in sys.modules or 'simplejpeg' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_errors_of_pixels_are_those_that_sources_catch():
    for data in (b"", b"\xff\xd8\xff", encoded("RGB", format="PNG")[:60], b"II*\x00" + bytes(40)):
        with pytest.raises(IMAGE_ERRORS):
            to_pixels(data, SHAPE, "pillow")


def record_sizes(data_root, count, *, exchanged=0, key="data/{}"):
    """Landscapes of 20 x 12 pixels, of which some are recorded the wrong way round."""
    img_ids = [f"COCO_val2014_{number:012d}" for number in range(count)]
    entries = {}
    for number, img_id in enumerate(img_ids):
        save(data_root, img_id)
        entries[key.format(image_path(img_id).as_posix())] = [20, 12] if number < exchanged else [12, 20]
    write_sizes(data_root, entries)
    return img_ids


def test_sizes_the_wrong_way_round_are_refused_with_an_example(tmp_path, folder):
    img_ids = record_sizes(tmp_path, 8, exchanged=5)
    with pytest.raises(UserError) as error:
        folder.sizes(img_ids)
    assert "has height and width the wrong way round, in 5 of 8 images that were compared" in str(error.value)
    assert ".jpg has 20 x 12 pixels, recorded are 12 x 20)" in str(error.value)


def test_a_few_wrong_sizes_are_told_and_kept(tmp_path, folder, capsys):
    img_ids = record_sizes(tmp_path, 8, exchanged=1)
    assert folder.sizes(img_ids, progress=True)[0].tolist() == [12, 20]
    told = capsys.readouterr().out
    assert told.count("warning: ") == 1
    assert f"{SIZES_FILE} differs from 1 of 8 images that were compared ({image_path(img_ids[0])} has 20 x 12" in told
    assert folder.sizes(img_ids).tolist()
    assert capsys.readouterr().out == ""


def test_no_more_than_a_few_hundred_sizes_are_compared(tmp_path, monkeypatch):
    img_ids = record_sizes(tmp_path, 12)
    monkeypatch.setattr(module, "COMPARED_SIZES", 5)
    measured = []
    module.recorded_or_measured_sizes(img_ids, tmp_path, lambda img_id: measured.append(img_id) or (20, 12))
    assert len(set(measured)) == len(measured) == 5


def test_sizes_under_other_names_are_as_good_as_none_and_told(tmp_path, folder, capsys):
    img_ids = record_sizes(tmp_path, 3, exchanged=3, key="elsewhere/{}")
    assert folder.sizes(img_ids, progress=True).tolist() == [[20, 12]] * 3
    told = capsys.readouterr().out
    assert "lists none of these 3 images" in told
    assert "'elsewhere/mscoco/val2014/COCO_val2014_000000000000.jpg', and 'data/mscoco/val2014/" in told


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_makes_an_unreadable_image(tmp_path, folder, monkeypatch):
    """Under `python -W error`, Pillow's doubts about a huge image would end a loading worker."""
    save(tmp_path, COCO)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)  # twice as many would be refused in any case
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        folder.load(COCO)
