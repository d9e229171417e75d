"""What is counted in texts, whatever is broken in the files."""

import csv
import io
import json
import tarfile
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.formats.file import AnnotationFile, Texts
from engine.data.annotations.formats.table import Columns
from engine.data.annotations.named import read_names
from engine.data.annotations.text import TextEncoder
from engine.data.inspection.texts import TextReader, TextTable, texts_to_show
from engine.errors import UserError
from engine.synthetic.lxmert import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer()


class Listed(AnnotationFile):
    """Texts from memory."""

    format = "listed"

    def __init__(self, items):
        super().__init__(Path("listed"))
        self.items = items

    def texts(self, bar=None):
        yield from self.items

    def was(self, digest):
        return True


def read(tokenizer, *files, answers=()):
    reader = TextReader(TextEncoder(tokenizer), AnswerTable(answers))
    for file in files:
        reader.read(file, None)
    return reader


def own(path):
    return read_names(str(path), path.parent, columns=Columns())[0].files[0]


ITEMS = [
    Texts("a/1.jpg", "caption", ["one text", "another text"], None),
    Texts("a/2.jpg", "caption", ["one text"], None),
    Texts("a/1.jpg", "caption", [" one text "], None),  # the first again, with spaces that are no words
    Texts("a/1.jpg", "question", ["one text", "what ?"], [{"yes": 1.0}, {}]),  # the first again, as a question
    Texts("a/3.jpg", "question", ["who ?"], [{"nobody": 0.3, "The man": 1.0}]),
    Texts("a/4.jpg", "caption", [], None),
]


def test_texts_are_counted_without_being_kept(tokenizer):
    reader = read(tokenizer, Listed(ITEMS), answers=["yes"])
    table = TextTable(reader)
    assert list(table.names) == ["a/1.jpg", "a/2.jpg", "a/3.jpg"]
    assert table.images.tolist() == [0, 0, 1, 0, 0, 0, 2]
    assert table.is_caption.tolist() == [True] * 4 + [False] * 3
    assert table.repeated_pairs() == 2
    assert table.shared_captions() == (1, 2, {hash("one text"): 2})
    assert table.texts_of([0, 2]) == 6
    assert table.answers == 3
    assert reader.counts == {"rows": 0, "questions_with_answers": 2, "questions_without_known_answer": 1}
    assert texts_to_show([Listed(ITEMS)], ["a/3.jpg"], [hash("one text")]) == (
        {"a/3.jpg": "who ?"},
        {hash("one text"): "one text"},
    )


def test_lengths_are_those_that_a_training_cuts(tokenizer):
    texts = ["ban", "t-shirt", "ban ban ☃", ""]
    reader = read(tokenizer, Listed([Texts("1", "caption", texts, None)]))
    expected = [len(tokenizer.encode(text, add_special_tokens=False).ids) + 2 for text in texts]
    assert TextTable(reader).lengths.tolist() == expected
    assert expected[-1] == 2
    assert reader.unknown_pieces == 1
    assert reader.pieces == sum(expected) - 2 * len(texts)


def test_memory_is_bounded(tokenizer):
    """A text has a hash, a place (8 bytes each), a length (4) and a flag (1); a name here 20 bytes, a start and a hash.
    Arrays that grow have up to an eighth more, bytearrays too. A text itself would have 100 bytes and more."""
    count = 10_000

    def items():
        for number in range(count):
            yield Texts(f"folder/{number:09d}.jpg", "caption", [f"{'ban ' * 25}{number % 100}"], None)

    reader = read(tokenizer, Listed([]))
    tracemalloc.start()
    try:
        reader.read(Listed(items()), None)
        grown = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(reader.hashes) == count
    remembered = 1 << 16  # words of the encoder, scripts
    assert grown < count * (8 + 8 + 4 + 1 + 20 + 8 + 8) * 9 / 8 + remembered


def test_many_images_keep_their_names_in_any_order(tokenizer):
    rng = np.random.default_rng(0)
    names = [f"x/{number}é.jpg" for number in rng.integers(0, 500, 3000).tolist()]
    table = TextTable(read(tokenizer, Listed([Texts(name, "caption", ["ban"], None) for name in names])))
    assert list(table.names) == list(dict.fromkeys(names))
    assert [table.names[code] for code in table.images.tolist()] == names
    assert table.names[2:4] == list(dict.fromkeys(names))[2:4]


