"""The stream of annotation files: what json.loads would give, in little memory, with the place of every error."""

import hashlib
import json
import tracemalloc

import pytest

from engine.data.annotations.formats import lxmert as module
from engine.data.annotations.formats.file import Texts
from engine.data.annotations.formats.lxmert import LxmertFile
from engine.errors import UserError

ITEM = {
    "img_id": "COCO_train2014_000000000009",
    "sentf": {"mscoco": ["a man", "two men"], "vqa": ["is it a man ?", "who ?"]},
    "labelf": {"vqa": [{"yes": 1.0}, {"the man": 0.3, "yes": 0.6}]},
}


def write(folder, name, content):
    path = folder / f"{name}.json"
    path.write_text(json.dumps(content))
    return path


def read(path):
    return list(LxmertFile(path).texts())


def test_texts_of_an_item_by_category(tmp_path):
    assert read(write(tmp_path, "train", [ITEM])) == [
        Texts(ITEM["img_id"], "mscoco", ["a man", "two men"], None),
        Texts(ITEM["img_id"], "vqa", ["is it a man ?", "who ?"], [{"yes": 1.0}, {"the man": 0.3, "yes": 0.6}]),
    ]


ITEMS = [
    {
        "img_id": f"image {number}",
        "text": 'ä😀 \\u00e9 "]},[{' * (number % 7),
        "scores": [0.3, -1e-7, 12345678901234567890, None, True],
    }
    for number in range(60)
]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize(
    "dump",
    [
        json.dumps,
        lambda items: json.dumps(items, ensure_ascii=False),
        lambda items: json.dumps(items, indent=2).replace("\n", "\r\n\t "),
        lambda items: "\ufeff \n" + json.dumps(items, separators=(",", ":")) + "\n\n",
    ],
    ids=["plain", "utf8", "spaces", "byte_order_mark"],
)
def test_items_are_those_of_json_whatever_the_buffer(tmp_path, monkeypatch, dump, chunk):
    """A buffer may end in the middle of a number, an escape, a multi-byte character, a literal."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    path = tmp_path / "items.json"
    path.write_bytes(dump(ITEMS).encode())
    file = LxmertFile(path)
    assert list(file.items()) == ITEMS
    assert file.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_empty_list_has_no_items(tmp_path):
    assert read(write(tmp_path, "empty", [])) == []


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 14)
    path = write(tmp_path, "large", [ITEM] * 20_000)  # 4 MB
    tracemalloc.start()
    for _ in LxmertFile(path).items():
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20 * (1 << 14)  # a few buffers of text, each up to 4 bytes a character


WHOLE = json.dumps([ITEM, ITEM], indent=1)
DAMAGED = {
    "empty": ("", 1, 1),
    "only_spaces": ("  \n ", 2, 2),
    "truncated": (WHOLE[:200], None, None),
    "no_end": (WHOLE[:-1], None, None),
    "missing_comma": (WHOLE.replace('"yes": 1.0\n', '"yes": 1.0 "no": 2\n', 1), None, None),
    "between_items": (WHOLE.replace("},\n {", "}\n {", 1), None, None),
    "trailing_comma": ("[{}, ]", 1, 6),
    "more_after_the_list": (WHOLE + "\n[]", None, None),
    "wrong_literal": ('[{"img_id": nil}]', 1, 13),
    "bad_escape": ('[{"img_id": "\\x"}]', 1, 14),
    "control_character": ('[{"img_id": "a\nb"}]', 1, 15),
}


@pytest.mark.parametrize("chunk", [1, 64, 1 << 20])
@pytest.mark.parametrize(("text", "line", "column"), DAMAGED.values(), ids=DAMAGED.keys())
def test_the_place_of_broken_json_is_told(tmp_path, monkeypatch, text, line, column, chunk):
    """The line and column that json.loads names, whatever the buffer; given here where an own error differs."""
    monkeypatch.setattr(module, "CHUNK", chunk)
    path = tmp_path / "broken.json"
    path.write_text(text)
    if line is None:
        with pytest.raises(json.JSONDecodeError) as expected:
            json.loads(text)
        line, column = expected.value.lineno, expected.value.colno
    with pytest.raises(UserError) as error:
        list(LxmertFile(path).items())
    assert str(error.value).startswith(f"{path}, line {line}, column {column}: not valid JSON (")
    assert "\n" not in str(error.value)


def test_a_broken_item_at_the_start_of_a_large_file_is_found_without_reading_all(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 10)
    path = tmp_path / "broken.json"
    path.write_text('[{"img_id": oops}, ' + json.dumps([ITEM] * 20_000)[1:])
    read_bytes = []
    bar = type("Bar", (), {"update": lambda self, count: read_bytes.append(count)})()
    with pytest.raises(UserError, match="line 1, column 13"):
        list(LxmertFile(path).items(bar))
    assert sum(read_bytes) < 1 << 14


@pytest.mark.parametrize("chunk", [1, 1 << 20])
def test_the_byte_that_is_not_utf8_is_told(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(module, "CHUNK", chunk)
    path = tmp_path / "latin.json"
    path.write_bytes(b'[{"img_id": "caf\xe9"}]')
    with pytest.raises(UserError, match=r"latin\.json, byte 16: not UTF-8"):
        list(LxmertFile(path).items())


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
        read(path)
    assert str(error.value) == f"{path}, item 1: {message}; mend or remove it"


def test_nesting_without_end_is_told(tmp_path):
    path = tmp_path / "deep.json"
    path.write_text("[" * 200_000)
    with pytest.raises(UserError, match="nested too deeply"):
        list(LxmertFile(path).items())


def test_file_that_is_no_list_is_refused(tmp_path):
    path = write(tmp_path, "train", ITEM)
    with pytest.raises(UserError, match=r"train\.json: a list of items was expected, found dict"):
        read(path)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.json is missing"):
        read(tmp_path / "nowhere.json")


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="can't be read: Is a directory"):
        read(tmp_path)
