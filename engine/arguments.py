"""The command line, and recipes, which are flags in a YAML file: both to the dataclasses of engine.config.

Flags have the original's names as aliases; what its launch script always passed is listed in ORIGINAL_CONSTANTS.
"""

import argparse
import dataclasses
import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from transformers import HfArgumentParser

from engine.config import ConvertConfig, TrainingConfig
from engine.errors import UserError

# What the original's scripts pass and is always so here: flag -> (accepted values, reason for refusing others).
# A flag without a value counts as "true".
ORIGINAL_CONSTANTS: dict[str, tuple[tuple[str, ...], str]] = {
    "use_clip": (("true",), "the backbone is always a CLIP ResNet"),
    "visualbert_style": (("true",), "one encoder always reads words and image together"),
    "input_raw_images": (("true",), "features are always computed from images"),
    "vqa_style_transform": (("true",), "images are always resized by their short side"),
    "add_zero_padding": (("true",), "images are always padded to one size"),
    "distributed": (("true",), "DeepSpeed always runs the ranks; start one with --num_gpus 1"),
    "multiGPU": (("true",), "DeepSpeed always runs the ranks"),
    "tqdm": (("true",), "progress is always shown"),
    "compress_data": (("true",), "annotations are always in the shared store"),
    "use_separate_optimizer_for_visual": (("true",), "SGD always trains the backbone"),
    "optim": (("bert",), "AdamW always trains the transformer"),
    "llayers": (("12",), "the number of layers is that of the --bert configuration"),
    "xlayers": (("0",), "there are no cross-modality layers"),
    "rlayers": (("0",), "there are no object-relationship layers"),
    "visualLosses": (
        ("obj,attr,feat", "obj,attr", "obj", "attr", "feat", ""),
        "objects are not predicted, so none is used",
    ),
    "objMaskRate": (("0.0", "0", "0."), "objects are not masked"),
    "test": (("",), "launch/predict_vqa.py predicts and scores"),
    "fp16_opt_level": (("O1",), "fp16 always keeps fp32 masters and batch norm, as O1 did"),
}
SNAKE_CASE = {"visualLosses": "visual_losses", "objMaskRate": "obj_mask_rate", "multiGPU": "multi_gpu"}

Config = TypeVar("Config", bound=TrainingConfig)


class Parser(HfArgumentParser):
    """argparse whose errors are one line, said by rank 0 alone."""

    def error(self, message: str) -> NoReturn:
        unknown = "unrecognized arguments: "
        if message.startswith(unknown):
            flag = message.removeprefix(unknown).split()[0]
            close = difflib.get_close_matches(flag.split("=")[0], self._option_string_actions, n=1)
            message = f"unknown flag {flag}" + (f"; did you mean {close[0]}?" if close else "; see --help")
        raise UserError(message)


def parse(config_class: type[Config], argv: list[str], recipes: Path) -> tuple[Config, argparse.Namespace]:
    """Command line and recipe to a configuration, plus the flags that are about the program itself.

    Raises:
        UserError: for an unknown flag or value, in the recipe as well as on the command line.
    """
    parser = Parser(config_class, allow_abbrev=False)
    parser.add_argument("--recipe", help="a whole experiment: " + ", ".join(recipe_names(recipes)) + ", or a YAML file")
    parser.add_argument("--print_config", action="store_true", help="print the configuration as YAML and stop")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher's
    for name, (values, reason) in ORIGINAL_CONSTANTS.items():
        aliases = [f"--{name}"] + ([f"--{SNAKE_CASE[name]}"] if name in SNAKE_CASE else [])
        parser.add_argument(*aliases, dest=name, nargs="?", const="true", default=values[0], help=f"accepted: {reason}")

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
    for name, (values, reason) in ORIGINAL_CONSTANTS.items():
        value = getattr(arguments, name)
        if value.lower() not in {v.lower() for v in values}:
            raise UserError(f"--{name} {value} is not supported: {reason}; leave the flag out")
    config = config_class(**{field.name: getattr(arguments, field.name) for field in dataclasses.fields(config_class)})
    for field in dataclasses.fields(config_class):
        if field.default is None and getattr(config, field.name) == "":  # --load '' takes back the recipe's
            setattr(config, field.name, None)
    return config, arguments


Command = TypeVar("Command")


def parse_command(config_class: type[Command], program: str, argv: list[str]) -> Command:
    """Flags of a program without recipes.

    Raises:
        UserError: for an unknown flag or value.
    """
    parser = Parser(config_class, prog=program, description=config_class.__doc__, allow_abbrev=False)
    ours = [argument for argument in argv if not argument.startswith("--local_rank=")]  # which deepspeed adds
    return config_class(**vars(parser.parse_args(ours)))


def parse_conversion(argv: list[str], sources: Sequence[str], targets: Sequence[str]) -> ConvertConfig:
    """Flags of launch/convert.py, whose --from may come several times.

    Raises:
        UserError: for an unknown flag or value, or without --from or --to.
    """
    parser = Parser(ConvertConfig, prog="convert.py", description=ConvertConfig.__doc__, allow_abbrev=False)
    pair: dict[str, Any] = {"nargs": 2, "metavar": ("KIND", "PATH")}
    parser.add_argument("--from", dest="sources", action="append", help=f"KIND is {', '.join(sources)}", **pair)
    parser.add_argument("--to", help=f"KIND is {', '.join(targets)}", **pair)
    arguments = vars(parser.parse_args(argv))
    source, target = arguments.pop("sources"), arguments.pop("to")
    if not source or not target:
        raise UserError("both --from KIND PATH and --to KIND PATH are needed; see --help")
    config = ConvertConfig(**arguments)
    config.sources, config.to = [(kind, path) for kind, path in source], (target[0], target[1])
    return config


def recipe_names(recipes: Path) -> list[str]:
    return sorted(path.stem for path in recipes.glob("*.yaml"))


def read_recipe(name: str, recipes: Path, config_class: type) -> list[str]:
    """A recipe as flags, so that argparse converts and checks its values like those of the command line."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else recipes / f"{name}.yaml"
    if not path.is_file():
        raise UserError(
            f"there is no recipe {name}; choose one of {', '.join(recipe_names(recipes))} or give a YAML file"
        )
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise UserError(f"{path}{f', line {mark.line + 1}' if mark else ''}: not valid YAML; mend it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read ({error})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: settings, one `name: value` a line, were expected; see --print_config")
    fields = {field.name: field for field in dataclasses.fields(config_class)}
    flags: list[str] = []
    for key, value in values.items():
        if key not in fields:
            raise UserError(f"{path}: unknown setting {key}; use the names that --print_config prints, of this program")
        if isinstance(value, list | dict) or (isinstance(value, bool) and fields[key].type is not bool):
            raise UserError(f"{path}: {key} can't be {value!r}; see --print_config for how it is written")
        if value is None and fields[key].default is not None:
            raise UserError(f"{path}: {key} has no value; give it one or remove the line")
        if value is not None:
            flags.append(f"--{key}={value}")
    return flags


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=120)
