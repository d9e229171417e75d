"""GQA's files: ids are texts, and images have a folder of their own."""

import json

import numpy as np
import pytest

from engine.data.annotations.questions.file import check_unique, read_questions
from engine.data.annotations.questions.gqa import GqaFile
from engine.data.images.places import image_path, is_originals, sizes_file
from engine.errors import UserError

ITEM = {"question_id": "05515938", "img_id": "2405722", "sent": "Is it red?", "label": {"no": 1.0}}


def write(path, items):
    path.write_text(json.dumps(items))
    return GqaFile(path)


def test_an_item_becomes_a_question_of_the_folder_of_gqas_images(tmp_path):
    [question] = read_questions([write(tmp_path / "valid.json", [ITEM])])
    assert question.question_id == "05515938"
    assert question.label == {"no": 1.0}
    assert str(image_path(question.img_id)) == "gqa_raw_images/images/2405722.jpg"
    assert str(sizes_file(question.img_id)) == "gqa_raw_images/width_heigths.json"
    assert is_originals(question.img_id)


def test_ids_become_numbers_that_a_store_holds(tmp_path):
    """Zeros at the front count, and nothing is like one of VQA's numbers by its digits."""
    items = [{**ITEM, "question_id": number} for number in ("05515938", "5515938", "n1")]
    texts = list(write(tmp_path / "valid.json", items).texts())
    numbers = [text.question_id for text in texts]
    assert len(set(numbers)) == 3
    assert all(0 <= number < 1 << 63 and number != 5515938 for number in numbers)
    assert texts[0].labels == [{"no": 1.0}]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question_id": 5515938}, "the field 'question_id' is int, not str"),
        ({"img_id": 2405722}, "the field 'img_id' is int, not str"),
        ({"label": "no"}, "'label': answers with scores were expected"),
    ],
)
def test_a_broken_item_is_named(tmp_path, change, message):
    file = write(tmp_path / "valid.json", [ITEM, {**ITEM, **change}])
    with pytest.raises(UserError, match=rf"valid\.json, item 1: {message}"):
        read_questions([file])


def test_a_repeated_id_is_named_as_it_is_written(tmp_path):
    file = write(tmp_path / "valid.json", [ITEM, {**ITEM, "question_id": "1"}, ITEM])
    numbers = np.array([question.number for question in file.questions()])
    with pytest.raises(UserError, match="1 question ids of valid occur more than once, the first is 05515938"):
        check_unique(numbers, [file], "valid")