def test_scores_that_no_store_takes_are_counted(tokenizer):
    labels = [
        {"yes": 1.0},
        {"yes": float("nan")},
        {"yes": -1},
        {"yes": 3.0},
        {"unknown": -1},
    ]  # the last is dropped anyway
    reader = read(tokenizer, Listed([Texts("1", "a", ["ban"], [label]) for label in labels]), answers=["yes"])
    assert [line.split(": ")[1].split(";")[0] for line in reader.broken_texts.lines] == [
        "the score nan of an answer is no number from 0 to 1",
        "the score -1 of an answer is no number from 0 to 1",
        "the score 3.0 of an answer is no number from 0 to 1",
    ]
    assert len(reader.hashes) == len(reader.is_caption) == 2


# --- broken files


def write_lines(path):
    good = json.dumps({"image": "1.jpg", "caption": "good"}).encode()
    bad = [
        b"{",
        b"[]",
        b'{"foo": 1}',
        b'{"image": 1, "caption": "x"}',
        b'{"image": "\xff"}',
        b'{"image": "1", "text": 2}',
    ]
    half = json.dumps({"image": "1.jpg", "caption": "\ud83d"}).encode()
    path.write_bytes(b"\n".join([good, *bad, half, good]) + b"\n")
    return len(bad)


def write_values(path):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), ("1.jpg", "good")])
        file.write('1.jpg\n1.jpg,a,b\n1.jpg,"a"b\nhttp://x/1.jpg,a\n1.jpg,good\n')
    return 4


def write_shard(path):
    members = [("1.jpg", b""), ("1.txt", b"good"), ("2.jpg", b""), ("2.json", b"{"), ("3.jpg", b""), ("3.txt", b"\xff")]
    with tarfile.open(path, "w") as shard:
        for name, data in [*members, ("4.jpg", b""), ("4.json", b"[]"), ("5.jpg", b""), ("5.txt", b"good")]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            shard.addfile(info, io.BytesIO(data))
    return 3


def write_items(path):
    item = {"img_id": "1", "sentf": {"a": ["good"]}}
    bad = [7, {"img_id": "1"}, {**item, "labelf": {"a": []}}, {**item, "sentf": {"a": [1]}}]
    path.write_text(json.dumps([item, *bad, item]))
    return len(bad)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", write_lines), ("a.csv", write_values), ("a.tar", write_shard), ("a.json", write_items)],
    ids=["jsonl", "csv", "tar", "lxmert"],
)
def test_broken_items_are_counted_and_passed_over(tokenizer, tmp_path, name, write):
    broken = write(tmp_path / name)
    file = own(tmp_path / name)
    with pytest.raises(UserError) as first:  # as in a training
        list(file.texts())
    reader = read(tokenizer, file)
    assert reader.broken_rows.count == broken
    assert reader.broken_rows.lines[0] == str(first.value)
    assert len(set(reader.broken_rows.lines)) == broken
    assert reader.broken_texts.count == (name == "a.jsonl")
    assert reader.broken_files.count == 0
    assert reader.counts["rows"] == 2 + reader.broken_texts.count
    assert [hash("good")] * 2 == reader.hashes.tolist()
    with pytest.raises(UserError):  # whoever reads it next is stopped again
        list(file.texts())


@pytest.mark.parametrize(
    ("name", "data", "texts", "part"),
    [
        ("a.json", b'[{"img_id": "1", "sentf": {"a": ["good"]}}, {"img', 1, "not valid JSON"),
        ("a.jsonl", b"", 0, "has no row with an image and a text"),
        ("a.parquet", b"no table", 0, "can't be read as Parquet"),
        ("a.tar", b"no tar file" * 100, 0, "can't be read as an uncompressed tar file"),
        ("a.csv", b"image,text,text\n1,2,3\n", 0, "two columns are called 'text'"),
    ],
    ids=["cut off", "empty", "parquet", "tar", "columns"],
)
def test_a_file_that_cannot_be_read_is_one_line(tokenizer, tmp_path, name, data, texts, part):
    (tmp_path / name).write_bytes(data)
    reader = read(tokenizer, own(tmp_path / name))
    assert len(reader.hashes) == texts
    (line,) = reader.broken_files.lines
    assert part in line


def test_columns_that_are_not_found_are_one_line(tmp_path):
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"foo": ["a"], "bar": ["b"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet: none of the columns 'foo', 'bar' has a usual name for the image"):
        list(own(tmp_path / "a.parquet").texts())


def test_columns_of_a_saved_dataset_that_are_not_found_are_one_line(tmp_path):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_dict({"foo": ["a"], "bar": ["b"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match="saved: none of the columns 'foo', 'bar' has a usual name for the image"):
        list(own(tmp_path / "saved").texts())
