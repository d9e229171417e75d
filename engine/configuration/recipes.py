"""Recipes: whole experiments, as flags in a YAML file."""

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from engine.configuration.flags import FORMER_VALUES
from engine.errors import UserError


def recipe_names(recipes: Path) -> list[str]:
    return sorted(path.stem for path in recipes.glob("*.yaml"))


def read_recipe(name: str, recipes: Path, config_class: type) -> list[str]:
    """A recipe as flags, so that argparse converts and checks its values like those of the command line."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else recipes / f"{name}.yaml"
    try:
        values = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"there is no recipe {name}; choose one of {', '.join(recipe_names(recipes))} or give a YAML file"
        ) from None
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
        takes_bool = fields[key].type in (bool, bool | None) or key in FORMER_VALUES
        if isinstance(value, list | dict) or (isinstance(value, bool) and not takes_bool):
            raise UserError(f"{path}: {key} can't be {value!r}; see --print_config for how it is written")
        if value is None and fields[key].default is not None:
            raise UserError(f"{path}: {key} has no value; give it one or remove the line")
        if value is not None:
            flags.append(f"--{key}={value}")
    return flags


def to_yaml(config: Any) -> str:
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, width=120)
