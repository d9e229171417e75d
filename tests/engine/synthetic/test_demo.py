"""The drawn world as a whole: the same as ever, with the words that pre-training knows, and shared pictures."""

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from engine.data.images.places import image_path
from engine.synthetic.demo import write_demo

# Of the files for pre-training and VQA that 40 + 15 scenes of seed 1 had before GQA's and SNLI-VE's came beside them.
# The texts are drawn after the pictures, by the same generators, so no draw for a picture has changed either.
BEFORE = "634445fe095f0e95523cab152826166801e91e8cb0364b94a0351c391b1bc012"
TASKS = ("gqa/questions1.2", "gqa_raw_images", "snli_ve", "flickr30k")


def digest(root: Path) -> str:
    names = ["mscoco/width_heigths.json", "bert/vocab.txt"]
    paths = sorted([*(root / "lxmert").iterdir(), *(root / "vqa").iterdir(), *(root / name for name in names)])
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()


def contents(root: Path) -> dict[Path, bytes]:
    paths = [path for task in TASKS for path in (root / task).rglob("*") if path.is_file()]
    return {path.relative_to(root): path.read_bytes() for path in paths}


def texts(root: Path) -> list[str]:
    questions = (root / "gqa/questions1.2").glob("*_balanced_questions.json")
    asked = [record["question"] for path in questions for record in json.loads(path.read_text()).values()]
    lines = [line for path in (root / "snli_ve").iterdir() for line in path.read_text().splitlines()]
    return [*asked, *(json.loads(line)["sentence2"] for line in lines)]


def test_pretraining_and_vqa_are_drawn_as_before(scenes: Path) -> None:
    assert digest(scenes) == BEFORE


def test_all_words_are_those_of_pretraining_and_texts_fit_the_models(scenes: Path) -> None:
    known = set((scenes / "bert/vocab.txt").read_text().split())
    found = texts(scenes)
    assert len(found) == 55 * (2 + 3)
    assert {word for text in found for word in text.split()} <= known
    assert max(len(text.split()) for text in found) == 12  # of 14 tokens with [CLS] and [SEP]


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "copies"])
def test_the_same_seed_gives_the_same_files(
    scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    """Drawn over other scenes, too."""
    if not links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    write_demo(tmp_path, train_scenes=40, valid_scenes=15, seed=2)
    assert contents(tmp_path) != contents(scenes)
    write_demo(tmp_path, train_scenes=40, valid_scenes=15, seed=1)
    assert contents(tmp_path) == contents(scenes)
    assert (tmp_path / image_path("gqa:n14")).stat().st_nlink == (3 if links else 1)


def refuse(self: Path, target: Path) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_more_scenes_do_not_change_the_first_ones(scenes: Path, tmp_path: Path) -> None:
    """They may come from `val` to `train`, or from `test` to `dev`."""
    write_demo(tmp_path, train_scenes=60, valid_scenes=20, seed=1)

    def records(root: Path) -> dict[str, object]:
        found: dict[str, object] = {}
        for path in (root / "gqa/questions1.2").glob("*_balanced_questions.json"):
            found |= json.loads(path.read_text())
        for path in (root / "snli_ve").iterdir():
            found |= {json.loads(line)["pairID"]: line for line in path.read_text().splitlines()}
        return found

    before, after = records(scenes), records(tmp_path)
    assert len(before) == 55 * 5
    assert before.items() <= after.items()


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("gqa_raw_images/images", {"2300000": "train2014_000000000000", "n14": "val2014_000000000014"}),
        ("flickr30k/flickr30k_images", {"1000039": "train2014_000000000039", "2000000": "val2014_000000000000"}),
    ],
    ids=["GQA", "Flickr30k"],
)
def test_pictures_have_names_and_sizes_in_each_data_set(scenes: Path, folder: str, names: dict[str, str]) -> None:
    pictures = {path.stem: path for path in (scenes / folder).iterdir()}
    assert len(pictures) == 55
    for name, coco in names.items():
        assert pictures[name].read_bytes() == (scenes / image_path(f"COCO_{coco}")).read_bytes()
    sizes = json.loads((scenes / folder).with_name("width_heigths.json").read_text())
    assert sizes == {f"data/{folder}/{name}.jpg": list(Image.open(path).size[::-1]) for name, path in pictures.items()}
