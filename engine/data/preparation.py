"""What the commands of launch/prepare.py share: their flags, how one is run, and what it leaves."""

import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg

from engine.commands import program_name, usage
from engine.configuration.parsing import parse_command
from engine.configuration.tables import TableConfig
from engine.data.annotations.questions.named import QUESTION_FILES
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.files import check_writable, write_json

Summary = dict[str, Any]
PRINTED_PROBLEMS = 10


@dataclass
class PrepareConfig:
    """What every command of launch/prepare.py takes."""

    data_root: str = HfArg(
        default="data",
        help="folder that holds mscoco/, vg_raw_images/, images/ with your own, lxmert/, and vqa/ or another task's",
    )
    json: str | None = HfArg(default=None, help="also write the summary to this file")

    def check(self) -> None:
        """Raises UserError, naming the flag to change."""


@dataclass
class AnnotationFilesConfig(TableConfig, PrepareConfig):
    """Commands that read annotation files."""

    train: str = HfArg(
        default="mscoco_train,mscoco_nominival,vgnococo",
        help="annotation files in data/lxmert/, and paths of tables, shards or datasets",
    )
    valid: str = HfArg(default="mscoco_minival", help="those of the validation; '' for none")

    @property
    def splits(self) -> dict[str, list[tuple[str, str]]]:
        """Of each split, the names of its files, with commas between them, and whether it is for train or valid.

        By the folder that holds the original's files.
        """
        named = ((self.train, "train"), (self.valid, "valid"))
        return {"lxmert": [(names, which) for names, which in named if names]}

    def check(self) -> None:
        if not any(self.splits.values()):
            flags = [f"--{name}" for name in ("train", "valid", *QUESTION_FILES) if hasattr(self, name)]
            raise UserError(f"no annotation file is named; give {' or '.join(flags)}")


@dataclass
class QuestionFilesConfig(AnnotationFilesConfig):
    """Commands that read the files of tasks with questions as well; each flag is a folder's name."""

    vqa: str = HfArg(
        default="",
        help="also these files in data/vqa/: train,nominival,minival,test; add --train '' --valid '' for these alone",
    )
    gqa: str = HfArg(default="", help="also these files in data/gqa/: train,valid,testdev,submit")
    snli_ve: str = HfArg(default="", help="also these files in data/snli_ve/: train,dev,test")

    @property
    def splits(self) -> dict[str, list[tuple[str, str]]]:
        found = super().splits
        for folder, files in QUESTION_FILES.items():
            names = [name for name in dict.fromkeys(getattr(self, folder).split(",")) if name]
            together = ",".join(name for name in files.train if name in names)  # in fine-tuning's order
            others = [name for name in names if name not in files.train]  # each is a split of its own
            found[folder] = [(split, "train") for split in (together, *others) if split]
        return found


Command = tuple[type[PrepareConfig], Callable[[Any], Summary]]


def run_command(commands: Mapping[str, Command], argv: list[str], text: str) -> int:
    """Run one command.

    Args:
        text: the program's docstring, which is its usage.

    Returns:
        0, 1 if the data have problems, 2 for what the user can mend at once, 130 after Ctrl-C.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage(text))
        return 0 if argv else 2
    started = time.monotonic()
    name, *flags = argv
    try:
        if name not in commands:
            raise UserError(f"there is no command {name}; choose one of {', '.join(commands)}")
        config_class, command = commands[name]
        config = parse_command(config_class, flags, name)
        config.check()
        Ranks.check_alone()
        if config.json is not None:
            check_writable(Path(config.json))  # before the work, which may take hours
        summary = command(config)
        summary["seconds"] = round(time.monotonic() - started, 1)
        if config.json is not None:
            write_json(Path(config.json), summary, indent=2)
    except UserError as error:
        print(f"\n{program_name()} {name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{program_name()} {name}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 1 if summary.get("problems") else 0


def print_problems(problems: Iterable[str]) -> None:
    """The first few; --json has all."""
    problems = list(problems)
    for problem in problems[:PRINTED_PROBLEMS]:
        print(f"problem: {problem}")
    if len(problems) > PRINTED_PROBLEMS:
        print(f"... and {len(problems) - PRINTED_PROBLEMS:,} more problems; --json FILE lists all")
