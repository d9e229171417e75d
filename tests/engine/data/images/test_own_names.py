"""Images of one's own: their ids have a suffix or none, and their files spell it as cameras and programs do."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.named import read_names
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import ImageShape
from engine.data.images.folder import ImageFolder
from engine.data.images.lmdb_store import ImageStore
from engine.data.images.places import Folder, image_path
from engine.data.images.writer import write_image_store
from engine.data.inspection.images import look_at_images
from engine.data.inspection.texts import Names
from engine.data.splits import open_images, read_split
from engine.data.verification.images import check_images
from engine.errors import UserError
from tests.engine.data.images.test_upright import photo
from tests.engine.tasks.test_pretraining import tokenizer

SHAPE = ImageShape(12, 20)
COCO = "COCO_val2014_000000000042"
NAMES = [
    ("IMG_0001.jpg", "images/IMG_0001.jpg"),
    ("IMG_0001.jpg", "images/IMG_0001.JPG"),
    ("IMG_0001.JPG", "images/IMG_0001.jpeg"),
    ("IMG_0001", "images/IMG_0001.JPEG"),
    ("IMG_0001", "images/IMG_0001.png"),
    ("IMG_0001.png", "images/IMG_0001.PNG"),
    ("IMG_0001", "images/IMG_0001.webp"),
    ("a.b c", "images/a.b c.Jpg"),
    ("trip/IMG_0001", "images/trip/IMG_0001.JPG"),
    ("7", "images/7.jpg"),
    ("IMG_0001.jpg", "vg_raw_images/VG_100K/IMG_0001.JPG"),
    ("IMG_0001", "vg_raw_images/VG_100K/IMG_0001.png"),
    ("IMG_0001.jpg", "vg_raw_images/VG_100K/IMG_0001.jpg.jpg"),  # what was needed to be found by earlier versions
    (f"{COCO}.jpg", f"mscoco/val2014/{COCO}.jpg"),
    (COCO, f"mscoco/val2014/{COCO}.JPG"),
    (COCO, f"images/{COCO}.jpg"),
    ("gqa:IMG_0001.JPG", "images/IMG_0001.jpg"),
    ("gqa:n1", "gqa_raw_images/images/n1.PNG"),
    ("flickr30k:IMG_0001", "images/IMG_0001.JPG"),
]


def save(path, size=(20, 12), orientation=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    photo(orientation, size).save(path, "PNG", exif=photo(orientation).getexif())
    return path


def store_of(data_root, *img_ids):
    path = data_root / "lmdb"
    found = write_image_store(path, img_ids, data_root, resize=None, quality=95, workers=0, progress=False)
    assert found.unreadable == []
    return ImageStore(path, data_root, SHAPE)


@pytest.mark.parametrize(("img_id", "file"), NAMES)
def test_a_file_is_found_by_its_id_in_any_spelling_of_the_suffix(tmp_path, img_id, file):
    path = save(tmp_path / file)
    pixels = np.asarray(Image.open(path)).transpose(2, 0, 1)
    for source in (ImageFolder(tmp_path, SHAPE), store_of(tmp_path, img_id)):
        assert source.missing([img_id]) == []
        assert source.sizes([img_id]).tolist() == [[20, 12]]
        assert np.array_equal(source.load(img_id), pixels)
    assert ImageFolder(tmp_path, SHAPE).where(img_id) == str(path)


@pytest.mark.parametrize("other", ["IMG_0001", "IMG_0001.JPG", "IMG_0001.png"])
def test_a_store_knows_its_images_by_other_spellings_too(tmp_path, other):
    save(tmp_path / "images" / "IMG_0001.jpg")
    save(tmp_path / "images" / "IMG_0002.JPG")
    store = store_of(tmp_path, "IMG_0001.jpg", "IMG_0002")
    assert store.missing(["IMG_0003", other, "IMG_0002.jpg"]) == ["IMG_0003"]
    assert store.sizes([other]).tolist() == [[20, 12]]
    assert np.array_equal(store.load(other), store.load("IMG_0001.jpg"))
    assert store.sought("IMG_003.jpg") == (
        "looked for that key, with any usual suffix; the nearest names there are IMG_0002, IMG_0001.jpg"
    )


@pytest.mark.parametrize(
    ("img_id", "files"),
    [
        ("a", ["images/a.jpg", "images/a.PNG"]),
        ("a.webp", ["images/a.jpg", "images/a.JPG"]),
        ("5", ["vg_raw_images/VG_100K/5.jpg", "images/5.JPG"]),
        ("a", ["vg_raw_images/VG_100K/a.JPG", "images/a.JPG"]),
        ("trip/a", ["images/trip/a.jpg", "images/trip/a.png"]),
        ("gqa:a.jpg", ["gqa_raw_images/images/a.jpg", "images/a.jpg"]),
    ],
)
def test_an_id_that_two_files_match_is_refused_with_both(tmp_path, img_id, files):
    paths = [save(tmp_path / file) for file in files]
    told = f"the image {img_id} may be {paths[0]} or {paths[1]}; remove or rename all but one of them"
    with pytest.raises(UserError) as error:
        ImageFolder(tmp_path, SHAPE).missing([img_id])
    assert str(error.value) == told
    with pytest.raises(UserError, match=r"remove or rename all but one"):
        store_of(tmp_path, img_id)
    names = Names()
    names.add(img_id)
    names.codes()
    assert look_at_images(ImageFolder(tmp_path, SHAPE), names, np.arange(1)).missing_lines.lines == [told]


def test_an_id_that_is_a_files_name_means_that_file(tmp_path):
    for number, suffix in enumerate(("jpg", "JPG", "png")):
        save(tmp_path / "images" / f"a.{suffix}", (20, 12 - number))
    names = ["a.jpg", "a.JPG", "a.png"]
    for source in (ImageFolder(tmp_path, SHAPE), store_of(tmp_path, *names)):
        assert source.missing(names) == []
        assert source.sizes(names)[:, 1].tolist() == [12, 11, 10]
        with pytest.raises(UserError, match=r"the image a may be .*a\.jpg or .*a\.png"):
            source.missing(["a"])


def test_a_file_without_a_suffix_is_no_image(tmp_path):
    save(tmp_path / "images" / "a")
    folder = ImageFolder(tmp_path, SHAPE)
    assert folder.missing(["a"]) == ["a"]
    path = save(tmp_path / "images" / "a.JPG")
    assert folder.missing(["a"]) == []
    assert folder.where("a") == str(path)


@pytest.mark.parametrize("img_id", ["7", "gqa:7", "flickr30k:7"])
def test_own_photos_stand_upright_though_their_names_could_be_the_originals(tmp_path, img_id):
    save(tmp_path / "images" / "7.jpg", (12, 20), orientation=6)
    turned = ImageFolder(tmp_path, SHAPE)
    assert turned.sizes([img_id]).tolist() == [[20, 12]]
    store = store_of(tmp_path, img_id)
    assert store.sizes([img_id]).tolist() == [[20, 12]]
    assert np.array_equal(store.load(img_id), turned.load(img_id))
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    save(tmp_path / image_path(img_id), (12, 20), orientation=6)
    assert ImageFolder(tmp_path, SHAPE).sizes([img_id]).tolist() == [[12, 20]]


def test_the_originals_images_are_opened_without_a_search(tmp_path, monkeypatch):
    save(tmp_path / image_path(COCO))
    save(tmp_path / "images" / "IMG_0001.jpg")
    folder = ImageFolder(tmp_path, SHAPE)
    assert folder.missing([COCO, "IMG_0001"]) == []
    monkeypatch.setattr(os, "listdir", None)
    monkeypatch.setattr("engine.data.images.places.spellings", None)
    assert folder.load(COCO).shape == (3, 12, 20)
    assert folder.stamp(COCO)


def test_odd_ids_are_missing_and_no_error(tmp_path):
    (tmp_path / "images" / "2016").mkdir(parents=True)
    odd = ["", "/", ".", "2016", "a\0b", "a\0/b", "x" * 600, "../images", "gqa:", ".jpg", "é.JPG"]
    folder = ImageFolder(tmp_path, SHAPE)
    assert folder.missing(odd) == odd
    assert all("looked for" in folder.sought(img_id) for img_id in odd)
    assert folder.sizes(odd).tolist() == [[1, 1]] * len(odd)


@pytest.mark.parametrize("broken", ["link", "folder"])
def test_a_name_without_a_file_behind_it_is_an_unreadable_image(tmp_path, broken):
    path = tmp_path / "images" / "IMG_0001.jpg"
    path.parent.mkdir()
    path.mkdir() if broken == "folder" else path.symlink_to("gone.jpg")
    unreadable, other_size, good = check_images(ImageFolder(tmp_path, SHAPE), ["IMG_0001"], tmp_path / "log.tsv")
    assert (len(unreadable), other_size, good) == (1, [], 0)
    assert unreadable[0].startswith(f"{path}: ")


def test_a_folder_of_ones_own_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    save(tmp_path / "images" / "IMG_0001.jpg")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", refuse)  # root may read all
    with pytest.raises(UserError, match=r"the image folder .*images can't be read \(Permission denied\); mend its"):
        ImageFolder(tmp_path, SHAPE).missing(["IMG_0001"])


@pytest.mark.parametrize("name", ["IMG_0001", "IMG_0001.heic"])
def test_a_file_whose_name_is_not_that_of_an_image_is_told_as_such(tmp_path, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / name).touch()
    folder = ImageFolder(tmp_path, SHAPE)
    assert folder.missing([name]) == [name]
    assert f"; {name} is there, but an image needs one of these: jpg, jpeg, png," in folder.sought(name)


def test_what_is_not_found_is_told_with_the_nearest_names(tmp_path):
    for name in ("IMG_0001.JPG", "IMG_0010.png", "holiday.jpg"):
        save(tmp_path / "images" / name)
    (tmp_path / "lxmert").mkdir()
    ids = ["IMG_001.jpg", "img_0011", "beach", "hill", "IMG_0001"]
    items = [{"img_id": img_id, "sentf": {"own": ["word1"]}} for img_id in ids]
    (tmp_path / "lxmert" / "train.json").write_text(json.dumps(items))
    source = AnnotationSource(read_names("train", tmp_path / "lxmert"), TextEncoder(tokenizer()), AnswerTable([]))
    images = open_images(tmp_path, None, SHAPE, "pillow")
    genome, own = tmp_path / "vg_raw_images" / "VG_100K", tmp_path / "images"
    with pytest.raises(UserError) as error:
        read_split(source, images, tmp_path / "cache")
    suffix, nearest = "with any usual suffix", "; the nearest names there are IMG_0010.png, IMG_0001.JPG"
    assert str(error.value) == (
        f"4 of 5 images of train are not in the image folders of {tmp_path}, the first is IMG_001.jpg (looked for "
        f"{genome}/IMG_001.jpg and {own}/IMG_001.jpg, {suffix}{nearest}), then img_0011 (looked for "
        f"{genome}/img_0011.jpg and {own}/img_0011.jpg, {suffix}{nearest}), then beach (looked for "
        f"{genome}/beach.jpg and {own}/beach.jpg, {suffix}), and 1 more; add them, or remove their texts"
    )
    split = read_split(source, images, tmp_path / "cache", allow_missing_images=True)
    assert split.summary == "train: 1 sentence, 1 image, 4 images without a file left out"


def test_an_image_that_lies_in_another_folder_is_told_by_the_name_that_it_has_there(tmp_path):
    own = tmp_path / "images"
    for name in ("IMG_0010.jpg", "holiday/IMG_0005.JPG", "trip/2/IMG_0005.jpg", "IMG_0006.jpg"):
        save(own / name)
    folder = ImageFolder(tmp_path, SHAPE, places={"images": Folder(own), "root": Folder(tmp_path)})
    holiday, trip = "holiday/IMG_0005.JPG", "trip/2/IMG_0005.jpg"
    for img_id in ("IMG_0005.jpg", "IMG_0005", "gone/IMG_0005.png", "images/IMG_0005.jpg"):
        assert folder.sought(img_id).endswith(f"; {own} has it as {holiday} and as {trip}: name it so")
    assert folder.sought("holiday/IMG_0006").endswith(f"; {own} has it as IMG_0006.jpg: name it so")
    assert folder.sought("root/IMG_0006.jpg").endswith(f"; {tmp_path} has it as images/IMG_0006.jpg: name it so")
    assert folder.sought("IMG_0007.jpg").endswith("; the nearest names there are IMG_0010.jpg, IMG_0006.jpg")


def test_sizes_of_own_images_are_measured_once(tmp_path, monkeypatch, capsys):
    for number in range(3):
        save(tmp_path / "images" / f"{number}.JPG")
    (tmp_path / "lxmert").mkdir()
    (tmp_path / "mscoco").mkdir()
    (tmp_path / "mscoco" / "width_heigths.json").write_text(json.dumps({"data/mscoco/of/the/demo.jpg": [12, 20]}))
    items = [{"img_id": f"{number}", "sentf": {"own": ["word1"]}} for number in range(3)]
    (tmp_path / "lxmert" / "train.json").write_text(json.dumps(items))
    source = AnnotationSource(read_names("train", tmp_path / "lxmert"), TextEncoder(tokenizer()), AnswerTable([]))
    measured = []
    monkeypatch.setattr("engine.data.images.folder.measure_all", measuring(measured))
    for _ in range(2):
        split = read_split(source, open_images(tmp_path, None, SHAPE, "pillow"), tmp_path / "cache", progress=True)
        assert split.sizes["width"].tolist() == [20, 20, 20]
    everything = ["0", "1", "2"]
    assert [sorted(some) for some in measured if some] == [everything, everything]  # the second time, to compare
    assert "lists none" not in capsys.readouterr().out


def measuring(measured):
    from engine.data.images.folder import measure_all

    def measure(img_ids, *args, **options):
        measured.append(list(img_ids))
        return measure_all(img_ids, *args, **options)

    return measure
