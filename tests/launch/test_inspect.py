"""launch/prepare.py inspect: clean data in every form, and all that can be wrong with a table. In this process."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.commands import program_name
from engine.synthetic import tables
from launch.prepare import main
from tests.conftest import launch


@pytest.fixture(scope="module")
def forms(scenes, tmp_path_factory) -> Path:
    """The small scenes in every form; `own/images` is a folder with their images."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "images").symlink_to(scenes / "mscoco" / "train2014")
    items = json.loads((scenes / "lxmert" / "mscoco_train.json").read_text())

    def rows():
        return tables.rows_of(items, "images/{}.jpg".format)

    tables.write_jsonl(folder / "own.jsonl", rows())
    tables.write_csv(folder / "own.csv", rows())
    tables.write_csv(folder / "own.tsv", rows(), "\t")
    tables.write_parquet(folder / "own.parquet", rows())
    tables.write_shards(folder / "shard", rows(), folder, 15)
    tables.write_dataset(folder / "saved", rows(), folder)
    (folder / "own.json").write_text(json.dumps(items))
    return folder


def inspect(scenes, out, *words, code=0):
    """Run it and give its summary."""
    summary = out / "summary.json"
    flags = ["--data_root", str(scenes), "--bert", str(scenes / "bert"), "--json", str(summary)]
    assert main(["inspect", *map(str, words), *flags]) == code
    return json.loads(summary.read_text())


@pytest.mark.parametrize(
    "name",
    [
        *("mscoco_train", "{}/own.json", "{}/own.jsonl", "{}/own.csv", "{}/own.tsv", "{}/own.parquet"),
        *("{}/shard-{{00000..00002}}.tar", "{}/saved"),
    ],
)
def test_the_same_data_are_found_in_every_form(scenes, forms, tmp_path, name):
    found = inspect(scenes, tmp_path, name.format(forms))
    texts, images = found["texts"], found["images"]
    assert found["problems"] == []
    assert texts["left_out"] == {}
    assert (texts["texts"], texts["captions"], texts["questions"], texts["questions_with_answers"]) == (160, 80, 80, 80)
    assert (images["images"], images["looked_at"], images["missing"], images["unreadable"]) == (40, 40, 0, 0)
    by_image = name.endswith((".json", "tar", "saved", "train"))
    assert texts["rows"] == (40 if by_image else 160)
    assert texts["scripts"] == {"Latin": 160}
    assert texts["lengths"]["largest"] < 20
    assert sum(images["aspect_ratio_groups"].values()) == 40
    assert "160 of these 160 texts can be trained on as they are." in found["advice"]
    assert Image.open(tmp_path / "summary.pictures.jpg").width > 1000


@pytest.fixture
def dirty(scenes, tmp_path) -> Path:
    """A table with everything that is counted, each a number of times that is its own."""
    folder = tmp_path / "dirty"
    folder.mkdir()
    draw = np.random.default_rng(0)

    def noise(name, width, height):
        Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(folder / name)

    for number in range(6):
        noise(f"{number}.png", 700, 500)
    (folder / "copy of 0.png").write_bytes((folder / "0.png").read_bytes())
    noise("narrow.png", 900, 100)
    noise("small.png", 30, 20)
    Image.new("RGBA", (700, 500)).save(folder / "blank.png")
    (folder / "cut.png").write_bytes((folder / "1.png").read_bytes()[:1000])
    rows = [{"image": f"{number}.png", "caption": f"the same on {number % 2}"} for number in range(6)]
    rows += [{"image": "0.png", "caption": "twice"}] * 2
    rows += [{"image": "1.png", "caption": ""}, {"image": "1.png", "caption": None}, {"image": "", "caption": "a"}]
    rows += [{"image": "2.png", "caption": "red " * 30}]
    rows += [{"image": "2.png", "question": "what ?", "answer": "red"}]
    rows += [{"image": "2.png", "question": "what else ?", "answer": "zebra"}]
    rows += [{"image": f"{name}.png", "caption": name} for name in ("copy of 0", "narrow", "small", "blank", "cut")]
    rows += [{"image": "cut.png", "caption": "Собака"}, {"image": "gone.png", "caption": "一只狗"}]
    lines = [json.dumps(row) for row in rows]
    (folder / "own.jsonl").write_text("\n".join([*lines, "{", '{"image": "0.png", "caption": 1}']))
    return folder


