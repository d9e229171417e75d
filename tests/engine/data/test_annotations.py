import json

import pytest

from engine.data.annotations import LabelCount, Sentence, read_all, read_annotations
from engine.data.answers import AnswerTable
from engine.errors import UserError

TABLE = AnswerTable(["yes", "man"])
ITEM = {
    "img_id": "COCO_train2014_000000000009",
    "sentf": {"mscoco": ["a man", "two men"], "vqa": ["is it a man ?", "who ?", "where ?"]},
    "labelf": {"vqa": [{"yes": 1.0}, {"the man": 0.3, "yes": 0.6, "tree": 0.3}, {"here": 1.0}]},
}


def write(folder, name, content):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def test_sentences_of_an_item_with_uids_and_labels(tmp_path):
    sentences = read_annotations(write(tmp_path, "train", [ITEM]), TABLE, LabelCount())
    img_id = ITEM["img_id"]
    assert sentences == [
        Sentence(f"{img_id}_mscoco_000", img_id, "a man", None),
        Sentence(f"{img_id}_mscoco_001", img_id, "two men", None),
        Sentence(f"{img_id}_vqa_000", img_id, "is it a man ?", {0: 1.0}),
        Sentence(f"{img_id}_vqa_001", img_id, "who ?", {1: 0.3, 0: 0.6}),
        Sentence(f"{img_id}_vqa_002", img_id, "where ?", {}),
    ]


def test_uid_numbers_past_999_keep_all_digits(tmp_path):
    path = write(tmp_path, "train", [{"img_id": "1", "sentf": {"vg": ["x"] * 1001}}])
    uids = [sentence.uid for sentence in read_annotations(path, TABLE, LabelCount())]
    assert uids[7] == "1_vg_007"
    assert uids[-1] == "1_vg_1000"
    assert len(set(uids)) == 1001


def test_known_answers_and_questions_without_any_are_counted_over_files(tmp_path):
    count = LabelCount()
    path = write(tmp_path, "train", [ITEM])
    read_annotations(path, TABLE, count)
    assert count == LabelCount(known=3, unknown=1, example="here")
    read_annotations(path, TABLE, count)
    assert count == LabelCount(known=6, unknown=2, example="here")


def test_question_without_any_answer_is_not_counted_as_unknown(tmp_path):
    count = LabelCount()
    item = {"img_id": "1", "sentf": {"vqa": ["who ?"]}, "labelf": {"vqa": [{}]}}
    assert read_annotations(write(tmp_path, "train", [item]), TABLE, count)[0].label == {}
    assert count == LabelCount()


def test_files_are_read_in_the_order_of_their_names(tmp_path):
    for name in ("a", "b"):
        write(tmp_path, name, [{"img_id": name, "sentf": {"mscoco": [name]}}])
    assert [s.text for s in read_all(["b", "a", "b"], tmp_path, TABLE, LabelCount())] == ["b", "a", "b"]


BROKEN = {
    "no_img_id": ({"sentf": {}}, "the field 'img_id' is missing"),
    "number_as_img_id": ({"img_id": 9, "sentf": {}}, "the field 'img_id' is int, not str"),
    "no_sentf": ({"img_id": "1"}, "the field 'sentf' is missing"),
    "list_as_sentf": ({"img_id": "1", "sentf": ["x"]}, "the field 'sentf' is list, not dict"),
    "text_as_item": ("x", "the field 'img_id' is missing"),
    "list_as_labelf": ({"img_id": "1", "sentf": {}, "labelf": []}, "the field 'labelf' is list, not dict"),
    "text_for_sentences": (
        {"img_id": "1", "sentf": {"vg": "x"}},
        "'sentf', category 'vg': a list of sentences was expected",
    ),
    "number_among_sentences": (
        {"img_id": "1", "sentf": {"vg": ["x", 1]}},
        "'sentf', category 'vg': a list of sentences was expected",
    ),
    "too_few_labels": (
        {"img_id": "1", "sentf": {"vqa": ["x", "y"]}, "labelf": {"vqa": [{}]}},
        "category 'vqa' has 2 sentences and 1 labels",
    ),
    "object_for_labels": (
        {"img_id": "1", "sentf": {"vqa": ["x"]}, "labelf": {"vqa": {"yes": 1}}},
        "category 'vqa' has 1 sentences and dict labels",
    ),
    "text_as_label": (
        {"img_id": "1", "sentf": {"vqa": ["x"]}, "labelf": {"vqa": ["yes"]}},
        "'labelf', category 'vqa': answers with scores were expected",
    ),
    "text_as_score": (
        {"img_id": "1", "sentf": {"vqa": ["x"]}, "labelf": {"vqa": [{"yes": "1"}]}},
        "'labelf', category 'vqa': answers with scores were expected",
    ),
}


@pytest.mark.parametrize(("item", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_item_is_refused_with_its_number(tmp_path, item, message):
    path = write(tmp_path, "train", [ITEM, item])
    with pytest.raises(UserError) as error:
        read_annotations(path, TABLE, LabelCount())
    assert str(error.value) == f"{path}, item 1: {message}; mend or remove the item"


def test_file_that_is_no_list_is_refused(tmp_path):
    path = write(tmp_path, "train", ITEM)
    with pytest.raises(UserError, match=r"train\.json: a list of items was expected, found dict"):
        read_annotations(path, TABLE, LabelCount())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json is missing"):
        read_all(["nowhere"], tmp_path, TABLE, LabelCount())
