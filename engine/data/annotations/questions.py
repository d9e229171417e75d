"""VQA's annotation files, in LXMERT's form.

    [{"question_id": 458752000, "img_id": "COCO_val2014_000000458752", "sent": "What is this?",
      "label": {"net": 1, "netting": 0.6}, "answer_type": "other", "question_type": "what is"}, ...]

A split without answers has no `label`. Ten human answers may stand in an item ("answers": ["net", ...]) or in the
official annotation files beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from engine.data.annotations.answers import read_json
from engine.data.annotations.formats.file import FieldError, Texts
from engine.data.annotations.formats.lxmert import LxmertFile, field, is_label
from engine.errors import UserError

LARGEST_ID = (1 << 63) - 1


@dataclass(frozen=True)
class Question:
    """One question, and what is known of its answer."""

    question_id: int
    img_id: str
    sentence: str
    label: dict[str, float] | None = None  # answers with scores; None in a split without answers
    answer_type: str = ""
    question_type: str = ""
    human_answers: tuple[str, ...] = ()


class QuestionFile(LxmertFile):
    """A stream of questions."""

    format: ClassVar[str] = "vqa"
    has_question_ids: ClassVar[bool] = True

    def texts_of(self, item: Any) -> Iterator[Texts]:
        question = question_of(item)
        labels = None if question.label is None else [question.label]
        yield Texts(question.img_id, "vqa", [question.sentence], labels, question.question_id)

    def questions(self) -> Iterator[Question]:
        """All questions in the order of the file.

        Raises:
            UserError: for a file that can't be read or is no such JSON, naming the line or the item.
        """
        for number, item in enumerate(self.items()):
            self.number = number
            try:
                yield question_of(item)
            except FieldError as error:
                raise self.error(error) from None


def question_of(item: Any) -> Question:
    """Raises FieldError, naming the field that is missing or wrong."""
    question_id = field(item, "question_id", int)
    if isinstance(question_id, bool) or not 0 <= question_id <= LARGEST_ID:
        raise FieldError(f"the question_id {question_id} is no whole number from 0 to {LARGEST_ID}")
    label = item.get("label")
    if label is not None and not is_label(label):
        raise FieldError("'label': answers with scores were expected")
    types = {name: field(item, name, str) for name in ("answer_type", "question_type") if name in item}
    return Question(
        question_id,
        field(item, "img_id", str),
        field(item, "sent", str),
        label,
        human_answers=human_answers_of(item),
        **types,
    )


def human_answers_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts, or the official files' {"answer": text, ...}; () if there are none."""
    answers = item.get("answers", [])
    texts: list[Any] = []
    if isinstance(answers, list):
        texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in texts):
        raise FieldError("'answers': a list of the human answers was expected")
    return tuple(texts)


def read_questions(files: Sequence[Path], human_answers: Sequence[Path] = ()) -> list[Question]:
    """All questions of a split.

    Args:
        human_answers: official annotation files, {"annotations": [{"question_id", "answers": [{"answer"}]}]}.

    Raises:
        UserError: for a broken file, or if only some of the questions have labels, or human answers.
    """
    questions = [question for file in files for question in QuestionFile(file).questions()]
    if human_answers:
        found = {number: texts for file in human_answers for number, texts in _official_answers(file)}
        questions = [replace(q, human_answers=found.get(q.question_id, q.human_answers)) for q in questions]
    names = ", ".join(str(path) for path in files)
    for what, known in (
        ("label", [question.label is not None for question in questions]),
        ("ten human answers", [bool(question.human_answers) for question in questions]),
    ):
        if any(known) and not all(known):
            lacking = questions[known.index(False)].question_id
            raise UserError(
                f"{known.count(False):,} of {len(questions):,} questions of {names} have no {what}, the first is "
                f"{lacking}; a score needs it of all"
            )
    return questions


def _official_answers(file: Path) -> Iterator[tuple[int, tuple[str, ...]]]:
    content = read_json(file)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise UserError(f"{file}: an official annotation file with a list 'annotations' was expected")
    for number, item in enumerate(annotations):
        try:
            yield field(item, "question_id", int), human_answers_of(item)
        except FieldError as error:
            raise UserError(f"{file}, annotation {number}: {error}; download the file again") from None


def check_unique(question_ids: np.ndarray, name: str) -> None:
    """Raises UserError if a question occurs twice: it would be asked, scored and handed in twice."""
    ids, counts = np.unique(question_ids, return_counts=True)
    if (counts > 1).any():
        raise UserError(
            f"{int((counts > 1).sum()):,} question ids of {name} occur more than once, the first is "
            f"{ids[counts > 1][0]}; remove the repeats, or name each split once"
        )