def test_everything_that_is_wrong_is_found(scenes, dirty, capsys):
    found = inspect(scenes, dirty, dirty / "own.jsonl", "--sheet", dirty / "pictures.png", code=1)
    texts, images = found["texts"], found["images"]
    assert (texts["rows"], texts["broken_rows"], texts["texts"]) == (23, 2, 18)
    assert texts["left_out"] == {"without words": 2, "without an image": 1}
    assert (texts["captions"], texts["questions"], texts["different_answers"]) == (16, 2, 2)
    assert texts["questions_without_known_answer"] == 1
    assert texts["longer_than_max_seq_length"] == 1
    assert texts["lengths"]["largest"] == 32
    assert texts["scripts"] == {"Latin": 16, "Cyrillic": 1, "Han": 1}
    assert texts["repeated_at_their_image"] == 1
    assert texts["captions_of_several_images"] == {
        **{"captions": 2, "images": 6},
        "most_frequent": {"the same on 0": 3, "the same on 1": 3},
    }
    assert next(iter(texts["captions_of_several_images"]["most_frequent"])) == "the same on 0"  # which comes first
    assert (images["images"], images["missing"], images["unreadable"]) == (12, 1, 1)
    assert (images["texts_of_missing"], images["texts_of_unreadable"]) == (1, 2)
    assert (images["enlarged"], images["narrow"]) == (1, 1)
    assert images["one_colour_names"] == ["dirty/blank.png"]
    assert images["same_bytes_names"] == [["dirty/0.png", "dirty/copy of 0.png"]]
    assert images["width"]["smallest"] == 30
    assert images["width"]["median"] == 700
    assert images["height_over_width"]["smallest"] == 0.111
    names = ("own.jsonl, line 22", "own.jsonl, line 23", "gone.png", "cut.png")
    assert len(found["problems"]) == len(names)
    assert all(line.startswith(f"{dirty}/{name}") for line, name in zip(found["problems"], names, strict=True))
    for part in (
        "15 of these 18 texts can be trained on as they are. A training stops at the first of 2 broken rows",
        "left out: 2 without words, 1 without an image.",
        "doesn't start while 1 image can't be found",
        "passes over 1 unreadable image with 2 texts",
        "1 image of one colour",
        "1 very narrow image",
        "cuts 1 text (5.6%) off after 18 WordPieces: --max_seq_length 32 keeps all of them whole",
        "[UNK]",
        "lacks all answers of 1 question,",
        "1 text that their image has already, 2 captions of several images, 1 image with the bytes of another",
    ):
        assert part in found["advice"]
    out = capsys.readouterr().out
    assert found["advice"] in out
    assert f"problem: {found['problems'][0]}" in out
    with Image.open(dirty / "pictures.png") as sheet:
        assert sheet.format == "PNG"
    assert not (dirty / "summary.pictures.jpg").exists()


def test_a_sample_is_drawn_by_the_seed(scenes, forms, tmp_path):
    flags = [forms / "own.jsonl", "--max_images", "10"]
    first, again, other = (inspect(scenes, tmp_path, *flags, "--seed", seed)["images"] for seed in (1, 1, 2))
    assert first["looked_at"] == sum(first["aspect_ratio_groups"].values()) == 10
    assert first == again != other
    assert (
        "Only 10 of 40 images were opened, drawn by seed 1"
        in inspect(scenes, tmp_path, *flags, "--seed", "1")["advice"]
    )


def test_a_file_that_cannot_be_read_does_not_hide_the_others(scenes, forms, tmp_path):
    (tmp_path / "own.jsonl").write_text("nothing\n")
    found = inspect(scenes, tmp_path, tmp_path / "own.jsonl", forms / "own.csv", code=1)
    assert found["texts"]["texts"] == 160
    assert found["texts"]["broken_files"] == 1
    assert "line 1, column 1: not valid JSON" in found["problems"][1]


def test_splits_of_a_table_are_chosen(scenes, forms, tmp_path):
    rows = [json.loads(line) for line in (forms / "own.jsonl").read_text().splitlines()]
    lines = [json.dumps({**row, "split": "val" if n < 12 else "train"}) for n, row in enumerate(rows)]
    (tmp_path / "own.jsonl").write_text("\n".join(lines))
    flags = [tmp_path / "own.jsonl", "--image_root", forms]
    assert inspect(scenes, tmp_path, *flags)["texts"]["left_out"] == {"of another split": 12}
    assert inspect(scenes, tmp_path, *flags, "--split", "valid")["texts"]["texts"] == 12


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "the following arguments are required: files"),
        (["own.xls"], "own.xls is missing"),
        (["nothing"], "nothing.json is missing"),
        (["x.jsonl", "--sheet", "x.gif"], "--sheet x.gif: one of .png, .jpg, .jpeg is needed as its ending"),
        (["x.jsonl", "--sheet", "x.jpg", "--json", "./x.jpg"], "--sheet x.jpg and --json ./x.jpg are one file"),
        (["x.jsonl", "--font", "/none.ttf"], "--font /none.ttf can't be read"),
        (["x.jsonl", "--max_images", "0"], "--max_images 0: at least 1 is needed"),
        (["x.jsonl", "--max_seq_length", "2"], "--max_seq_length 2: at least 3 is needed"),
        (["x.jsonl", "--image_size_max", "3"], "--image_size_max 3 is less than --image_size_min"),
        (["x.jsonl", "--aspect_ratio_group_factor", "-1"], "--aspect_ratio_group_factor -1: at least 0 is needed"),
        (["broken.jsonl"], "broken.jsonl, line 1, column 1: not valid JSON"),
        (["empty.csv"], "empty.csv has no row with an image and a text"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) and value else "",
)
def test_bad_calls_are_one_line(scenes, tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    Path("broken.jsonl").write_text("broken")
    Path("empty.csv").write_text("image,caption\n")
    flags = ["--data_root", str(scenes), "--bert", str(scenes / "bert")]
    assert main(["inspect", *words, *flags]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line]
    assert lines[-1].startswith(f"{program_name()} inspect: error: ")
    assert part in lines[-1]


def test_help_names_the_files():
    run = launch("launch/prepare.py", ["inspect", "--help"], launcher="python")
    assert run.code == 0
    assert "files" in run.stdout.split("options:")[0]
