"""prepare.py gqa: GQA's official files as a stream, and in LXMERT's form; what may be wrong with them, or be there."""

import json
import tracemalloc

import pytest

from engine.commands import program_name
from engine.data.annotations.answers import ExactAnswers
from engine.data.annotations.formats import lxmert
from engine.data.annotations.questions.official_gqa import OFFICIAL, read_official, write_gqa_files
from engine.errors import UserError
from engine.files import write_json_list
from launch.prepare import main
from tests.conftest import small_tmpfs


def entry(answer, number=1):
    labelled = {} if answer is None else {"answer": answer, "fullAnswer": f"It is {answer}."}
    return {"imageId": f"n{number}", "question": f"What is it, {number}?", "isBalanced": True, **labelled}


# Blue, which train gives most often, comes first; green and red are as frequent; grey is valid's alone.
ANSWERS = {
    "train": ["red", "blue", "green", "blue"],
    "valid": ["grey", "red"],
    "testdev": ["purple"],
    "submit": [None, None],
}
TABLE = ["blue", "green", "red", "grey"]


@pytest.fixture
def root(tmp_path):
    """A data root with all four official files; ids begin with zeros."""
    folder = tmp_path / "gqa" / "questions1.2"
    folder.mkdir(parents=True)
    for split, answers in ANSWERS.items():
        entries = {f"00{split}{number}": entry(answer, number) for number, answer in enumerate(answers)}
        (folder / OFFICIAL[split]).write_text(json.dumps(entries))
    return tmp_path


def prepare(root, *flags):
    summary = root / "summary.json"
    assert main(["gqa", "--data_root", str(root), "--json", str(summary), *flags]) == 0
    return json.loads(summary.read_text())


def error_of(capsys, root, *flags):
    assert main(["gqa", "--data_root", str(root), *flags]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith(f"{program_name()} gqa: error: ")
    return lines[-1]


def content(root, name):
    return json.loads((root / "gqa" / f"{name}.json").read_text())


def names_in(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


# --- what is written


def test_the_files_are_those_of_lxmert(root, capsys):
    summary = prepare(root)
    assert content(root, "valid") == [
        {"question_id": "00valid0", "img_id": "n0", "sent": "What is it, 0?", "label": {"grey": 1.0}},
        {"question_id": "00valid1", "img_id": "n1", "sent": "What is it, 1?", "label": {"red": 1.0}},
    ]
    assert content(root, "submit")[1] == {"question_id": "00submit1", "img_id": "n1", "sent": "What is it, 1?"}
    assert [list(item["label"]) for item in content(root, "train")] == [[name] for name in ANSWERS["train"]]
    assert content(root, "trainval_label2ans") == TABLE
    assert ExactAnswers.of_task(root / "gqa").ids == content(root, "trainval_ans2label")
    assert summary["written"] == {str(root / "gqa" / f"{s}.json"): len(a) for s, a in ANSWERS.items()}
    assert summary["answer_table"] == {
        "file": str(root / "gqa" / "trainval_label2ans.json"),
        "answers": 4,
        "written": True,
    }
    assert names_in(root / "gqa") == sorted(
        [*(f"{split}.json" for split in OFFICIAL), "trainval_ans2label.json", "trainval_label2ans.json"]
    )
    told = capsys.readouterr().out
    assert f"{root}/gqa/train.json: 4 questions" in told
    assert "LXMERT's table of 1,842 answers needs that one here instead" in told


def test_official_files_may_be_elsewhere(root, capsys):
    (root / "gqa" / "questions1.2").rename(root / "elsewhere")
    assert "questions1.2; unpack questions1.2.zip" in error_of(capsys, root)
    assert len(prepare(root, "--official", str(root / "elsewhere"))["written"]) == 4


def test_only_what_is_there_is_written(root, capsys):
    for split in ("train", "valid", "submit"):
        (root / "gqa" / "questions1.2" / OFFICIAL[split]).unlink()
    summary = prepare(root)
    assert names_in(root / "gqa") == ["testdev.json"]
    assert len(summary["missing"]) == 3
    assert summary["answer_table"] is None
    told = capsys.readouterr().out
    assert "train_balanced_questions.json isn't there and was left out" in told
    assert "no answer table" in told


def test_train_alone_has_a_table(root):
    (root / "gqa" / "questions1.2" / OFFICIAL["valid"]).unlink()
    prepare(root)
    assert content(root, "trainval_label2ans") == TABLE[:3]


# --- what is there already


def test_what_is_there_is_kept_unless_forced(root, capsys):
    (root / "gqa" / "train.json").write_text(json.dumps([{"label": {"mine": 1.0}}]))
    summary = prepare(root)
    assert summary["kept"] == [str(root / "gqa" / "train.json")]
    assert content(root, "train") == [{"label": {"mine": 1.0}}]
    assert content(root, "trainval_label2ans") == ["mine", "grey", "red"]  # of the files that a training reads
    assert "train.json is there already; --force replaces it" in capsys.readouterr().out
    summary = prepare(root, "--force")
    assert (len(summary["written"]), summary["kept"]) == (4, [])
    assert len(content(root, "train")) == 4
    assert content(root, "trainval_label2ans") == ["mine", "grey", "red"]  # models depend on its order
    assert summary["answer_table"]["written"] is False


def test_lxmerts_table_is_kept(root, capsys):
    table = root / "gqa" / "trainval_label2ans.json"
    table.write_text('["red","zebra"]')
    prepare(root, "--force")
    assert table.read_text() == '["red","zebra"]'
    assert content(root, "trainval_ans2label") == {"red": 0, "zebra": 1}
    assert "2 answers; it was there already and is kept" in capsys.readouterr().out


def test_a_table_that_disagrees_is_told_before_anything_is_written(root, capsys):
    (root / "gqa" / "trainval_label2ans.json").write_text('["red"]')
    (root / "gqa" / "trainval_ans2label.json").write_text('{"red": 1}')
    assert "trainval_label2ans.json disagree, first on 'red'" in error_of(capsys, root)
    (root / "gqa" / "trainval_label2ans.json").unlink()
    assert "trainval_label2ans.json is missing" in error_of(capsys, root)
    assert names_in(root / "gqa") == ["trainval_ans2label.json"]


def test_a_file_of_ones_own_without_labels_makes_no_table(root, capsys):
    (root / "gqa" / "train.json").write_text("[{}]")
    assert "train.json, item 0: the field 'label' is missing" in error_of(capsys, root)
    (root / "gqa" / "train.json").write_text("[]")
    assert "train.json has no question to make an answer table of" in error_of(capsys, root)


# --- what is no such file


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"question": "What?", "answer": "red"}, "the field 'imageId' is missing"),
        ({"imageId": 7, "question": "What?", "answer": "red"}, "the field 'imageId' is int, not str"),
        ({"imageId": "7", "question": ["What?"], "answer": "red"}, "the field 'question' is list, not str"),
        ({"imageId": "7", "question": "What?"}, "the field 'answer' is missing"),
        ({"imageId": "7", "question": "What?", "answer": {"red": 1}}, "the field 'answer' is dict, not str"),
        ("What?", "the field 'answer' is missing"),
    ],
)
def test_a_broken_question_is_named(root, capsys, broken, message):
    path = root / "gqa" / "questions1.2" / OFFICIAL["train"]
    path.write_text(json.dumps({"001": entry("red"), "002": broken}))
    assert f"{path}, question 002: {message}; download the file again" in error_of(capsys, root)
    assert names_in(root / "gqa") == []


