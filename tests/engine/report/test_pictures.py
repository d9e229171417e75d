"""Sections of pictures from held-out data, of models with random weights."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from engine.checkpoint.description import ModelDescription, Preprocessing
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.configuration.bert import read_bert
from engine.configuration.flags import TrainingConfig
from engine.configuration.recipes import to_yaml
from engine.data.annotations.answers import ExactAnswers
from engine.data.images.places import image_path
from engine.inference.reading import Answer, Reading
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.report.page import pictures_of
from engine.report.pictures import picture_sections
from engine.report.pictures.answering import Answered, scores_by_type, told_label, worst_mistakes
from engine.report.pictures.captions import MASK, mask_word, with_other_images
from engine.report.pictures.drawing import UNREAD, picture_of, seen, with_cells, with_heat
from engine.report.pictures.held_out import Example, read_config
from engine.report.pictures.reader import Reader, open_reader
from engine.report.pictures.words import Words
from engine.report.sections import Card, Picture, Section, Table
from engine.tasks.gqa import GqaConfig
from engine.tasks.named import TASKS
from engine.tasks.pretraining import PretrainConfig
from engine.tasks.snli_ve import EntailmentConfig
from engine.tasks.vqa import VqaConfig

WriteRun = Callable[..., Path]


@dataclass
class Options:
    questions: int = 12
    data_root: str | None = None
    batch_size: int = 5
    seed: int = 9595


@pytest.fixture
def write_run(scenes: Path, tmp_path: Path) -> WriteRun:
    """The folder of a run with a model of random weights, which draws 5 of an image's 6 cells."""

    def write(config: TrainingConfig | None = None, *, data_root: Path = scenes, model: str = "BEST") -> Path:
        config = config or VqaConfig(valid="minival")
        config.data_root = str(data_root)
        architecture = "pretraining" if isinstance(config, PretrainConfig) else "question_answering"
        bert, tokenizer = read_bert(str(scenes / "bert"))
        answers = ExactAnswers.of_task(scenes / "vqa").answers
        visual = VisualShape(SHAPES["tiny"], sub_feat_num=5, pos_num=3)
        reads = Preprocessing(14, 64, 96, aspect_ratio_group_factor=0)
        description = ModelDescription.of(bert, visual, answers, tokenizer, architecture, reads)
        torch.manual_seed(0)
        folder = tmp_path / "run"
        save_pretrained(folder / model, description.build().state_dict(), {}, description, "a test")
        (folder / "config.yaml").write_text(to_yaml(config))
        return folder

    return write


@pytest.fixture
def reader(write_run: WriteRun) -> Reader:
    return open_reader(write_run(PretrainConfig(valid="mscoco_minival")), Options())[0]


def texts_of(sections: list[Section]) -> str:
    return " ".join(part for section in sections for part in section.parts if isinstance(part, str))


def cards_of(sections: list[Section], title: str) -> list[Card]:
    section = next(section for section in sections if section.title == title)
    return [card for part in section.parts if not isinstance(part, str | Picture | Table) for card in part]


def is_left_out(folder: Path, told: str, **options: Any) -> bool:
    """Whether one sentence alone says why there are no pictures."""
    (section,) = picture_sections(folder, Options(**options))
    (text,) = section.parts
    assert isinstance(text, str)
    assert text.startswith("There are no pictures from held-out data: ")
    assert told in text
    return True


