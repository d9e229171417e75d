"""What a training program of launch/ does: read its flags, and train or print them.

Nothing heavy is imported before the flags are checked, so that --help, --print_config and a wrong flag answer at once.
"""

import json
import signal
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import TrainingConfig
from engine.configuration.parsing import parse
from engine.configuration.recipes import to_yaml
from engine.distributed.ranks import Ranks
from engine.importing import heavy_imports
from engine.printing import keep_printing
from engine.tasks.task import Task

RECIPES = Path(str(files("launch") / "recipes"))


def starts_from_checkpoint(config: TrainingConfig, *, only_print: bool) -> bool:
    """Whether there may be a checkpoint to look into, or has to be one."""
    if config.start is not None and (not only_print or Path(config.start).is_dir()):
        return True
    return config.resume is not None and Path(config.output).is_dir()


def train(task_class: type[Task[Any]], argv: list[str] | None = None) -> None:
    """Train, or print the configuration.

    Args:
        argv: flags; those of the command line if not given.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # it asks for a checkpoint (preemption.py); not yet, but harmless
    ranks = Ranks.from_environment()
    config, arguments = parse(task_class.config_class, sys.argv[1:] if argv is None else argv, RECIPES)
    told, only_print = None, bool(arguments.print_config)
    if starts_from_checkpoint(config, only_print=only_print):
        with heavy_imports():
            from engine.training.preflight.inherited import inherit
        told = inherit(config, arguments.typed, arguments.in_recipe, only_print=only_print)
    config.check(ranks.world_size)
    settings = deepspeed_settings(config, ranks.world_size)
    if not arguments.print_config:
        keep_printing()
        if told and ranks.rank == 0:
            print(told, flush=True)
        Ranks.check_nodes(arguments.nodes)
        start = (config, task_class, ranks, settings)
        if arguments.dry_run or arguments.find_batch_size:
            with heavy_imports():
                from engine.training.preflight.report import rehearse
            rehearse(*start, find_batch_size=arguments.find_batch_size)
        else:
            with heavy_imports():
                from engine.training.run import run
            run(*start)
    elif ranks.rank == 0:
        deepspeed = arguments.print_config == "deepspeed"
        print(json.dumps(settings, indent=2) + "\n" if deepspeed else to_yaml(config), end="")
