"""Tables of one's own: rows with an image and a text, or a question with its answer."""

import html
import os
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from engine.data.annotations.formats.file import AnnotationFile, FieldError, Texts
from engine.data.annotations.formats.lxmert import NUMBER, is_label
from engine.data.images.places import Folder, Place
from engine.errors import UserError
from engine.progress import Bar

# Names of columns that are found by themselves, in the order in which they are looked for.
USUAL_NAMES = {
    "image": (
        "image",
        "image_path",
        "image_file",
        "img",
        "img_path",
        "file_name",
        "filename",
        "filepath",
        "file",
        "path",
    ),
    "text": ("caption", "captions", "text", "texts", "txt", "sentence", "sentences", "sent", "description"),
    "question": ("question", "questions"),
    "answer": ("answer", "answers", "label"),
    "split": ("split",),
}
# What a column for splits calls the part to train on, and the one to validate on.
SPLITS = {
    "train": frozenset({"train", "training", "restval"}),
    "valid": frozenset({"valid", "validation", "val", "dev", "minival"}),
}
CAPTIONS, QUESTIONS = "caption", "question"  # categories of their sentences

Row = dict[str, Any]


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called; None for those that are found by their usual names."""

    image: str | None = None
    text: str | None = None
    question: str | None = None
    answer: str | None = None
    split: str | None = None
    image_root: str | None = None  # what relative paths of images start from; the table's folder if None


class Roles(NamedTuple):
    """Which column of a row holds what."""

    image: str
    text: str | None
    question: str | None
    answer: str | None
    split: str | None


class TableFile(AnnotationFile):
    """Rows of columns. A format says how they are read."""

    unit: ClassVar[str] = "row"
    repeats_images = True

    def __init__(self, path: Path, columns: Columns | None = None, split: str | None = "train") -> None:
        """Args:
        split: train or valid, of a table that has a column for splits; None for all rows.
        """
        super().__init__(path)
        self.columns, self.split = columns or Columns(), split
        self.may_be_empty = False  # as one of several shards may be
        self.roles: dict[tuple[str, ...], Roles] = {}  # by the names of a row's columns

    @abstractmethod
    def rows(self, bar: Bar | None) -> Iterator[Row]:
        """Each row, with `number` set for messages.

        Raises:
            UserError: for a file that can't be read, or isn't of its format.
        """

    @property
    def root(self) -> Path:
        """What relative paths of images start from."""
        return Path(self.columns.image_root) if self.columns.image_root is not None else self.path.parent

    @property
    def place(self) -> tuple[str, Place]:
        return name_of(self.root), Folder(self.root)

    @property
    def identity(self) -> list[Any]:
        return [self.place[0], *astuple(self.columns)[:-1], self.split]

    def texts(self, bar: Bar | None = None) -> Iterator[Texts]:
        self.number, self.read, self.others = 0, 0, set[str]()
        self.dropped.clear()
        place = self.place[0]
        found = False
        for row in self.rows(bar):
            try:
                texts = self.texts_of(row, place)
            except FieldError as error:
                self.pass_over(self.error(error))
                continue
            self.read += 1
            if texts:
                found = True
                yield from texts
        if not found and not self.may_be_empty:
            raise self.nothing_found()
        self._check_given()

    def texts_of(self, row: Row, place: str) -> list[Texts]:
        """Those of one row.

        Raises:
            FieldError: naming the column that is missing or wrong.
        """
        names = tuple(row)
        roles = self.roles.get(names) or self.roles.setdefault(names, self.find_roles(names))
        if self.split and roles.split is not None and (split := str(row[roles.split])) not in SPLITS[self.split]:
            self.others.add(split)
            self.dropped["of another split"] += 1
            return []
        image = self.image_name(row[roles.image], roles.image)
        if not image:
            self.dropped["without an image"] += 1
            return []
        img_id, found, given, kept = f"{place}/{image}", list[Texts](), 0, 0
        if roles.text is not None and (captions := row[roles.text]) is not None:
            captions = [self.cleaned(one, roles.text) for one in listed(captions)]
            given += len(captions)
            if with_words := [text for text in captions if text]:
                kept += len(with_words)
                found.append(Texts(img_id, CAPTIONS, with_words, None))
        if roles.question is not None and row[roles.question] is not None:
            questions, labels = self.questions(row, roles.question, roles.answer)
            given += len(questions)
            if asked := [text for text in questions if text]:
                kept += len(asked)
                labels = [label for text, label in zip(questions, labels, strict=True) if text]
                found.append(Texts(img_id, QUESTIONS, asked, labels))
        if empty := given - kept or not given:
            self.dropped["without words"] += empty
        return found

    def questions(self, row: Row, question: str, answer: str | None) -> tuple[list[str], list[dict[str, float]]]:
        """Those of a row, and their answers."""
        asked = listed(row[question])
        answers = row[answer] if answer is not None else None
        if not isinstance(row[question], list):
            answers = [answers]
        elif answers is None:
            answers = [None] * len(asked)
        elif not isinstance(answers, list) or len(answers) != len(asked):
            found = len(answers) if isinstance(answers, list) else type(answers).__name__
            raise FieldError(f"there are {len(asked)} questions, and {found} in {answer!r}")
        labels = [label_of(one, answer) for one in answers]
        return [self.cleaned(text, question) for text in asked], labels

    def find_roles(self, names: tuple[str, ...]) -> Roles:
        """Raises FieldError where a row has no image, or neither text nor question."""
        found: dict[str, str | None] = {}
        for role, usual in USUAL_NAMES.items():
            given = getattr(self.columns, role)
            found[role] = next((name for name in ([given] if given else usual) if name in names), None)
        there = ", ".join(map(repr, names))
        for role, is_needed in (
            ("image", True),
            ("text", found["question"] is None),
            ("split", self.columns.split is not None),
        ):
            if is_needed and found[role] is None:
                given = getattr(self.columns, role)
                what = f"is called {given!r}" if given else f"has a usual name for the {role}"
                raise FieldError(f"none of the columns {there} {what}", f"name it with --{role}_column")
        return Roles(**found)  # type: ignore[arg-type]  # the image's isn't None

    def roles_of_all(self, names: tuple[str, ...]) -> Roles:
        """Those of a format whose rows all have the same columns; raises UserError."""
        try:
            return self.find_roles(names)
        except FieldError as error:
            raise UserError(f"{self.path}: {error}; {error.remedy}") from None

    def image_name(self, value: Any, column: str) -> str:
        """What the place of this file calls an image; "" for none."""
        if value is None:
            return ""
        if not isinstance(value, str):
            raise FieldError(f"{column!r} is {type(value).__name__}, and the path of an image file is needed")
        if "://" in value:
            if not value.startswith("file://"):
                raise FieldError(
                    f"{column!r} is the address {value!r}; fetch the images first, for instance as tar shards by "
                    "img2dataset, which --train takes"
                )
            value = value.removeprefix("file://")
        return value.removeprefix("./")

    def cleaned(self, text: Any, column: str) -> str:
        """A text with HTML's entities as characters; "" if nothing of it is left to read."""
        if text is None:
            return ""
        if not isinstance(text, str):
            raise FieldError(f"{column!r} holds {type(text).__name__}, and text is needed")
        return (html.unescape(text) if "&" in text else text).strip()

    def _check_given(self) -> None:
        """Raises UserError if a column that was named is in no row; rows of JSON needn't have all."""
        names = set[str]().union(*self.roles)
        for role in ("text", "question", "answer"):
            given = getattr(self.columns, role)
            if given is not None and names and given not in names:
                raise UserError(f"{self.path} has no column {given!r} (--{role}_column); it has {', '.join(names)}")

    def nothing_found(self) -> UserError:
        """What to say of a file without a text."""
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.dropped.items())
        if self.split and self.others:
            names = ", ".join(sorted(self.others)[:10])
            wanted = ", ".join(sorted(SPLITS[self.split]))
            return UserError(
                f"{self.path} has no row to {'train' if self.split == 'train' else 'validate'} on: its splits are "
                f"{names}, and {wanted} are looked for; rename them, or name another column with --split_column"
            )
        return UserError(f"{self.path} has no row with an image and a text" + (f" ({reasons})" if reasons else ""))


