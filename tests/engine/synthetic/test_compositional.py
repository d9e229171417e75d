"""GQA's files of the drawn scenes: answers that are so, and that the words alone don't tell."""

import json
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from engine.synthetic.compositional import Question, ask_all
from engine.synthetic.demo import ANSWERS
from engine.synthetic.scenes import COLORS, SHAPES, Scene, imagine_scenes
from engine.tasks.answering.gqa_measures import OfficialGqa
from tests.engine.synthetic.guessing import bound, guessed
from tests.engine.synthetic.reading import all_scenes, answer, template

SPLITS = ("train", "val", "testdev")
FIELDS = {
    *("imageId", "question", "answer", "fullAnswer", "isBalanced", "groups", "entailed", "equivalent"),
    *("types", "annotations", "semantic", "semanticStr"),
}
CHANCE = {"what color": 1 / 5, "what shape": 1 / 4}  # by the first words; for all others it is 1/2

Records = dict[str, dict[str, Any]]


@pytest.fixture
def files(scenes: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (scenes / "gqa/questions1.2").iterdir()}


@pytest.fixture
def questions(files: dict[str, Any]) -> dict[str, Records]:
    return {split: files[f"{split}_balanced_questions"] for split in SPLITS}


@pytest.fixture(scope="module")
def shown() -> dict[str, Scene]:
    """The scenes of `scenes`, by their names in GQA."""
    training, held_out = imagine_scenes("train2014", 40, seed=1), imagine_scenes("val2014", 15, seed=1)
    named = {str(2_300_000 + row): scene for row, (scene, _) in enumerate(training)}
    return named | {f"n{row}": scene for row, (scene, _) in enumerate(held_out)}


@cache
def drawn(scenes: int, number: int) -> list[list[Question]]:
    """Questions about scenes that are not painted."""
    imagined = [scene for scene, _ in imagine_scenes("train2014", scenes, seed=2)]
    return [ask_all(scene, random.Random(scene.img_id), number) for scene in imagined]


def test_every_answer_is_so(questions: dict[str, Records], shown: dict[str, Scene]) -> None:
    for record in (record for records in questions.values() for record in records.values()):
        scene = shown[record["imageId"]]
        assert record["answer"] == answer(record["question"], scene)
        assert record["answer"] in ANSWERS
        spoken = record["fullAnswer"].lower().removesuffix(".")
        assert record["answer"] in re.split(r"\W+", spoken)
        statement = spoken.removeprefix(f"{record['answer']}, ")
        assert answer(f"is {statement.replace(' is ', ' ')} ?", scene) == "yes"


def test_splits_share_neither_ids_nor_images(questions: dict[str, Records], shown: dict[str, Scene]) -> None:
    ids = [name for records in questions.values() for name in records]
    assert len(set(ids)) == len(ids) == 2 * len(shown)
    assert all(len(name) == 8 and name.isdecimal() for name in ids)
    assert all(name.startswith("0") for name in [*questions["train"], *questions["val"]])
    images = {split: {record["imageId"] for record in records.values()} for split, records in questions.items()}
    assert [len(images[split]) for split in SPLITS] == [36, 4, 15]
    assert set().union(*images.values()) == shown.keys()


def test_records_are_those_of_gqa(questions: dict[str, Records]) -> None:
    structures = Counter[str]()
    for name, record in (pair for records in questions.values() for pair in records.items()):
        assert record.keys() == FIELDS
        assert record["isBalanced"] is True
        assert record["equivalent"] == [name]
        assert record["groups"].keys() == {"global", "local"}
        assert record["types"].keys() == {"structural", "semantic", "detailed"}
        assert record["types"]["semantic"] in ("attr", "rel", "obj")
        structures[record["types"]["structural"]] += 1
    assert structures.keys() == {"query", "verify", "choose", "compare", "logical"}
    assert structures["query"] == structures.total() / 2


def test_programs_have_several_steps_each_after_what_it_needs(questions: dict[str, Records]) -> None:
    for record in (record for records in questions.values() for record in records.values()):
        steps = record["semantic"]
        assert len(steps) >= 3
        assert {need for step in steps for need in step["dependencies"]} == set(range(len(steps) - 1))
        assert all(need < row for row, step in enumerate(steps) for need in step["dependencies"])
        written = [f"{step['operation']}: {step['argument']} {step['dependencies'] or ''}".rstrip() for step in steps]
        assert record["semanticStr"] == "->".join(written)


