import json

import numpy as np
import pytest
from PIL import Image

from engine.data.images import SIZES_FILE, UnreadableImage, image_path, image_sizes, load_image, missing_images
from engine.data.transforms import resize_and_pad
from engine.errors import UserError

COCO, GENOME = "COCO_val2014_000000000042", "2359296"


def save(data_root, img_id, size=(20, 12)):
    """A small JPEG of noise at the place of the image."""
    path = data_root / image_path(img_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def write_sizes(data_root, entries):
    (data_root / SIZES_FILE).parent.mkdir(parents=True, exist_ok=True)
    (data_root / SIZES_FILE).write_text(json.dumps(entries))


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


def test_images_without_a_file_are_named_in_order(tmp_path):
    save(tmp_path, COCO)
    save(tmp_path, GENOME)
    assert missing_images([GENOME, "8", COCO, "7"], tmp_path) == ["8", "7"]
    assert missing_images([GENOME, COCO], tmp_path) == []


def test_missing_folder_is_refused_with_what_to_do(tmp_path):
    save(tmp_path, COCO)
    with pytest.raises(UserError) as error:
        missing_images([COCO, GENOME], tmp_path)
    folder = tmp_path / "vg_raw_images" / "VG_100K"
    assert str(error.value) == (
        f"the image folder {folder} can't be read (No such file or directory), and {GENOME} should be in it; "
        "unpack the images there or point --data_root at the folder that holds mscoco/"
    )


def test_sizes_are_width_and_height_of_the_header(tmp_path):
    save(tmp_path, COCO, (20, 12))
    save(tmp_path, GENOME, (12, 30))
    assert image_sizes([COCO, GENOME], tmp_path) == {COCO: (20, 12), GENOME: (12, 30)}


def test_recorded_sizes_are_height_and_width_and_need_no_file(tmp_path):
    save(tmp_path, GENOME, (12, 30))
    write_sizes(tmp_path, {f"data/{image_path(COCO).as_posix()}": [480, 640]})
    assert image_sizes([COCO, GENOME], tmp_path) == {COCO: (640, 480), GENOME: (12, 30)}


def test_unreadable_file_counts_as_square(tmp_path):
    save(tmp_path, COCO).write_bytes(b"no image")
    assert image_sizes([COCO, GENOME], tmp_path) == {COCO: (1, 1), GENOME: (1, 1)}


@pytest.mark.parametrize("entry", [[480], [480, 640, 3], 480, [0, 640], [480, -1], ["tall", "wide"]], ids=str)
def test_broken_recorded_size_is_refused_with_its_image(tmp_path, entry):
    write_sizes(tmp_path, {f"data/{image_path(COCO).as_posix()}": entry})
    with pytest.raises(UserError) as error:
        image_sizes([COCO], tmp_path)
    assert str(error.value) == (
        f"{tmp_path / SIZES_FILE}, {image_path(COCO)}: [height, width] was expected, found {entry!r}"
    )


def test_sizes_file_that_is_no_object_is_refused(tmp_path):
    write_sizes(tmp_path, [[480, 640]])
    with pytest.raises(UserError, match=r"width_heigths\.json: an object of path: \[height, width\] was expected"):
        image_sizes([COCO], tmp_path)


def test_loaded_pixels_are_those_of_the_file(tmp_path):
    path = save(tmp_path, COCO, (40, 30))
    with Image.open(path) as image:
        expected = resize_and_pad(image, 12, 20)
    assert np.array_equal(load_image(path, 12, 20), expected)


def test_orientation_option_reaches_the_transform(tmp_path):
    path = save(tmp_path, COCO, (101, 100))
    assert load_image(path, 12, 20).shape == (3, 12, 20)
    assert load_image(path, 12, 20, orient_after_resize=True).shape == (3, 20, 12)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda data: data[: len(data) // 2], "truncated"),
        (lambda data: b"<html>not found</html>", "cannot identify image file"),
        (lambda data: b"", "cannot identify image file"),
    ],
    ids=["truncated", "no_image", "empty"],
)
def test_damaged_file_is_named_with_the_reason(tmp_path, damage, reason):
    path = save(tmp_path, COCO, (64, 64))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UnreadableImage, match=reason) as error:
        load_image(path, 12, 20)
    assert str(error.value).startswith(f"{path}: ")


def test_missing_file_is_unreadable(tmp_path):
    with pytest.raises(UnreadableImage, match=r"COCO_val2014_000000000042\.jpg: .*No such file"):
        load_image(tmp_path / image_path(COCO), 12, 20)


def test_image_too_large_to_decode_safely_is_unreadable(tmp_path, monkeypatch):
    path = save(tmp_path, COCO)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20 * 12 // 2 - 1)  # Pillow refuses more than twice as many
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        load_image(path, 12, 20)