def test_a_fine_tuned_run(write_run: WriteRun) -> None:
    sections = picture_sections(write_run(), Options())
    titles = ["Held-out questions", "Questions and answers", "How sure it is", "The worst mistakes", "Where it looks"]
    assert [section.title for section in sections] == titles
    assert "BEST, the model that scored highest in a validation, has answered 12 of the 30 questions of minival" in (
        texts_of(sections)
    )
    assert "being right by itself (sigmoid)" in texts_of(sections)
    scores = next(part for part in sections[0].parts if isinstance(part, Table))
    assert scores.rows[0][:3] == ("all", "", "12")
    by_answer_type = [row for row in scores.rows if row[1] == "answer type"]
    assert sum(int(row[2]) for row in by_answer_type) == 12
    pictures = list(pictures_of(sections))
    assert len({picture.name for picture in pictures}) == len(pictures)
    for picture in pictures:
        with Image.open(io.BytesIO(picture.png)) as image:
            assert image.format == "PNG"
        assert (picture.dark is None) == (not picture.name.endswith(("scores", "calibration")))
    for card in cards_of(sections, "Questions and answers"):
        assert len(card.lines) == 6
        assert card.is_good == (card.lines[0].split(" ", 1)[1] == card.lines[5].removeprefix("right answer: "))
    worst = [float(card.lines[0].split("%")[0]) for card in cards_of(sections, "The worst mistakes")]
    assert worst == sorted(worst, reverse=True)


def test_a_pretraining(write_run: WriteRun) -> None:
    sections = picture_sections(write_run(PretrainConfig(valid="mscoco_minival", task_qa=True)), Options())
    titles = [section.title for section in sections]
    assert titles[:3] == ["Masked words", "Captions and images", "Held-out questions"]
    assert titles[-1] == "Where it looks"
    assert "has read 12 of the 30 captions of mscoco_minival" in texts_of(sections)
    assert "share among all (softmax)" in texts_of(sections)
    assert all(MASK in card.title for card in cards_of(sections, "Masked words"))
    assert all(len(card.lines) == 2 for card in cards_of(sections, "Captions and images"))


def test_numbers_decide_the_cells_and_batches_decide_nothing(write_run: WriteRun) -> None:
    folder = write_run()
    found = []
    for batch_size in (1, 7):
        reader, held_out = open_reader(folder, Options(batch_size=batch_size))
        found.append([(example.number, reading.cells.tolist()) for example, reading in reader.read(held_out.questions)])
    assert found[0] == found[1]
    assert len({tuple(cells) for _, cells in found[0]}) > 1
    direct = reader.model.read(
        [reader.images.load(held_out.questions[3].img_id)], "is it red ?", numbers=[held_out.questions[3].number]
    )
    assert direct[0].cells.tolist() == found[0][3][1]


