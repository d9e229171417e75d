"""What a program of launch/ that predicts does: read its flags, and answer, or write features.

Nothing heavy is imported before the flags are checked, so that --help and a wrong flag answer at once.
"""

import sys

from engine.configuration.parsing import parse_command
from engine.distributed.ranks import Ranks
from engine.importing import heavy_imports
from engine.printing import keep_printing
from engine.tasks.answering.task import TaskClass


def predict(task: TaskClass, argv: list[str] | None = None) -> None:
    """Predict.

    Args:
        argv: flags; those of the command line if not given.
    """
    ranks = Ranks.from_environment()
    config = parse_command(task.predict_class, sys.argv[1:] if argv is None else argv, f"--task {task.files.folder}")
    config.check()
    keep_printing()
    with heavy_imports():
        from engine.tasks.answering.prediction import run
    run(task, config, ranks)