def listed(value: Any) -> list[Any]:
    """Several values as they are, a single one as a list, nothing as an empty one."""
    return value if isinstance(value, list) else [] if value is None else [value]


def label_of(answers: Any, column: str | None) -> dict[str, float]:
    """Answers with scores: of one answer, or of several, of which one that comes more often counts more.

    {answer: score} and [{"answer": ..., "score": ...}, ...] tell the scores themselves.
    """
    if answers is None:
        return {}
    if isinstance(answers, str):
        return {answers: 1.0}
    if isinstance(answers, list) and answers and isinstance(answers[0], tuple):  # how Arrow gives a mapping
        answers = dict(answers)
    if is_label(answers):
        return answers
    if isinstance(answers, list) and all(isinstance(answer, str | dict) for answer in answers):
        label: dict[str, float] = {}
        for answer in answers:
            text, score = (answer, None) if isinstance(answer, str) else (answer.get("answer"), answer.get("score"))
            score = 1 / len(answers) if score is None else score
            if not isinstance(text, str) or type(score) not in NUMBER:
                break
            label[text] = label.get(text, 0.0) + score
        else:
            return label
    raise FieldError(f"{column!r}: an answer, a list of answers, or answers with scores were expected")


def name_of(folder: Path) -> str:
    """What the ids of a folder's images begin with: its own name, wherever it lies."""
    return Path(os.path.abspath(folder)).name or "images"


def places_of(files: Iterable[AnnotationFile]) -> dict[str, Place]:
    """Where the images of some files lie, by the names that their ids begin with.

    Raises:
        UserError: if two of these have the same name.
    """
    places: dict[str, Place] = {}
    for file in files:
        if file.place is not None:
            name, place = file.place
            other = places.setdefault(name, place)
            if other != place and str(Path(str(other)).resolve()) != str(Path(str(place)).resolve()):
                raise UserError(
                    f"{other} and {place} have the same name, which the ids of their images begin with; rename one of "
                    "the folders, or make a link to it that has another name"
                )
    return places
