"""LXMERT's annotation files to a flat list of sentences, each with its image and perhaps its answers."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.data.answers import AnswerTable, read_json
from engine.errors import UserError


@dataclass(frozen=True, slots=True)
class Sentence:
    """One caption or question of one image. `label` maps answer ids to scores; None for a caption."""

    uid: str  # {img_id}_{category}_{index:03d}
    img_id: str
    text: str
    label: dict[int, float] | None


@dataclass
class LabelCount:
    """How many of the answers that annotators gave the table knows."""

    known: int = 0
    unknown: int = 0
    example: str = ""


def read_annotations(path: Path, answers: AnswerTable, count: LabelCount, *, progress: bool = False) -> list[Sentence]:
    """Read one file of [{"img_id": ..., "sentf": {category: [text]}, "labelf": {category: [{answer: score}]}}].

    Categories with labels are questions. Labels are added up in `count`.
    """
    items = read_json(path)
    if not isinstance(items, list):
        raise UserError(f"{path}: a list of items was expected, found {type(items).__name__}")
    sentences: list[Sentence] = []
    for number, item in enumerate(tqdm(items, desc=f"reading {path.stem}", unit="item", disable=not progress)):
        try:
            sentences.extend(_sentences_of(item, answers, count))
        except _FieldError as error:
            raise UserError(f"{path}, item {number}: {error}; mend or remove the item") from None
    return sentences


def read_all(
    names: Iterable[str], folder: Path, answers: AnswerTable, count: LabelCount, *, progress: bool = False
) -> list[Sentence]:
    """The sentences of several files, in the order of their names."""
    files = (read_annotations(folder / f"{name}.json", answers, count, progress=progress) for name in names)
    return [sentence for sentences in files for sentence in sentences]


class _FieldError(Exception):
    pass


def _sentences_of(item: Any, answers: AnswerTable, count: LabelCount) -> Iterable[Sentence]:
    img_id = _field(item, "img_id", str)
    texts_by_category = _field(item, "sentf", dict)
    labels_by_category = _field(item, "labelf", dict) if "labelf" in item else {}
    for category, texts in texts_by_category.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise _FieldError(f"'sentf', category {category!r}: a list of sentences was expected")
        labels = labels_by_category.get(category)
        if labels is not None and (not isinstance(labels, list) or len(labels) != len(texts)):
            found = len(labels) if isinstance(labels, list) else type(labels).__name__
            raise _FieldError(f"category {category!r} has {len(texts)} sentences and {found} labels")
        for index, text in enumerate(texts):
            label = None if labels is None else _label(labels[index], category, answers, count)
            yield Sentence(f"{img_id}_{category}_{index:03d}", img_id, text, label)


def _label(scores: Any, category: str, answers: AnswerTable, count: LabelCount) -> dict[int, float]:
    if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
        raise _FieldError(f"'labelf', category {category!r}: answers with scores were expected")
    label = answers.label(scores)
    count.known += len(label)
    if not label and scores:
        count.unknown += 1
        count.example = count.example or next(iter(scores))
    return label


def _field(item: Any, name: str, kind: type) -> Any:
    if not isinstance(item, dict) or name not in item:
        raise _FieldError(f"the field '{name}' is missing")
    if not isinstance(item[name], kind):
        raise _FieldError(f"the field '{name}' is {type(item[name]).__name__}, not {kind.__name__}")
    return item[name]
