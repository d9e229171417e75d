"""The examples that a run validated on: which they are, and a part that is spread evenly over them."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from engine.configuration.flags import TrainingConfig
from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.formats.file import AnnotationFile
from engine.data.annotations.named import Part, columns_of, read_names
from engine.data.annotations.questions.file import files_of, read_questions
from engine.errors import UserError
from engine.provenance.compare import CONFIG, read_run
from engine.provenance.history import RUN
from engine.tasks.answering.task import TaskClass
from engine.tasks.named import TASKS
from engine.tasks.pretraining import PretrainConfig

Item = TypeVar("Item")


@dataclass(frozen=True)
class Example:
    """A question or a caption of a validation split."""

    number: int  # its place in the split, which decides the cells that are drawn
    img_id: str
    sentence: str  # as the model reads it
    label: Mapping[str, float] | None = None  # the right answers to a question with their scores, where they are known
    answer_type: str = ""
    question_type: str = ""


@dataclass(frozen=True)
class HeldOut:
    """A part of a validation split."""

    name: str
    files: tuple[AnnotationFile, ...]
    questions: list[Example]
    captions: list[Example]
    all_questions: int  # how many the whole split has
    all_captions: int


def told_part(count: int, all_: int, what: str) -> str:
    """How many of how many, for the report."""
    return f"all {all_:,} {what}" if count == all_ else f"{count:,} of the {all_:,} {what}, spread evenly over them"


def spread_evenly(items: Sequence[Item], most: int, seed: int) -> list[Item]:
    """At most that many items at even distances, in their order; the seed decides where they begin."""
    if len(items) <= most:
        return list(items)
    begin = random.Random(seed).randrange(len(items))
    return [items[(begin + number * len(items)) // most] for number in range(most)]


def read_config(folder: Path) -> tuple[TaskClass | None, TrainingConfig]:
    """What a run trained, by the names of its flags, and their values; a flag that it didn't know has its default.

    Returns:
        the task with questions, or None for a pre-training, and the configuration of its kind.

    Raises:
        UserError: if the folder is that of no run, or its configuration can't be read.
    """
    file = next((path for name in (RUN, CONFIG) if (path := folder / name).is_file()), folder)
    values: Mapping[str, Any] = read_run(file).about.get("configuration") or {}
    tasks: dict[type[TrainingConfig], TaskClass | None] = {PretrainConfig: None}
    tasks |= {task.config_class: task for task in TASKS.values()}
    kind = min(tasks, key=lambda kind: len({field.name for field in fields(kind)} ^ set(values)))
    return tasks[kind], kind(**{field.name: values[field.name] for field in fields(kind) if field.name in values})


def read_held_out(
    task: TaskClass | None, config: TrainingConfig, answers: AnswerTable, *, most: int, seed: int
) -> HeldOut:
    """Questions and captions that a run validates on.

    Args:
        task: with questions, or None for a pre-training.
        answers: those that the model knows.
        most: of the questions, and of the captions; the seed decides which, where there are more.

    Raises:
        UserError: if it validates on nothing, or a file is missing or broken.
    """
    if not config.valid:
        raise UserError("the run validated on nothing (--valid ''), so there are no data that are known to be held out")
    if task is not None:
        parts = task.files.parts(config.valid, Path(config.data_root))
        questions, captions = _of_task(task, parts), list[Example]()
    else:
        assert isinstance(config, PretrainConfig)
        folder = Path(config.data_root, "lxmert")
        parts = read_names(config.valid, folder, columns=columns_of(config), split="valid")
        examples = _of_pretraining(parts, config, answers)
        questions = [example for example in examples if example.label]
        captions = [example for example in examples if example.label is None]
    if not questions and not captions:
        raise UserError(f"{config.valid} holds no sentence")
    return HeldOut(
        " and ".join(part.name for part in parts),
        tuple(file for part in parts for file in part.files),
        spread_evenly(questions, most, seed),
        spread_evenly(captions, most, seed),
        len(questions),
        len(captions),
    )


def _of_task(task: TaskClass, parts: Sequence[Part]) -> list[Example]:
    questions = read_questions(files_of(parts))
    return [
        Example(number, q.img_id, task.files.cleaned(q.sentence), q.label, q.answer_type, q.question_type)
        for number, q in enumerate(questions)
    ]


def _of_pretraining(parts: Sequence[Part], config: PretrainConfig, answers: AnswerTable) -> list[Example]:
    """Captions and questions; a label holds the answers that the table knows, in its spelling."""
    categories = config.limit_source.split(",") if config.limit_source else None
    examples: list[Example] = []
    for texts in (texts for part in parts for file in part.files for texts in file.texts()):
        if categories is None or texts.category in categories:
            for place, sentence in enumerate(texts.texts):
                label = texts.labels[place] if texts.labels is not None else None
                known = {answers.answers[row]: score for row, score in answers.label(label or {}).items()}
                examples.append(Example(len(examples), texts.img_id, sentence, None if label is None else known))
    return examples
