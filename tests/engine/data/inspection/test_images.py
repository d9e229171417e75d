"""What is found in images, and the sheet that shows them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from engine.data.images.decoding import ImageShape
from engine.data.images.folder import ImageFolder
from engine.data.images.places import Folder, OriginalFolders
from engine.data.inspection.images import look_at_images, oddest
from engine.data.inspection.sheet import lines_of, read_font, write_sheet
from engine.data.inspection.texts import Names
from engine.errors import UserError

SHAPE = ImageShape(48, 80)


def noise(width, height):
    pixels = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def folder(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stands on its side
    noise(100, 60).save(tmp_path / "turned.jpg", exif=exif)
    noise(40, 40).save(tmp_path / "square.png")
    shutil.copy(tmp_path / "square.png", tmp_path / "copy.png")
    noise(40, 40).save(tmp_path / "square.bmp")  # the same pixels, and other bytes
    noise(400, 100).save(tmp_path / "narrow.png")
    noise(4000, 2).save(tmp_path / "line.png")  # 80 x 0.04
    noise(200, 120).save(tmp_path / "large.png")
    Image.new("RGBA", (90, 70), (10, 20, 30, 0)).save(tmp_path / "transparent.png")
    Image.new("L", (70, 90), 17).save(tmp_path / "blank.jpg")
    (tmp_path / "cut.png").write_bytes((tmp_path / "large.png").read_bytes()[:4000])
    (tmp_path / "text.jpg").write_text("text")
    (tmp_path / "folder.jpg").mkdir()
    return tmp_path


def look(folder, files=None, numbers=None):
    names = Names()
    for file in files or [*sorted(path.name for path in folder.iterdir()), "gone.jpg", "nowhere/gone.jpg"]:
        names.add(f"x/{file}")
    names.codes()
    images = ImageFolder(folder, SHAPE, places={"x": Folder(folder)})
    return look_at_images(images, names, np.arange(len(names)) if numbers is None else numbers), names, images


def test_every_image_is_described_or_named_with_a_reason(folder):
    found, names, _ = look(folder)
    assert found.missing_lines.lines == [
        f"{folder}/gone.jpg: no such file (looked for {folder}/gone.jpg)",
        f"{folder}/nowhere/gone.jpg: no such file (looked for {folder}/nowhere/gone.jpg)",
    ]
    reasons = dict(line.split(": ", 1) for line in found.unreadable_lines.lines)
    assert list(reasons) == [f"{folder}/{name}" for name in ("cut.png", "folder.jpg", "line.png", "text.jpg")]
    assert list(reasons.values())[1:] == [
        "Is a directory",
        "4000 x 2 pixels are too narrow for 48 x 80",
        "cannot identify image file",
    ]
    assert "truncated" in reasons[f"{folder}/cut.png"]
    sizes = {names[number]: tuple(found.sizes[number].tolist()) for number in found.readable.tolist()}
    assert sizes == {
        **{"x/turned.jpg": (60, 100), "x/square.png": (40, 40), "x/copy.png": (40, 40), "x/square.bmp": (40, 40)},
        **{"x/narrow.png": (400, 100), "x/large.png": (200, 120), "x/transparent.png": (90, 70)},
        "x/blank.jpg": (70, 90),
    }
    assert [names[number] for number in np.flatnonzero(found.one_colour)] == ["x/blank.jpg", "x/transparent.png"]
    assert [[names[n] for n in group] for group in found.same_bytes()] == [["x/copy.png", "x/square.png"]]
    assert found.enlarged(SHAPE) == 3  # the squares
    assert found.narrow(SHAPE) == 1  # of 400 x 100 only 20 of 48 rows are left
    assert found.groups(1) == {"below 0.50": 1, "0.50 to 1.00": 2, "1.00 to 2.00": 5}
    assert found.groups(0) == {"below 1.00": 3, "1.00 and more": 5}


def test_odd_ones_are_chosen_once_each(folder):
    found, names, _ = look(folder)
    assert oddest(found, names, 1) == [
        ("x/blank.jpg", "one colour"),
        ("x/narrow.png", "narrowest"),
        ("x/copy.png", "smallest"),
    ]
    assert [word for _, word in oddest(found, names, 2)] == ["one colour"] * 2 + ["narrowest"] * 2 + ["smallest"] * 2
    assert len(dict(oddest(found, names, 3))) == 8


def test_only_the_chosen_ones_are_opened_and_all_are_looked_for(folder):
    found, names, _ = look(folder, ["large.png", "cut.png", "gone.jpg", "text.jpg", "blank.jpg"], np.array([0, 3]))
    assert found.missing == [2]
    assert [names[number] for number in found.unreadable] == ["x/text.jpg"]
    assert found.sizes.tolist() == [[200, 120], [0, 0]]


def test_a_folder_that_is_not_there_makes_its_images_missing(tmp_path):
    names = Names()
    names.add("COCO_val2014_000000000001")
    names.codes()
    images = ImageFolder(tmp_path, SHAPE)
    found = look_at_images(images, names, np.arange(1))
    path = OriginalFolders(tmp_path).path(names[0])
    folder, file = found.missing_lines.lines
    assert folder.startswith(f"the image folder {path.parent} can't be read (No such file or directory), and COCO_val")
    assert file == f"{path}: No such file or directory"
    assert found.missing == [0]


def test_nothing_to_look_at(tmp_path):
    found, names, _ = look(tmp_path, ["gone.jpg"])
    assert (found.same_bytes(), found.groups(5), found.enlarged(SHAPE), found.narrow(SHAPE)) == ([], {}, 0, 0)
    assert oddest(found, names, 2) == []


@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_the_sheet_shows_the_pictures(folder, tmp_path, ending):
    for name, colour in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (240, 180), colour).save(folder / f"{name}.png")
    _, _, images = look(folder)
    rows = [
        ("first", [("x/red.png", "", "a caption"), ("x/narrow.png", "narrowest", "")]),
        ("second", [("x/blue.png", "", "")]),
    ]
    write_sheet(tmp_path / f"sheet.{ending}", images, rows, ImageFont.load_default(12))
    with Image.open(tmp_path / f"sheet.{ending}") as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    red, blue = pixels[130, 100], pixels[-200, 100]  # both in the first column
    assert np.abs(red - (255, 0, 0)).max() <= 4  # JPEG
    assert np.abs(blue - (0, 0, 255)).max() <= 4
    assert (pixels[38 : 38 + 180, 260:480] < 250).any()  # the second picture


def test_a_sheet_without_pictures_and_with_lost_ones(folder):
    _, _, images = look(folder)
    write_sheet(folder / "none.png", images, [("none", [])], ImageFont.load_default(12))
    write_sheet(folder / "lost.png", images, [("one", [("x/gone.jpg", "", "a")])], ImageFont.load_default(12))
    assert Image.open(folder / "none.png").height < Image.open(folder / "lost.png").height


def test_a_sheet_that_cannot_be_written_is_one_line(folder):
    _, _, images = look(folder)
    with pytest.raises(UserError, match=r"nowhere/sheet\.png can't be written"):
        write_sheet(Path("/proc/nowhere/sheet.png"), images, [], ImageFont.load_default(12))


@pytest.mark.parametrize(
    "caption",
    ["", " \n\t", "word " * 500, "w" * 5000, "一只狗在草地上奔跑" * 50, "مرحبا بالعالم", "half \ud83d", "a\nb"],
)
def test_captions_are_cut_to_fit(caption):
    lines = lines_of(caption, ImageFont.load_default(12))
    assert len(lines) <= 4
    assert all(line and "\n" not in line for line in lines)
    assert bool(lines) == bool(caption.strip())


def test_a_font_that_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "a.ttf").write_bytes(b"no font")
    with pytest.raises(UserError, match=r"--font .*a\.ttf can't be read"):
        read_font(str(tmp_path / "a.ttf"))
    assert read_font(None).getlength("a") > 0
