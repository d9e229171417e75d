"""GQA's official files, read as a stream; and prepare.py gqa, which puts the question files into LXMERT's form.

Official, {question id: entry}; ids are texts and may begin with zeros:

    {"00123456": {"imageId": "2345678", "question": "Is the cup red?", "answer": "no", "isBalanced": true, ...}}

LXMERT's form, which trainings and predictions read; questions to hand in have no label:

    [{"question_id": "00123456", "img_id": "2345678", "sent": "Is the cup red?", "label": {"no": 1.0}}, ...]
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from transformers.hf_argparser import HfArg

from engine.data.annotations.answers import ANSWER_LIST, ANSWER_ROWS, ExactAnswers
from engine.data.annotations.formats.file import FieldError
from engine.data.annotations.formats.lxmert import JsonStream, LxmertFile, field
from engine.data.annotations.questions.gqa import GqaFile
from engine.data.preparation import PrepareConfig, Summary
from engine.errors import UserError
from engine.files import byte_bar, write_json, write_json_list

OFFICIAL = {
    "train": "train_balanced_questions.json",
    "valid": "val_balanced_questions.json",
    "testdev": "testdev_balanced_questions.json",
    "submit": "submission_all_questions.json",
}
UNLABELLED = "submit"
OFFICIAL_FOLDER = Path(GqaFile.folder, "questions1.2")  # below the data root, as the archive is called

Parsed = TypeVar("Parsed")


@dataclass
class PrepareGqa(PrepareConfig):
    """Put GQA's official question files into LXMERT's form, in DATA_ROOT/gqa/, and make an answer table."""

    official: str | None = HfArg(
        default=None, help=f"folder of the official question files; DATA_ROOT/{OFFICIAL_FOLDER} if not given"
    )
    force: bool = HfArg(default=False, help="replace question files that are there; an answer table is kept even so")


def prepare_gqa(config: PrepareGqa) -> Summary:
    """DATA_ROOT/gqa/{train,valid,testdev,submit}.json, of the official files that are there, and the answer table."""
    data_root = Path(config.data_root)
    folder, official = data_root / GqaFile.folder, Path(config.official or data_root / OFFICIAL_FOLDER)
    summary = write_gqa_files(folder, official, force=config.force, progress=True)
    for file, questions in summary["written"].items():
        print(f"{file}: {questions:,} questions")
    for file in summary["kept"]:
        print(f"{file} is there already; --force replaces it")
    for file in summary["missing"]:
        print(f"{file} isn't there and was left out")
    table = summary["answer_table"]
    if table is None:
        print(f"no answer table: it is made of {OFFICIAL['train']}")
    elif table["written"]:
        print(
            f"{table['file']}: {table['answers']:,} answers of train and valid, those that train gives most often "
            "first. A model that was fine-tuned with LXMERT's table of 1,842 answers needs that one here instead"
        )
    else:
        print(f"{table['file']}: {table['answers']:,} answers; it was there already and is kept")
    return summary


def write_gqa_files(folder: Path, official: Path, *, force: bool = False, progress: bool = False) -> Summary:
    """Write LXMERT's question files and, where there is none, the answer table.

    The table has the answers of train.json and valid.json, those that train gives most often first, then by name.
    LXMERT's own has 1,842 answers in an order that can't be derived from the official files: for models that were
    fine-tuned with it, put it there first. A table that is there is always kept, since models depend on its order.

    Files are read and written as streams, so memory doesn't grow with them: 6 MB were measured with a file of 45 MB,
    of which `json.loads` makes 276 MB.

    Args:
        folder: for the files to write.
        official: that of the official files; those that are there decide which are written.
        force: replace question files that are there, which are kept otherwise.

    Returns:
        `written`, the questions by file; `kept` files; official files that are `missing`; and `answer_table` with its
        `file`, its number of `answers` and whether it was `written`, or None if there is no train.json to make it of.

    Raises:
        UserError: if no official file is there, one is broken, or a file can't be written. What was written before
            stays, and each file is whole or not there.
    """
    there = {split: official / name for split, name in OFFICIAL.items() if (official / name).exists()}
    if not there:
        raise UserError(
            f"none of {', '.join(OFFICIAL.values())} is in {official}; unpack questions1.2.zip of gqadataset.org "
            "there, or name its folder with --official"
        )
    table_files = [folder / ANSWER_LIST, folder / ANSWER_ROWS]
    table = ExactAnswers.of_task(folder) if any(file.exists() for file in table_files) else None
    found = table is not None
    written: dict[str, int] = {}
    kept: list[str] = []
    for split, source in there.items():
        target = folder / f"{split}.json"
        if target.exists() and not force:
            kept.append(str(target))
        else:
            written[str(target)] = write_json_list(target, _items(source, split != UNLABELLED, progress))
    if table is None and (folder / "train.json").exists():
        table = _make_table(folder, progress)
    if table is not None:
        for file, content in zip(table_files, (table.answers, table.ids), strict=True):
            if not file.exists():
                write_json(file, content)
    return {
        "written": written,
        "kept": kept,
        "missing": [str(official / name) for split, name in OFFICIAL.items() if split not in there],
        "answer_table": None
        if table is None
        else {"file": str(table_files[0]), "answers": len(table), "written": not found},
    }


def read_official(path: Path, parse: Callable[[Any], Parsed], progress: bool = False) -> Iterator[tuple[str, Parsed]]:
    """The entries of an official file with their question ids, one at a time and in little memory.

    Args:
        parse: from an entry to what is wanted of it; raises FieldError for what is wrong with it.

    Raises:
        UserError: for a file that can't be read or is no such JSON, naming the place or the question.
    """
    stream = JsonStream(path, None)
    with stream.file, byte_bar(f"reading {path.stem}", path.stat().st_size, 0, progress) as stream.bar:
        if stream.next_character() != "{":
            found = type(stream.decode()).__name__
            raise UserError(f"{path}: questions by their ids were expected, found {found}; download the file again")
        for question_id, entry in stream.members("}", stream.pair):
            try:
                parsed = parse(entry)
            except FieldError as error:
                raise UserError(f"{path}, question {question_id}: {error}; download the file again") from None
            yield question_id, parsed


def _items(path: Path, labelled: bool, progress: bool) -> Iterator[dict[str, Any]]:
    """An official file's questions in LXMERT's form."""

    def item_of(entry: Any) -> dict[str, Any]:
        label = {"label": {field(entry, "answer", str): 1.0}} if labelled else {}
        return {"img_id": field(entry, "imageId", str), "sent": field(entry, "question", str), **label}

    for question_id, item in read_official(path, item_of, progress):
        yield {"question_id": question_id, **item}


def _make_table(folder: Path, progress: bool) -> ExactAnswers:
    """The answers of train.json and valid.json, those that train gives most often first, then by name."""
    train, valid = (_answers_of(folder / f"{split}.json", progress) for split in ("train", "valid"))
    if not train:
        raise UserError(f"{folder / 'train.json'} has no question to make an answer table of; download GQA's again")
    return ExactAnswers(sorted(train | valid, key=lambda answer: (-train[answer], answer)))


def _answers_of(path: Path, progress: bool) -> Counter[str]:
    """How many questions of a file in LXMERT's form have each answer; none if there is no such file."""
    answers: Counter[str] = Counter()
    if path.exists():
        file = LxmertFile(path)
        with byte_bar(f"answers of {path.stem}", file.size(), 0, progress) as bar:
            for number, item in enumerate(file.items(bar)):
                file.number = number
                try:
                    answers.update(field(item, "label", dict).keys())
                except FieldError as error:
                    raise file.error(error) from None
    return answers
