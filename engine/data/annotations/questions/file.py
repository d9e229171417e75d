"""What the files of all tasks with questions have: sentences with an id, an image and, mostly, a label.

A task keeps its files in a folder of its own below the data root, and names them without folder and ending.
"""

import hashlib
import shlex
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from engine.commands import command
from engine.data.annotations.answers import ANSWER_LIST, AnswerTable, ExactAnswers
from engine.data.annotations.formats.file import AnnotationFile, FieldError, Texts
from engine.data.annotations.named import Part, absent_folder, read_names
from engine.data.annotations.store import AnnotationStore
from engine.errors import UserError
from engine.progress import Bar

QuestionId = int | str


@dataclass(frozen=True, slots=True)
class Question:
    """One question, and what is known of its answer. GQA has four million to hand in."""

    question_id: QuestionId
    img_id: str
    sentence: str
    label: dict[str, float] | None = None  # answers with scores; None in a split without answers
    answer_type: str = ""
    question_type: str = ""
    human_answers: tuple[str, ...] = ()

    @property
    def number(self) -> int:
        """What annotation stores and checkpoints keep of the id: itself, or 63 bits of a hash of a text."""
        if isinstance(self.question_id, int):
            return self.question_id
        return int.from_bytes(hashlib.blake2b(self.question_id.encode(), digest_size=8).digest(), "big") >> 1


class QuestionFile(AnnotationFile):
    """A stream of a task's questions. Their images are in the original's folders."""

    has_question_ids: ClassVar[bool] = True
    folder: ClassVar[str]  # of the task, below the data root
    file_name: ClassVar[str] = "{}.json"  # of a split
    train: ClassVar[tuple[str, ...]] = ("train",)  # the files that together are trained on
    leaderboard: ClassVar[str] = "test"  # the file whose answers are handed in
    leaderboard_repeats: ClassVar[bool] = False  # whether that one asks other files' questions again
    has_list: ClassVar[bool] = True  # of answers, in a file; else they are the same for all data
    answered_only: ClassVar[bool] = False  # leave questions out of training that have no answer in the list
    whole: ClassVar[Mapping[str, tuple[int, int]]] = {}  # about how many questions and images a whole file has
    usual_answers: ClassVar[int] = 0  # how many the published list has, for a count of memory without data

    @classmethod
    def parts(cls, names: str, data_root: Path) -> tuple[Part, ...]:
        """The files of a comma-separated list of names.

        Raises:
            UserError: if one isn't there, with the names of those that are.
        """
        return read_names(names, data_root / cls.folder, original=cls, file_name=cls.file_name)

    @classmethod
    def answers(cls, data_root: Path, names: str = "") -> AnswerTable:
        """The answers that a model for this task can give, in the order of its head's rows.

        Args:
            names: of the files that are read with them, for the message.

        Raises:
            UserError: if its folder isn't there; if the list isn't, with the command that makes it; if it is broken.
        """
        file = data_root / cls.folder / ANSWER_LIST
        if (absent := absent_folder(file.parent)) is not None:
            raise UserError(
                f"there is no folder {absent}; name with --data_root the folder that has the task's files in "
                f"{cls.folder}/, and see 'Real data' in README.md for where to get the published ones"
            )
        if not file.exists():
            named = names.split(",") if names else cls.train
            there = [name for name in named if (file.parent / cls.file_name.format(name)).exists()]
            flags = ["--task", cls.folder, "--data_root", str(data_root), "--train", ",".join(there or named)]
            raise UserError(
                f"{file} is missing, the list of the answers that a model can give; `{command('prepare')} answers "
                f"{shlex.join(flags)}` makes it of the questions in these files, and published data bring their own "
                "(see 'Real data' in README.md)"
            )
        return ExactAnswers.of_task(file.parent)

    @classmethod
    def known_answers(cls, data_root: Path) -> AnswerTable | None:
        """The same, or None where the task's list isn't there, which only a training needs."""
        return cls.answers(data_root) if (data_root / cls.folder / ANSWER_LIST).exists() else None

    @staticmethod
    def cleaned(sentence: str) -> str:
        """As the model reads it."""
        return sentence

    @abstractmethod
    def items(self, bar: Bar | None = None) -> Iterator[Any]:
        """What the file holds, with `number` set for messages.

        Raises:
            UserError: for a file that can't be read or isn't of its format, naming the line or the item.
        """

    @abstractmethod
    def question_of(self, item: Any) -> Question | str:
        """The question of an item, or the reason why it is left out.

        Raises:
            FieldError: naming the field that is missing or wrong.
        """

    def questions(self, bar: Bar | None = None) -> Iterator[Question]:
        """All questions in the order of the file; `dropped` counts what is left out.

        Raises:
            UserError: see `items`.
        """
        self.read = 0
        self.dropped.clear()
        for item in self.items(bar):
            try:
                question = self.question_of(item)
            except FieldError as error:
                self.pass_over(self.error(error))
                continue
            self.read += 1
            if isinstance(question, str):
                self.dropped[question] += 1
            else:
                yield question

    def texts(self, bar: Bar | None = None) -> Iterator[Texts]:
        for question in self.questions(bar):
            labels = None if question.label is None else [question.label]
            yield Texts(question.img_id, self.folder, [self.cleaned(question.sentence)], labels, question.number)


def files_of(parts: Sequence[Part]) -> tuple[QuestionFile, ...]:
    """Of a split whose files all are of questions."""
    files = tuple(file for part in parts for file in part.files)
    return tuple(file for file in files if isinstance(file, QuestionFile))


def read_questions(files: Sequence[QuestionFile]) -> list[Question]:
    """All questions of a split.

    Raises:
        UserError: for a broken file, or if only some of the questions have labels.
    """
    questions = [question for file in files for question in file.questions()]
    check_all_or_none("label", [question.label is not None for question in questions], questions, files)
    return questions


def check_all_or_none(
    what: str, known: Sequence[bool], questions: Sequence[Question], files: Sequence[QuestionFile]
) -> None:
    """Raises UserError if only some of the questions have what a score needs."""
    if any(known) and not all(known):
        lacking = questions[known.index(False)].question_id
        raise UserError(
            f"{known.count(False):,} of {len(questions):,} questions of {names_of(files)} have no {what}, the first is "
            f"{lacking}; a score needs it of all"
        )


def check_unique(numbers: np.ndarray, files: Sequence[QuestionFile], name: str) -> None:
    """Raises UserError if a question occurs twice: it would be asked, scored and handed in twice.

    Args:
        numbers: `Question.number` of each, int64.
        files: where they come from, which are read again for the message.
    """
    found, counts = np.unique(numbers, return_counts=True)
    if (counts > 1).any():
        repeated = set(found[counts > 1].tolist())
        first = next(question for file in files for question in file.questions() if question.number in repeated)
        raise UserError(
            f"{len(repeated):,} question ids of {name} occur more than once, the first is {first.question_id}; remove "
            "the repeats, or name each split once"
        )


def is_only_handed_in(files: Sequence[QuestionFile], store: AnnotationStore) -> bool:
    """Whether a split has no labels, and may ask what was trained on, since others score it."""
    return all(file.leaderboard_repeats for file in files) and not store.questions.any()


def names_of(files: Sequence[QuestionFile]) -> str:
    return ", ".join(str(file.path) for file in files)
