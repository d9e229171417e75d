"""The command line, over a recipe, over the defaults: to the dataclasses that declare the flags.

Flags have the original's names as aliases; those of its flags that are none here are in original.py.
"""

import argparse
import dataclasses
import difflib
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from transformers.hf_argparser import HfArgumentParser

from engine.commands import program_name
from engine.configuration.flags import AUTO, FORMER_VALUES, TrainingConfig
from engine.configuration.original import PATCHES, add_flags, check_flags
from engine.configuration.recipes import read_recipe, recipe_names
from engine.errors import UserError

LOCAL_RANK = ("--local_rank", "--local-rank")  # which deepspeed and torch.distributed.launch add, with = and a number

Config = TypeVar("Config", bound=TrainingConfig)


class Parser(HfArgumentParser):
    """argparse whose errors are one line, said by rank 0 alone."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, allow_abbrev=False, **settings)
        told = "print versions, for a report of a bug, and stop"  # which `program` in launch/__init__.py does
        self.add_argument("--version", action="store_true", default=argparse.SUPPRESS, help=told)
        for action in self._actions:
            if isinstance(action, argparse._StoreFalseAction):  # --no_X has got X's help, and its own default
                action.help, action.default = f"switch --{action.dest} off", argparse.SUPPRESS

    def error(self, message: str) -> NoReturn:
        unknown = "unrecognized arguments: "
        if message.startswith(unknown):
            flag = message.removeprefix(unknown).split()[0]
            if not flag.startswith("-"):
                raise UserError(
                    f"{flag!r} belongs to no flag; GPUs, port and machines are given to the launcher, before the "
                    "program (`deepspeed --include localhost:0,1 --master_port 9590 PROGRAM --output snap/NAME ...`)"
                )
            close = difflib.get_close_matches(flag.split("=")[0], self._option_string_actions, n=1)
            message = f"unknown flag {flag}" + (f"; did you mean {close[0]}?" if close else "; see --help")
        if "--clip_model_name" in message and "ViT" in message:
            message += f"; {PATCHES}"
        raise UserError(message)


def given_flags(parser: argparse.ArgumentParser, argv: list[str]) -> frozenset[str]:
    """The names of the flags that are there, rather than at their defaults."""
    absent = object()
    found = parser.parse_args(argv, argparse.Namespace(**{action.dest: absent for action in parser._actions}))
    return frozenset(name for name, value in vars(found).items() if value is not absent)


def int_or_auto(word: str) -> int:
    return AUTO if word == AUTO else int(word)


def parse(config_class: type[Config], argv: list[str], recipes: Path) -> tuple[Config, argparse.Namespace]:
    """Command line and recipe to a configuration, plus the flags that are about the program itself.

    The latter also have the names of the flags that were `typed`, and of those `in_recipe`.

    Raises:
        UserError: for an unknown flag or value, in the recipe as well as on the command line.
    """
    parser = Parser(config_class)
    parser.add_argument("--recipe", help="a whole experiment: " + ", ".join(recipe_names(recipes)) + ", or a YAML file")
    parser.add_argument(
        "--print_config",
        nargs="?",
        const="flags",
        choices=("flags", "deepspeed"),
        help="print the configuration as YAML, or what DeepSpeed is given as JSON, and stop",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="look for problems, measure some steps, and tell what a run would take"
    )
    parser.add_argument(
        "--find_batch_size", action="store_true", help="a dry run that also measures the largest micro-batch that fits"
    )
    parser.add_argument(*LOCAL_RANK, dest="local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--nodes", type=int, help="machines that the launcher was to start; checked")
    originals = add_flags(parser)
    for name, former in FORMER_VALUES.items():
        parser._option_string_actions[f"--{name}"].type = lambda word, former=former: former.get(word.lower(), word)
    parser._option_string_actions["--batch_size"].type = int_or_auto

    program = (
        parser.parse_known_args(argv)[0]
        if "--help" not in argv and "-h" not in argv
        else argparse.Namespace(recipe=None)
    )
    from_recipe = read_recipe(program.recipe, recipes, config_class) if program.recipe else []
    try:
        parser.parse_args(from_recipe)
    except UserError as error:
        raise UserError(f"recipe {program.recipe}: {error}") from None
    arguments = parser.parse_args([*from_recipe, *argv])
    arguments.typed, arguments.in_recipe = given_flags(parser, argv), given_flags(parser, from_recipe)
    check_flags(originals, vars(arguments))
    config = config_class(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(config_class)})
    for field in dataclasses.fields(config_class):
        if field.default is None and getattr(config, field.name) == "":  # --load '' takes back the recipe's
            setattr(config, field.name, None)
    return config, arguments


Command = TypeVar("Command")


def parse_command(config_class: type[Command], argv: list[str], command: str = "") -> Command:
    """Flags of a program without recipes. A field that `__init__` doesn't take is one or more words without a flag.

    Args:
        command: words that follow the program's name in its usage.

    Raises:
        UserError: for an unknown flag or value.
    """
    parser = Parser(config_class, prog=f"{program_name()} {command}".strip(), description=config_class.__doc__)
    words = [field for field in dataclasses.fields(config_class) if not field.init]  # type: ignore[arg-type]
    for field in words:
        parser.add_argument(field.name, nargs="+", **field.metadata)
    ours = [argument for argument in argv if argument.split("=")[0] not in LOCAL_RANK]
    values = vars(parser.parse_args(ours))
    given = {field.name: values.pop(field.name) for field in words}
    config = config_class(**values)
    for name, value in given.items():
        setattr(config, name, value)
    return config