def reading(cells: list[int], height: int = 64, width: int = 96) -> Reading:
    pixels = np.full((height, width, 3), 200, np.uint8)
    grid = (height // 32, width // 32)
    return Reading([], 0, 0, grid, np.array(cells), pixels, None, None, None, None, [], [])


@pytest.mark.parametrize(("height", "width"), [(64, 96), (96, 64), (384, 640), (70, 100)])
def test_the_cells_drawn_are_those_that_were_read(height: int, width: int) -> None:
    rows, columns = height // 32, width // 32
    cells = [0, columns, rows * columns - 2]
    read = reading(cells, height, width)
    drawn, heat = np.asarray(with_cells(read)), np.asarray(with_heat(read, np.array([0.1, 0.4, 0.0])))
    side = 32 * drawn.shape[1] / width
    for cell in range(rows * columns):
        row, column = divmod(cell, columns)
        middle = round((row + 0.5) * side), round((column + 0.5) * side)
        bright = 200 if cell in cells else round(UNREAD * 200)
        assert drawn[middle].tolist() == [bright] * 3
        red, _, blue = heat[middle].astype(int).tolist()
        assert (red > blue) == (cell in cells[:2])  # those that have a weight are orange
    first, second = (heat[round((cell // columns + 0.5) * side), round(0.5 * side)].astype(int) for cell in cells[:2])
    assert second[0] - second[2] > first[0] - first[2]


def test_between_two_images_it_is_transparent() -> None:
    one = seen(reading([0], 96, 64))
    with Image.open(io.BytesIO(picture_of([one, one]))) as image:
        pixels = np.asarray(image.convert("RGBA"))
    assert pixels.shape[1] == 2 * one.width + 6 == 320
    assert (pixels[:, one.width : -one.width, 3] == 0).all()
    assert (pixels[:, : one.width] == [200, 200, 200, 255]).all()


def answered(number: int, probability: float, score: float | None, **more: str) -> Answered:
    example = Example(number, "image", "a question ?", None if score is None else {"red": score}, **more)
    return Answered(example, [Answer("red", probability)], score)


def test_worst_mistakes_are_sorted() -> None:
    found = [answered(n, p, s) for n, (p, s) in enumerate([(0.2, 0), (0.9, 1), (0.8, 0), (0.95, 0.3), (0.5, 0)])]
    assert [mistake.example.number for mistake in worst_mistakes(found)] == [2, 4, 0]


def test_scores_by_type() -> None:
    scored = [
        answered(0, 0.5, 1.0, answer_type="yes/no", question_type="is the"),
        answered(1, 0.5, 0.25, answer_type="other"),
        answered(2, 0.5, 0.75, answer_type="other"),
    ]
    rows = [(kind, name, mean.mean, mean.count) for kind, name, mean in scores_by_type(scored)]
    assert rows == [
        ("", "all", pytest.approx(2 / 3), 3),
        ("answer type", "other", 0.5, 2),
        ("answer type", "yes/no", 1.0, 1),
        ("question type", "is the", 1.0, 1),
    ]


def test_labels_are_told() -> None:
    example = Example(0, "image", "a question ?", {"netting": 0.6, "net": 1})
    assert told_label(example) == "right answer: net, netting (0.6)"
    assert told_label(replace(example, label={})) == "right answer: none"
    assert told_label(replace(example, label=None)) == "the right answer isn't known"


@pytest.mark.parametrize(
    ("label", "score", "is_good"),
    [({"no": 0.3}, 0.3, False), ({"no": 2.5}, 1, True), ({"yes": 1.0}, 0, False), (None, None, None)],
)
def test_an_answer_scores_what_its_label_says(
    label: dict[str, float] | None, score: float | None, is_good: bool | None
) -> None:
    probabilities = np.array([0.2, 0.7], np.float32)
    read = replace(reading([0]), answer_probabilities=probabilities, known_answers=["yes", "no"])
    found = Answered.of(Example(0, "image", "is it red ?", label), read)
    assert [answer.answer for answer in found.answers] == ["no", "yes"]
    assert (found.score, found.is_good) == (score, is_good)


def test_words_are_where_the_model_has_them(reader: Reader) -> None:
    caption = "a small red ring, left of a zzz square"
    words = Words(reader.model, [caption, "a red cross", "a square"])
    (read,) = reader.model.read([np.zeros((3, 64, 96), np.uint8)], [caption])
    for word in words.of(caption):
        assert read.tokens[word.place] == word.piece == caption[word.start : word.end]
    assert [word.piece for word in words.rarest_first(caption)] == ["small", "ring", "left", "red", "square"]
    assert all(word.place <= 12 for word in words.of("red " * 40))


def test_a_rare_word_is_masked(reader: Reader) -> None:
    words = Words(reader.model, ["red ring"] + ["ring"] * 5 + ["square"] * 9)
    found = {mask_word(Example(number, "image", "a red ring, a square"), words) for number in range(20)}
    assert {(masked.sentence, masked.word) for masked in found if masked is not None} == {
        (f"a {MASK} ring, a square", "red"),
        (f"a red {MASK}, a square", "ring"),
    }
    assert mask_word(Example(0, "image", "zzz !"), words) is None
    assert mask_word(Example(0, "image", f"a {MASK}"), words) is None


def test_captions_get_another_image() -> None:
    captions = [Example(number, img_id, "") for number, img_id in enumerate("aabca")]
    assert [example.img_id for example in with_other_images(captions)] == ["b", "b", "c", "a", "b"]
    assert with_other_images(captions[:2]) == []


@pytest.mark.parametrize("config_class", [PretrainConfig, VqaConfig, GqaConfig, EntailmentConfig])
def test_a_runs_kind_is_told_by_its_flags(config_class: type[TrainingConfig], tmp_path: Path) -> None:
    values = to_yaml(config_class(valid="some", seed=7)).replace("deterministic: false\n", "") + "of_tomorrow: 1\n"
    (tmp_path / "config.yaml").write_text(values)
    task, config = read_config(tmp_path)
    assert task == next((task for task in TASKS.values() if task.config_class is config_class), None)
    assert (type(config), config.valid, config.seed) == (config_class, "some", 7)


def test_what_is_missing_is_told(write_run: WriteRun, damaged: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    assert is_left_out(empty, "so it is no folder of a run")
    folder = write_run(data_root=damaged)
    assert is_left_out(folder, "minival.json is missing", data_root=str(empty))
    (damaged / "vqa" / "minival.json").write_text('[{"question_id": 1,')
    assert is_left_out(folder, "minival.json")
    weights = folder / "BEST" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert is_left_out(folder, "model.safetensors is damaged")
    shutil.rmtree(folder / "BEST")
    assert is_left_out(folder, "nor has a run left BEST, LAST or a checkpoint in it")


def test_nothing_was_held_out(write_run: WriteRun) -> None:
    assert is_left_out(write_run(VqaConfig(valid="")), "validated on nothing")


def test_a_model_that_has_diverged(write_run: WriteRun) -> None:
    folder = write_run()
    reader, _ = open_reader(folder, Options())
    state = reader.model.network.state_dict()
    state["bert.pooler.dense.bias"][0] = float("nan")
    save_pretrained(folder / "BEST", state, {}, reader.model.description, "a test", replace=True)
    assert is_left_out(folder, "no finite numbers")


def test_missing_images_are_left_out_and_told(write_run: WriteRun, damaged: Path) -> None:
    folder = write_run(data_root=damaged)
    images = sorted({question["img_id"] for question in json.loads((damaged / "vqa" / "minival.json").read_text())})
    (damaged / image_path(images[0])).unlink()
    (damaged / image_path(images[1])).write_bytes(b"no image")
    sections = picture_sections(folder, Options(questions=100))
    assert "26 of the 30 questions of minival" in texts_of(sections)  # each has two
    assert "Left out are those of 2 images that can't be read" in texts_of(sections)
    for image in images:
        (damaged / image_path(image)).unlink(missing_ok=True)
    assert is_left_out(folder, "none of its images can be read")


def test_questions_without_labels_are_shown(write_run: WriteRun, question_files: Path) -> None:
    sections = picture_sections(write_run(VqaConfig(valid="test"), data_root=question_files), Options())
    assert "The questions of test have no labels" in texts_of(sections)
    cards = cards_of(sections, "Questions and answers")
    assert len(cards) == 6
    assert {card.is_good for card in cards} == {None}


def test_a_table_of_ones_own(write_run: WriteRun, damaged: Path) -> None:
    """A pre-training without questions, on captions in a file of one's own."""
    names = sorted((damaged / "mscoco" / "val2014").glob("*.jpg"))
    rows = [{"image": str(name), "caption": f"a red ring, number {n}"} for n, name in enumerate(names)]
    table = damaged / "photos.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = picture_sections(write_run(PretrainConfig(train=str(table), valid=str(table))), Options(questions=100))
    assert [section.title for section in sections] == ["Masked words", "Captions and images", "Where it looks"]
    assert f"all {len(names)} captions of photos" in texts_of(sections)


def test_names_that_differ_in_a_dash_have_pictures_of_their_own() -> None:
    unused: Any = None
    assert len({Reader(Path(name), unused, unused, 1).slug for name in ("snap/run-1", "snap/run_1")}) == 2
