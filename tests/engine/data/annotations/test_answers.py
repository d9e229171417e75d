import json

import pytest

from engine.data.annotations.answers import AnswerTable, normalise_answer, read_json
from engine.errors import UserError


@pytest.mark.parametrize(
    ("raw", "normal"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("yes .", "yes"),
        ("a dog", "dog"),
        ("an apple", "apple"),
        ("the dog.", "dog"),
        ("one", "1"),
        ("The Ten", "10"),
        ("eleven", "eleven"),
        ("grey", "gray"),
        ("a an apple", "apple"),
        ("the an apple", "an apple"),
        ("the a man", "man"),
        ("a the woman", "woman"),
        ("answer", "answer"),
        ("another", "another"),
        ("", ""),
        ("..", "."),
    ],
)
def test_normalised_answer(raw, normal):
    assert normalise_answer(raw) == normal


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


ENTRIES = [
    {"ans": "yes", "dsets": ["vqa", "gqa"]},
    {"ans": "man", "dsets": ["vqa"]},
    {"ans": "left", "dsets": ["gqa"]},
]


def test_table_keeps_the_order_of_the_file(tmp_path):
    table = AnswerTable.read(write(tmp_path / "all_ans.json", ENTRIES))
    assert len(table) == 3
    assert table.answers == ["yes", "man", "left"]
    assert table.ids == {"yes": 0, "man": 1, "left": 2}


@pytest.mark.parametrize(
    ("qa_sets", "answers"),
    [(["vqa"], ["yes", "man"]), (["gqa"], ["yes", "left"]), (["gqa", "vqa"], ["yes", "man", "left"])],
    ids=["vqa", "gqa", "both_without_repeats"],
)
def test_table_of_some_data_sets(tmp_path, qa_sets, answers):
    assert AnswerTable.read(write(tmp_path / "all_ans.json", ENTRIES), qa_sets).answers == answers


def test_entry_without_data_sets_is_in_none(tmp_path):
    path = write(tmp_path / "all_ans.json", [{"ans": "yes"}, {"ans": "no", "dsets": ["vqa"]}])
    assert AnswerTable.read(path).answers == ["yes", "no"]
    assert AnswerTable.read(path, ["vqa"]).answers == ["no"]


def test_label_normalises_and_drops_unknown_answers():
    assert AnswerTable(["yes", "man"]).label({"The man.": 0.3, "tree": 1.0, "YES": 1}) == {1: 0.3, 0: 1}


def test_normalised_answer_overwrites_the_plain_one_in_either_order():
    table = AnswerTable(["man"])
    assert table.label({"man": 0.6, "the man": 0.3}) == {0: 0.3}
    assert table.label({"the man": 0.3, "man": 0.6}) == {0: 0.3}


def test_later_of_two_normalised_answers_counts():
    assert AnswerTable(["man"]).label({"a man": 0.6, "the man": 0.3}) == {0: 0.3}


def test_normalised_answers_go_to_the_end_of_the_order():
    """The order decides which answer a draw picks."""
    assert list(AnswerTable(["yes", "man"]).label({"The man": 0.3, "yes": 1.0})) == [0, 1]
    assert list(AnswerTable(["yes", "man"]).label({"man": 0.3, "yes": 1.0})) == [1, 0]


def test_raw_answers_are_left_as_they_were():
    scores = {"The man": 0.3, "tree": 1.0}
    AnswerTable(["man"]).label(scores)
    assert scores == {"The man": 0.3, "tree": 1.0}


@pytest.mark.parametrize(
    ("content", "qa_sets", "message"),
    [
        ({"ans": "yes"}, None, "a list of answers was expected, found dict"),
        ([{"ans": "yes"}, {"answer": "no"}], None, "item 1: the field 'ans' is missing or no text"),
        ([{"ans": 3}], None, "item 0: the field 'ans' is missing or no text"),
        (["yes", 3], None, "item 0: the field 'ans' is missing or no text"),
        (ENTRIES, ["visual7w", "cc"], "has no answer of the data sets cc, visual7w; check --qaSets"),
        ([], None, "has no answer; download it again"),
        ([{"ans": "yes"}, {"ans": "yes"}], None, "an answer occurs twice in the table"),
    ],
    ids=["object", "no_ans", "number", "text", "other_sets", "empty", "twice"],
)
def test_broken_table_is_refused_by_name_and_item(tmp_path, content, qa_sets, message):
    path = write(tmp_path / "all_ans.json", content)
    with pytest.raises(UserError, match=message) as error:
        AnswerTable.read(path, qa_sets)
    assert str(error.value).startswith(str(path))


def test_read_json_reads_utf8_whatever_the_locale(tmp_path):
    path = tmp_path / "file.json"
    path.write_bytes('{"café": [1, null]}'.encode())
    assert read_json(path) == {"café": [1, None]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'[1,\n2,\n 3 "x"]', ", line 3, column 4: not valid JSON"),
        (b"", ", line 1, column 1: not valid JSON"),
        (b'["caf\xe9 "]', r", byte \d+: not UTF-8; download the file again"),
    ],
    ids=["line_and_column", "empty_file", "latin_1"],
)
def test_broken_json_is_refused_with_the_place(tmp_path, content, message):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_json(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_missing_json_is_refused_with_where_to_get_it(tmp_path):
    with pytest.raises(UserError, match=r"file\.json is missing; see 'Real data' in README\.md"):
        read_json(tmp_path / "file.json")


def test_unreadable_json_is_refused_with_the_reason(tmp_path):
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        read_json(tmp_path)
