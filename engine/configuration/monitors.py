"""The tools that show a run's metrics while it trains: their names in --monitor, and in DeepSpeed's JSON."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from engine.errors import UserError


@dataclass(frozen=True)
class Tool:
    """Where DeepSpeed's JSON has its settings, what they are, and which package the tool needs."""

    section: str
    settings: Mapping[str, type]
    package: str | None = None


FOLDER = {"output_path": str, "job_name": str}
TOOLS = {
    "tensorboard": Tool("tensorboard", FOLDER, "tensorboard"),
    "csv": Tool("csv_monitor", FOLDER),
    "wandb": Tool("wandb", {"project": str, "team": str, "group": str}, "wandb"),
    "comet": Tool(
        "comet",
        {"project": str, "workspace": str, "experiment_name": str, "experiment_key": str, "api_key": str}
        | {"mode": str, "online": bool, "samples_log_interval": int},
        "comet_ml",
    ),
}


def named_tools(monitor: str | None) -> list[str]:
    """The tools in the value of --monitor.

    Raises:
        UserError: for a name that isn't known.
    """
    names = [name for name in (monitor or "").replace(" ", "").split(",") if name]
    for name in names:
        if name not in TOOLS:
            raise UserError(f"--monitor {monitor}: there is no {name!r}; choose from {','.join(TOOLS)}")
    return names


def take_sections(settings: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """Take the tools' sections out of DeepSpeed's settings; each under the tool's name in --monitor.

    Left there, they would have DeepSpeed read the loss at each step, which waits for the device.

    Args:
        path: of the file that holds the settings.

    Raises:
        UserError: for a section that DeepSpeed wouldn't understand.
    """
    sections = {name: settings.pop(tool.section) for name, tool in TOOLS.items() if tool.section in settings}
    for name, section in sections.items():
        tool = TOOLS[name]
        if not isinstance(section, dict):
            raise UserError(f'{path}: {tool.section} has to be an object, such as {{"enabled": true}}')
        types: dict[str, type] = {"enabled": bool, **tool.settings}
        for key, value in section.items():
            if key not in types:
                raise UserError(f"{path}: {tool.section}.{key} isn't known; there are {', '.join(types)}")
            if value is not None and type(value) is not types[key]:
                raise UserError(f"{path}: {tool.section}.{key} {value!r}: type {types[key].__name__} is needed")
    return sections


def check_packages(tools: Iterable[str], asked_by: str = "--monitor") -> None:
    """Raises UserError, naming all packages that are missing for these tools; imports none of them.

    Args:
        asked_by: the flag or file that names the tools.
    """
    packages = [package for name in tools if (package := TOOLS[name].package) is not None]
    missing = [package for package in packages if not _is_installed(package)]
    if missing:
        verb = "isn't" if len(missing) == 1 else "aren't"
        raise UserError(
            f"{asked_by} needs {' and '.join(missing)}, which {verb} installed; run `pip install {' '.join(missing)}`"
        )


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    return spec is not None and spec.origin is not None  # a folder such as wandb/, where runs are, isn't the package
