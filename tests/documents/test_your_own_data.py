"""docs/your-own-data.md, word for word: its commands with the flags that are printed, and its Python.

On ten real photos where there is a folder of them (CLIPVIL_REAL_DATA, or real/ in the folder that is shared beside the
checkout), else on drawn scenes, with a checkpoint of the demo's kind.
"""

import csv
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from safetensors import safe_open

from engine.checkpoint.state import Checkpoint
from engine.data.images.places import image_path
from tests.conftest import ROOT
from tests.documents.commands import Command, Shell, commands_of
from tests.documents.pages import PAGES, blocks
from tests.documents.test_blocks import WORD_FOR_WORD

[PAGE] = WORD_FOR_WORD
REAL = Path(os.environ.get("CLIPVIL_REAL_DATA", ROOT.parent / "shared" / "real" / "data"))
SUFFIXES = (".jpg", ".JPG", ".jpeg", ".png")  # as cameras, phones and programs write them
CAPTIONS, QUESTIONS = 20, 24


class WordForWord(Shell):
    """Runs what is printed, without a flag more."""

    def run(self, command: Command) -> None:
        assert command.program.startswith("launch/"), command.words
        self.start([command.program, *command.flags], command.ranks)


def texts_of(data: Path, files: list[str], kind: str) -> Iterator[tuple[str, str, str]]:
    """The image, text and best answer of each sentence in files of LXMERT's form or of VQA's."""
    for name in files:
        for item in json.loads((data / kind / f"{name}.json").read_text()):
            if kind == "lxmert":
                yield from ((item["img_id"], text, "") for texts in item["sentf"].values() for text in texts)
            elif item["label"]:
                yield item["img_id"], item["sent"], max(item["label"], key=item["label"].get)


def write_table(path: Path, names: list[str], rows: list[tuple[str, ...]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])


@pytest.fixture
def folder(start_folder: Path, tmp_path: Path) -> Path:
    """What the page takes to be there: the demo's checkpoint and words, photos, captions and questions."""
    folder, mine = tmp_path / "folder", tmp_path / "folder" / "mine"
    (mine / "images" / "trip").mkdir(parents=True)
    (folder / "data" / "demo").mkdir(parents=True)
    shutil.copytree(start_folder / "data" / "bert", folder / "data" / "demo" / "bert")
    shutil.copytree(start_folder / "runs" / "pretrain" / "Epoch01", folder / "snap" / "demo" / "stage_two" / "Epoch03")
    data = REAL if REAL.is_dir() else start_folder / "data"
    captions = list(texts_of(data, ["mscoco_train", "mscoco_nominival"], "lxmert"))
    questions = list(texts_of(data, ["train", "nominival", "minival"], "vqa"))
    img_ids = list(dict.fromkeys(img_id for img_id, *_ in [*questions, *captions]))[:10]
    names = {img_id: f"IMG_{n + 1:04}{SUFFIXES[n % len(SUFFIXES)]}" for n, img_id in enumerate(img_ids)}
    names[img_ids[-1]] = "trip/IMG_0001.jpg"  # the name of another photo
    for n, (img_id, name) in enumerate(names.items()):
        with Image.open(data / image_path(img_id)) as image:
            photo = ImageOps.exif_transpose(image).convert("RGB")
            (photo.rotate(90, expand=True) if n % 3 == 0 else photo).save(mine / "images" / name)
    rows = [(f"images/{names[img_id]}", text) for img_id, text, _ in captions if img_id in names][:CAPTIONS]
    write_table(mine / "captions.csv", ["image", "caption"], rows)
    asked = [(f"images/{names[img_id]}", *rest) for img_id, *rest in questions if img_id in names][:QUESTIONS]
    write_table(mine / "questions.csv", ["image", "question", "answer"], asked)
    return folder


def test_the_page_runs_word_for_word(folder: Path) -> None:
    shell, printed = WordForWord(folder), ""
    for block in blocks(PAGES[PAGE]):
        if block.language == "bash":
            for line in commands_of(block.text):
                shell.run(Command.of(line))
        elif block.language == "python":
            printed += shell.run_python([block.text])

    mine, snap = folder / "mine", folder / "snap" / "mine"
    asked = {name: json.loads((mine / "vqa" / f"{name}.json").read_text()) for name in ("train", "valid")}
    answered = json.loads((snap / "vqa" / "valid_predict.json").read_text())
    assert {row["question_id"] for row in answered} == {question["question_id"] for question in asked["valid"]}
    answers = {answer for questions in asked.values() for question in questions for answer in question["label"]}
    assert {row["answer"] for row in answered} <= answers
    before, after = (Checkpoint(path) for path in (folder / "snap/demo/stage_two/Epoch03", snap / "pretrain/Epoch05"))
    assert after.answers == before.answers is not None
    assert (snap / "hub" / "config.json").is_file()
    with safe_open(snap / "features.safetensors", "pt") as file:
        assert file.get_slice("pooled").get_shape() == [len((mine / "questions.csv").read_text().splitlines()) - 1, 32]
    assert "\nlanguage (100, 14, 32) vision (100, 5, 32)\npooled (100, 32) grid of the first photo (" in printed
