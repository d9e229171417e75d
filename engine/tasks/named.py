"""The tasks to fine-tune on, by the names that --task takes."""

import argparse

from engine.commands import usage
from engine.errors import UserError
from engine.tasks.answering.task import TaskClass
from engine.tasks.gqa import Gqa
from engine.tasks.snli_ve import VisualEntailment
from engine.tasks.vqa import Vqa

TASKS: dict[str, TaskClass] = {task.files.folder: task for task in (Vqa, Gqa, VisualEntailment)}


def picked_task(argv: list[str], text: str, *, of_no_task: str = "") -> tuple[TaskClass, list[str]]:
    """The task that --task names, and the other flags.

    Args:
        text: the program's docstring, which --help prints where no task is named.
        of_no_task: a flag with which none need be named, since all come to the same.

    Raises:
        UserError: if none is named, or there is no such task.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", nargs="?", default="", const="")
    found, others = parser.parse_known_args(argv)
    if not found.task and {"--help", "-h"} & set(others):
        print(f"{usage(text)}\nThe tasks: {', '.join(TASKS)}.")
        raise SystemExit(0)
    if not found.task and of_no_task in {word.split("=")[0] for word in others}:
        found.task = next(iter(TASKS))
    if found.task not in TASKS:
        given = f"--task {found.task}: there is no such task; give" if found.task else "which task? add --task with"
        raise UserError(f"{given} one of {', '.join(TASKS)}")
    return TASKS[found.task], others
