"""A drawn folder of one's own is what it says, to the programs that read it."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.data.annotations.formats.table import Columns
from engine.data.annotations.named import own_file
from engine.data.images.decoding import IMAGE_ERRORS, open_image
from engine.synthetic.photos import CUT_OFF, NAMES, TABLE, write_photos
from engine.synthetic.scenes import Scene

SEED = 1
TRAIN, VALID = 2 * len(NAMES), len(NAMES)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn") / "own"
    write_photos(folder, train_scenes=TRAIN, valid_scenes=VALID, seed=SEED)
    return folder


def upright(path: Path, size: tuple[int, int]) -> np.ndarray:
    """As a training decodes it: uint8 (H, W, 3)."""
    with open_image(path.read_bytes(), as_original=False) as image:
        assert image.size == size
        return np.asarray(image.rgb(size))


@pytest.mark.parametrize("number", range(len(NAMES)))
def test_every_kind_of_file_shows_its_scene_the_right_way_up(photos: Path, number: int) -> None:
    draw = random.Random(f"{SEED}/train/{number}")
    path = photos / "photos" / NAMES[number].format(split="train", number=number)
    painted = np.asarray(Scene.imagine(str(path), draw).paint(draw)).astype(int)
    decoded = upright(path, (painted.shape[1], painted.shape[0]))
    turned = painted[::-1, ::-1]
    assert abs(decoded - painted).mean() < abs(decoded - turned).mean() / 4  # a tenth, where JPEG loses most


def test_there_are_several_kinds(photos: Path) -> None:
    paths = [path for path in (photos / "photos").rglob("*") if path.is_file()]
    assert len(paths) == TRAIN + VALID + 1
    assert {path.suffix for path in paths} == {".jpg", ".JPG", ".jpeg", ".png", ".webp"}
    formats = {Image.open(path).format for path in paths}
    assert formats == {"JPEG", "PNG", "WEBP"}
    lying = [path for path in paths if Image.open(path).getexif()]
    assert len(lying) == (TRAIN + VALID) / len(NAMES)
    with pytest.raises(IMAGE_ERRORS):
        upright(photos / CUT_OFF, Image.open(photos / CUT_OFF).size)


@pytest.mark.parametrize(("split", "images", "left_out"), [("train", TRAIN + 1, 2), ("valid", VALID, 0)])
def test_the_table_is_read_as_it_is(photos: Path, split: str, images: int, left_out: int) -> None:
    file = own_file(photos / TABLE, Columns(), split)
    found = list(file.texts())
    assert len({texts.img_id for texts in found}) == images
    assert all((photos.parent / texts.img_id).is_file() for texts in found)
    assert file.dropped["without words"] == left_out
    answers = [label for texts in found for label in texts.labels or ()]
    assert len(answers) == 2 * min(images, TRAIN)
    assert all(answers)


def test_the_same_seed_gives_the_same_files(photos: Path, tmp_path: Path) -> None:
    write_photos(tmp_path, train_scenes=TRAIN, valid_scenes=VALID, seed=SEED)
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert written == {path.relative_to(photos): path.read_bytes() for path in photos.rglob("*") if path.is_file()}
