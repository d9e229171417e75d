import json

import numpy as np
import pytest

from engine.data.annotations.questions.file import check_unique
from engine.data.annotations.questions.file import read_questions as read_files
from engine.data.annotations.questions.vqa import VqaFile, with_human_answers
from engine.errors import UserError

ITEM = {
    "question_id": 458752000,
    "img_id": "COCO_val2014_000000458752",
    "sent": "What is this photo taken looking through?",
    "label": {"net": 1, "netting": 0.6},
    "answer_type": "other",
    "question_type": "what is this",
}


def read_questions(paths, human_answers=()):
    files = [VqaFile(path) for path in paths]
    return with_human_answers(read_files(files), files, human_answers)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def without(*names, **changes):
    return {name: value for name, value in {**ITEM, **changes}.items() if name not in names}


def test_an_item_becomes_a_question(tmp_path):
    [question] = read_questions([write(tmp_path / "val.json", [ITEM])])
    assert (question.question_id, question.img_id) == (458752000, "COCO_val2014_000000458752")
    assert question.label == {"net": 1, "netting": 0.6}
    assert (question.answer_type, question.question_type) == ("other", "what is this")
    assert question.human_answers == ()


def test_a_test_split_has_no_labels_and_needs_no_types(tmp_path):
    items = [without("label", "answer_type", "question_type"), without("label", question_id=1)]
    questions = read_questions([write(tmp_path / "test.json", items)])
    assert [question.label for question in questions] == [None, None]
    assert questions[0].question_type == ""


def test_an_id_that_is_a_text_stays_one(tmp_path):
    """VizWiz and people's own data have such ids. The store has a number for each, and "12" isn't 12."""
    ids = [12, "12", "VizWiz_val_00000001.jpg"]
    path = write(tmp_path / "val.json", [without(question_id=each) for each in ids])
    official = {"annotations": [{"question_id": each, "answers": [str(n)]} for n, each in enumerate(ids)]}
    questions = read_questions([path], [write(tmp_path / "official.json", official)])
    assert [question.question_id for question in questions] == ids
    assert [question.human_answers for question in questions] == [("0",), ("1",), ("2",)]
    numbers = [text.question_id for text in VqaFile(path).texts()]
    assert numbers == [question.number for question in questions]
    assert len(set(numbers)) == 3


def test_texts_for_the_store_carry_the_question_id(tmp_path):
    items = [ITEM, without("label", question_id=7)]
    texts = list(VqaFile(write(tmp_path / "val.json", items)).texts())
    assert [text.question_id for text in texts] == [458752000, 7]
    assert [text.labels for text in texts] == [[{"net": 1, "netting": 0.6}], None]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (without("question_id"), "the field 'question_id' is missing"),
        (without("sent"), "the field 'sent' is missing"),
        (without("img_id"), "the field 'img_id' is missing"),
        (without(question_id=-1), "question_id -1 is no text, and no whole number"),
        (without(question_id=True), "question_id True is no text, and no whole number"),
        (without(question_id=1.5), "question_id 1.5 is no text"),
        (without(question_id=1 << 63), "no whole number from 0 to 9223372036854775807"),
        (without(label=["net"]), "'label': answers with scores were expected"),
        (without(label={"net": "1"}), "'label': answers with scores were expected"),
        (without(label={"net": True}), "'label': answers with scores were expected"),
        (without(answer_type=3), "the field 'answer_type' is int, not str"),
        (without(answers="net"), "'answers': a list of the human answers was expected"),
        (without(answers=[{"answer_id": 1}]), "'answers': a list of the human answers was expected"),
        ("no item", "the field 'question_id' is missing"),
    ],
)
def test_a_broken_item_is_named(tmp_path, item, message):
    path = write(tmp_path / "val.json", [ITEM, item])
    with pytest.raises(UserError, match=f"val.json, item 1: .*{message}"):
        read_questions([path])
    with pytest.raises(UserError, match=f"val.json, item 1: .*{message}"):
        list(VqaFile(path).texts())


def test_human_answers_of_items_and_of_the_official_file(tmp_path):
    items = [without(answers=["net"] * 10), without(question_id=7, answers=[{"answer": "fence"}])]
    own = read_questions([write(tmp_path / "val.json", items)])
    assert [question.human_answers for question in own] == [("net",) * 10, ("fence",)]
    official = {"annotations": [{"question_id": 7, "answers": [{"answer": "wire", "answer_id": 1}]}, *[]]}
    both = read_questions([tmp_path / "val.json"], [write(tmp_path / "official.json", official)])
    assert [question.human_answers for question in both] == [("net",) * 10, ("wire",)]


def test_a_score_of_a_part_of_the_questions_is_refused(tmp_path):
    path = write(tmp_path / "val.json", [ITEM, without("label", question_id=7)])
    with pytest.raises(UserError, match=r"1 of 2 questions of .*val.json have no label, the first is 7"):
        read_questions([path])
    path = write(tmp_path / "val.json", [ITEM, without(question_id=7)])
    official = write(tmp_path / "official.json", {"annotations": [{"question_id": 7, "answers": [{"answer": "wire"}]}]})
    with pytest.raises(UserError, match=r"1 of 2 questions of .* have no ten human answers, the first is 458752000"):
        read_questions([path], [official])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "an official annotation file with a list 'annotations' was expected"),
        ({"annotations": [{"question_id": 7, "answers": [3]}]}, "annotation 0: 'answers'"),
        ({"annotations": [{"answers": []}]}, "annotation 0: the field 'question_id' is missing"),
    ],
)
def test_a_broken_official_file_is_named(tmp_path, content, message):
    with pytest.raises(UserError, match=f"official.json.*{message}"):
        read_questions([write(tmp_path / "val.json", [ITEM])], [write(tmp_path / "official.json", content)])


def test_repeated_ids_are_refused(tmp_path):
    file = VqaFile(write(tmp_path / "minival.json", [without(question_id=number) for number in (5, 3, 5, 3, 3, 4)]))
    numbers = np.array([question.number for question in file.questions()])
    with pytest.raises(UserError, match="2 question ids of minival occur more than once, the first is 5"):
        check_unique(numbers, [file], "minival")
    check_unique(numbers[[0, 1, 5]], [file], "minival")
