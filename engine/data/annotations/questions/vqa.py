"""VQA's annotation files, in LXMERT's form.

    [{"question_id": 458752000, "img_id": "COCO_val2014_000000458752", "sent": "What is this?",
      "label": {"net": 1, "netting": 0.6}, "answer_type": "other", "question_type": "what is"}, ...]

A split without answers has no `label`. Ten human answers may stand in an item ("answers": ["net", ...]) or in the
official annotation files beside it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from engine.data.annotations.answers import read_json
from engine.data.annotations.formats.file import FieldError
from engine.data.annotations.formats.lxmert import LxmertFile, field, is_label
from engine.data.annotations.questions.file import Question, QuestionFile, QuestionId, check_all_or_none
from engine.errors import UserError
from engine.progress import Bar

LARGEST_ID = (1 << 63) - 1


class VqaFile(QuestionFile, LxmertFile):
    """A list of items, each with a question."""

    format: ClassVar[str] = "vqa"
    folder: ClassVar[str] = "vqa"
    train: ClassVar[tuple[str, ...]] = ("train", "nominival")
    usual_answers: ClassVar[int] = 3129

    def items(self, bar: Bar | None = None) -> Iterator[Any]:
        for number, item in enumerate(LxmertFile.items(self, bar)):
            self.number = number
            yield item

    def question_of(self, item: Any) -> Question | str:
        question_id = self.id_of(item)
        label = item.get("label")
        if label is not None and not is_label(label):
            raise FieldError("'label': answers with scores were expected")
        types = {name: field(item, name, str) for name in ("answer_type", "question_type") if name in item}
        return Question(
            question_id,
            self.image_of(field(item, "img_id", str)),
            field(item, "sent", str),
            label,
            human_answers=human_answers_of(item),
            **types,
        )

    def id_of(self, item: Any) -> QuestionId:
        """Raises FieldError."""
        return question_id_of(item)

    def image_of(self, img_id: str) -> str:
        """The id that an item's image has everywhere else."""
        return img_id


def question_id_of(item: Any) -> QuestionId:
    """A text as it is, or a number that a column of ids can hold.

    Raises:
        FieldError: if it is neither.
    """
    question_id = field(item, "question_id", object)
    is_number = type(question_id) is int and 0 <= question_id <= LARGEST_ID
    if not is_number and not isinstance(question_id, str):
        raise FieldError(f"the question_id {question_id!r} is no text, and no whole number from 0 to {LARGEST_ID}")
    return question_id


def human_answers_of(item: Mapping[str, Any]) -> tuple[str, ...]:
    """Texts, or the official files' {"answer": text, ...}; () if there are none."""
    answers = item.get("answers", [])
    texts: list[Any] = []
    if isinstance(answers, list):
        texts = [answer.get("answer") if isinstance(answer, dict) else answer for answer in answers]
    if not isinstance(answers, list) or not all(isinstance(text, str) for text in texts):
        raise FieldError("'answers': a list of the human answers was expected")
    return tuple(texts)


def with_human_answers(
    questions: Sequence[Question], files: Sequence[QuestionFile], official: Sequence[Path]
) -> list[Question]:
    """The same questions with people's answers.

    Args:
        files: where the questions are from.
        official: annotation files, {"annotations": [{"question_id", "answers": [{"answer"}]}]}.

    Raises:
        UserError: for a broken file, or if only some of the questions have human answers.
    """
    found = {number: texts for file in official for number, texts in _official_answers(file)}
    questions = [replace(q, human_answers=found.get(q.question_id, q.human_answers)) for q in questions]
    check_all_or_none("ten human answers", [bool(q.human_answers) for q in questions], questions, files)
    return questions


def _official_answers(file: Path) -> Iterator[tuple[QuestionId, tuple[str, ...]]]:
    content = read_json(file)
    annotations = content.get("annotations") if isinstance(content, dict) else None
    if not isinstance(annotations, list):
        raise UserError(f"{file}: an official annotation file with a list 'annotations' was expected")
    for number, item in enumerate(annotations):
        try:
            yield question_id_of(item), human_answers_of(item)
        except FieldError as error:
            raise UserError(f"{file}, annotation {number}: {error}; download the file again") from None