def test_choices_and_what_is_to_be_submitted(files: dict[str, Any], questions: dict[str, Records]) -> None:
    for split in ("val", "testdev"):
        assert files[f"{split}_choices"].keys() == questions[split].keys()
        for name, choices in files[f"{split}_choices"].items():
            record = questions[split][name]
            assert record["answer"] in choices["plausible"]
            assert set(choices["plausible"]) <= set(choices["valid"])
            options = {"what color": [*COLORS], "what shape": [*SHAPES]}.get(start(record["question"]))
            assert options is None or choices["valid"] == options
    hidden = {
        name: {field: record[field] for field in ("imageId", "question", "isBalanced")}
        for name, record in questions["testdev"].items()
    }
    assert files["submission_all_questions"] == hidden


def test_the_official_measures_can_be_taken(scenes: Path, questions: dict[str, Records]) -> None:
    paths = [scenes / f"gqa/questions1.2/testdev_{name}.json" for name in ("balanced_questions", "choices")]
    right = {name: record["answer"] for name, record in questions["testdev"].items()}
    measures = OfficialGqa.read(paths[:1], paths[1:]).measure(right)
    shares = ("accuracy", "binary", "open", "validity", "plausibility", "consistency")
    assert {name: measures[name] for name in shares} == dict.fromkeys(shares, 1.0)


def test_entailed_questions_are_of_the_same_image(questions: dict[str, Records]) -> None:
    pairs = [
        (record["imageId"], records[entailed]["imageId"])
        for records in questions.values()
        for record in records.values()
        for entailed in record["entailed"]
    ]
    assert len(pairs) >= 10
    assert all(one == other for one, other in pairs)


def test_entailed_answers_follow_in_every_scene_that_can_be_drawn() -> None:
    worlds = all_scenes()

    @cache
    def answers(text: str) -> list[str | None]:
        return [attempt(text, world) for world in worlds]

    pairs = [(one, other) for asked in drawn(100, 4) for one in asked for other in asked if one.entails(other)]
    assert len(pairs) > 50
    for one, other in pairs:
        possible = [told for told, so in zip(answers(other.text), answers(one.text), strict=True) if so == one.answer]
        assert set(possible) == {other.answer}, (one.text, one.answer, other.text, other.answer)


def attempt(text: str, scene: Scene) -> str | None:
    try:
        return answer(text, scene)
    except ValueError:
        return None


@pytest.mark.parametrize("read", [str, template], ids=["exact text", "template"])
def test_words_alone_tell_nothing(read: Callable[[str], str]) -> None:
    pairs = [[(question.text, question.answer) for question in asked] for asked in drawn(2000, 2)]
    known, asked = pairs[:1000], pairs[1000:]
    chances = [CHANCE.get(start(text), 1 / 2) for drawn in asked for text, _ in drawn]
    assert guessed(known, asked, read) < bound(sum(chances) / len(chances), scenes=1000)


def test_two_things_are_not_told_apart_by_what_is_asked() -> None:
    """They differ in color and shape, so a text with that of both would tell a little, which guesses hardly show."""
    for question in (question for asked in drawn(2000, 4) for question in asked):
        words = [*question.text.split(), question.answer]
        assert sum(word in COLORS for word in words) <= 1
        if "and the" not in question.text:  # the two things by their shapes, with something else asked
            assert sum(word in SHAPES for word in words) == 1


def test_answers_to_each_template_are_even() -> None:
    """A scene has a template at most once, so each answer is a coin of its own, and may be off by four deviations."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for question in (question for asked in drawn(2000, 2) for question in asked):
        counts[template(question.text)][question.answer] += 1
    assert len(counts) > 10
    for answers in counts.values():
        share, total = 1 / len(answers), answers.total()
        assert len(answers) in (2, 4, 5)
        deviation = (share * (1 - share) * total) ** 0.5
        assert all(abs(count - share * total) < 4 * deviation for count in answers.values()), answers


@pytest.mark.parametrize("number", [2, 3, 4])
def test_more_questions_begin_with_the_same_ones(number: int) -> None:
    for fewer, more in zip(drawn(25, number), drawn(25, 4), strict=True):
        assert len(fewer) == number
        assert fewer == more[:number]
        assert len({question.text for question in more}) == 4


def start(text: str) -> str:
    return " ".join(text.split()[:2])
