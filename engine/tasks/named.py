"""The tasks to fine-tune on, by the names that --task takes."""

import argparse

from engine.distributed.leaving import telling_errors
from engine.errors import UserError
from engine.tasks.answering.task import TaskClass
from engine.tasks.gqa import Gqa
from engine.tasks.snli_ve import VisualEntailment
from engine.tasks.vqa import Vqa

TASKS: dict[str, TaskClass] = {task.files.folder: task for task in (Vqa, Gqa, VisualEntailment)}


def picked_task(argv: list[str], usage: str) -> tuple[TaskClass, list[str]]:
    """The task that --task names, and the other flags. Ends the program if there is none, with the reason.

    Args:
        usage: what --help prints where no task is named.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", nargs="?", default="", const="")
    found, others = parser.parse_known_args(argv)
    if not found.task and {"--help", "-h"} & set(others):
        print(f"{usage.strip()}\nThe tasks: {', '.join(TASKS)}.")
        raise SystemExit(0)
    with telling_errors():
        if found.task not in TASKS:
            given = f"--task {found.task}: there is no such task; give" if found.task else "which task? add --task with"
            raise UserError(f"{given} one of {', '.join(TASKS)}")
    return TASKS[found.task], others
