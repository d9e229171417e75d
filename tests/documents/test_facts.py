"""What the documents say that follows from the code: recipes, messages, versions, commands, and what images hold."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

import engine
from engine.benchmark import memory
from engine.training.preflight.memory import RESERVE
from tests.conftest import ROOT, packaging

RECIPES = ROOT / "launch" / "recipes"


def rows(page: str) -> list[list[str]]:
    """The cells of all tables of a page, without headlines."""
    lines = re.findall(r"^\| (.+) \|$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return [line.split(" | ") for line in lines]


def recipes(columns: int) -> dict[str, list[str]]:
    """The table of recipes that has so many columns, by their names."""
    return {row[0].strip("`"): row for row in rows("recipes.md") if len(row) == columns}


TABLE, TAKEN, FITTING = recipes(8), recipes(6), recipes(5)


def test_every_recipe_is_in_the_table() -> None:
    assert {path.stem for path in RECIPES.glob("*.yaml")} == TABLE.keys() - {"recipe"}


@pytest.mark.parametrize("name", sorted(TABLE.keys() - {"recipe"}))
def test_the_table_says_what_the_recipe_says(name: str) -> None:
    _, _, _, start, gpus, batches, samples, epochs = TABLE[name]
    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text())
    each, accumulated = map(int, batches.split(" x "))
    assert (recipe["batch_size"], recipe["gradient_accumulation_steps"]) == (each, accumulated)
    assert int(samples) == int(gpus) * each * accumulated
    stop = recipe["stop_after_epoch"]
    assert epochs == (f"{stop} of {recipe['epochs']}" if stop else str(recipe["epochs"]))
    load = recipe["load"] or recipe.get("load_lxmert") or recipe.get("load_lxmert_qa")
    if load is None:
        assert start == ("random weights" if recipe["clip_model_name"] == "tiny" else "CLIP and BERT")
    else:
        before = yaml.safe_load((RECIPES / f"{start.split('`')[1]}.yaml").read_text())
        assert load == f"{before['output']}/Epoch{int(start.split()[-1]):02d}"


def counted(name: str, part: str, gpus: str) -> tuple[Any, Callable[..., int]]:
    """A recipe's flags, and what counts the memory of a micro-batch of it."""
    task = ["--task", name.rpartition("_rn")[0]] if "stage" not in name else []
    if name == "vqa_rn50x4_one_gpu":
        task = ["--task", "vqa"]
    flags = [*task, "--recipe", name, "--activation_checkpointing", part, "--gpus", gpus]
    task_class, config, number = memory.read_flags(flags)
    return config, memory.count(task_class, config, number)


def test_what_every_recipe_takes_is_in_a_table() -> None:
    assert TAKEN.keys() - {"recipe"} == {name for name in TABLE if not name.startswith("demo")} - {"recipe"}


@pytest.mark.parametrize("name", sorted(TAKEN.keys() - {"recipe"}))
def test_the_table_says_what_a_recipe_takes(name: str) -> None:
    _, samples, of_all, steps, memory_gb, hours = TAKEN[name]
    config, peak = counted(name, "none", gpus=TABLE[name][4])
    each = int(samples.replace(",", ""))
    whole = each * config.last_epoch
    assert of_all == f"{whole:,}"
    assert steps == f"{config.last_epoch * -(-each // int(TABLE[name][6])):,}"
    assert hours == f"{whole / 3600:,.0f} / R"
    assert memory_gb == f"{peak(config.batch_size) / memory.GB:.1f}"


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FITTING.keys() - {"recipe"}))
def test_the_table_says_what_fits(name: str) -> None:
    """The largest number is the one after which another sample would not fit."""
    for place, part in enumerate(("none", "all")):
        _, peak = counted(name, part, gpus="1")
        for cell, device in zip(FITTING[name][1:], memory.DEVICES, strict=True):
            samples = int(cell.split(", ")[place])
            assert peak(samples) <= (1 - RESERVE) * device * memory.GB < peak(samples + 1), (part, device)


def texts() -> list[str]:
    """All texts of the code, with a dot for each value that is put in."""
    found = []
    for path in [path for room in ("engine", "kernels", "launch") for path in (ROOT / room).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [str(part.value) if isinstance(part, ast.Constant) else "." for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return [*found, Path(ROOT / "Makefile").read_text()]


def test_every_message_of_the_page_is_one_of_the_code() -> None:
    known = "\n\n".join(texts()).replace("`", "'")
    messages = [text for row in rows("troubleshooting.md") for text in re.findall(r"`([^`]+)`", row[0])]
    messages = [text for text in messages if not re.fullmatch(r"\w+", text)]  # a name
    assert len(messages) > 50
    unknown = []
    for message in messages:
        parts = [re.escape(part) for part in message.removeprefix("error: ").strip(".").split("...")]
        if not re.search(r"[^\n]*?".join(parts), known):
            unknown.append(message)
    assert unknown == []


def test_the_version_is_one() -> None:
    """Of the engine, of what is cited, and of the newest entry of the changelog; the last two have a date in common."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    newest = re.search(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest.groups() == (cited["version"], str(cited["date-released"]))
    assert cited["version"] == engine.__version__


def test_every_command_and_extra_is_on_the_page_about_installing() -> None:
    text = (ROOT / "docs" / "install.md").read_text()
    commands = re.findall(r"^\| `python launch/(\w+)\.py` \| `(clipvil-[\w-]+)` \|$", text, re.MULTILINE)
    scripts = [f"{command} = launch.{program}:main" for program, command in commands]
    assert sorted(scripts) == sorted(packaging()["entry_points"]["console_scripts"])
    assert set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)) == packaging()["extras_require"].keys()


def test_the_container_holds_what_setup_asks_for() -> None:
    """No image is built by a test; what its file names has to be there and to fit."""
    lines = (ROOT / "Dockerfile").read_text()
    sent = re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    assert [name for name in sent if not (ROOT / name).exists()] == []
    needed = {package.split(".")[0] for package in packaging()["packages"]} | {"setup.py", "pyproject.toml", "LICENSE"}
    assert needed <= set(sent)
    copied = [words.split()[0] for words in re.findall(r"^COPY (?!--from)(.+)$", lines, re.MULTILINE)]
    assert set(copied) - {"."} <= set(sent)
    [torch] = re.findall(r"^ARG BASE=pytorch/pytorch:([\d.]+)-cuda[\d.]+-cudnn\d+-runtime$", lines, re.MULTILINE)
    asked = {each.name: each for each in map(Requirement, packaging()["install_requires"])}
    assert torch in asked["torch"].specifier
    [extras] = re.findall(r"^ARG EXTRAS=(.+)$", lines, re.MULTILINE)
    assert set(extras.split(",")) <= packaging()["extras_require"].keys()
    [python] = re.findall(r"^FROM python:([\d.]+)-slim", lines, re.MULTILINE)
    assert python in SpecifierSet(packaging()["python_requires"])