def test_a_truncated_file_leaves_the_older_one(root, capsys):
    prepare(root)
    before = (root / "gqa" / "train.json").read_bytes()
    path = root / "gqa" / "questions1.2" / OFFICIAL["train"]
    path.write_bytes(path.read_bytes()[:-40])
    assert f"{path}, line 1, column " in error_of(capsys, root, "--force")
    assert (root / "gqa" / "train.json").read_bytes() == before
    assert not list((root / "gqa").glob("*.partial"))


def test_a_full_disk_is_one_line(root, capsys):
    """The four files take 800 bytes; the train file grows beyond the small disk."""
    path = root / "gqa" / "questions1.2" / OFFICIAL["train"]
    with small_tmpfs(root / "disk", "64k"):
        (root / "disk" / "gqa").mkdir()
        flags = ["--official", str(path.parent)]
        path.write_text(json.dumps({str(number): entry("red", number) for number in range(2000)}))
        message = error_of(capsys, root / "disk", *flags)
        assert f"{root}/disk/gqa/train.json can't be written (No space left on device); free space" in message
        assert names_in(root / "disk" / "gqa") == []
        path.write_text(json.dumps({"1": entry("red")}))
        assert main(["gqa", "--data_root", str(root / "disk"), *flags]) == 0


# --- the stream

ENTRIES = {f'{number:04d} "ä😀' if number % 3 else "": {"n": [number, {"}": "]"}]} for number in range(40)}


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_entries_are_those_of_json_whatever_the_buffer(tmp_path, monkeypatch, chunk, indent):
    monkeypatch.setattr(lxmert, "CHUNK", chunk)
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(ENTRIES, ensure_ascii=False, indent=indent) + "\n", encoding="utf-8")
    assert list(read_official(path, lambda value: value)) == list(ENTRIES.items())
    path.write_text("{ }")
    assert list(read_official(path, lambda value: value)) == []


@pytest.mark.parametrize(
    "text",
    ['{"a": 1, }', '{"a": 1]', '{"a" 1}', '{"a": }', "{1: 2}", '{"a": 1} x', '{"a": 1', '{"a', "{", '{"a": 1,,'],
)
def test_broken_json_is_placed_where_json_finds_it_broken(tmp_path, text):
    path = tmp_path / "questions.json"
    path.write_text(f"\n {text}")
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(path.read_text())
    with pytest.raises(UserError) as error:
        list(read_official(path, lambda value: value))
    assert str(error.value).startswith(f"{path}, line 2, column ")
    if "," not in text:  # at a comma too many, versions of Python differ by a column or two
        assert f", column {expected.value.colno}: not valid JSON ({expected.value.msg})" in str(error.value)


def test_memory_does_not_grow_with_the_file(root, monkeypatch):
    """Buffers of 16 kB take less than 300 kB; the file's megabyte at once would take more than its size."""
    monkeypatch.setattr(lxmert, "CHUNK", 1 << 14)
    path = root / "gqa" / "questions1.2" / OFFICIAL["train"]
    path.write_text(json.dumps({str(number): entry("red", number) for number in range(12_000)}))
    assert path.stat().st_size > 1e6
    tracemalloc.start()
    write_gqa_files(root / "gqa", path.parent)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 300_000


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_list_is_written_as_its_items_come(tmp_path, count):
    items = [{"é": number} for number in range(count)]
    assert write_json_list(tmp_path / "new" / "items.json", iter(items)) == count
    assert json.loads((tmp_path / "new" / "items.json").read_text()) == items
