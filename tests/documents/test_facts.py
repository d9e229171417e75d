"""Tables of the documents that follow from the code: the recipes, and the messages of docs/troubleshooting.md."""

import ast
import re
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT

RECIPES = ROOT / "launch" / "recipes"


def rows(page: str) -> list[list[str]]:
    """The cells of all tables of a page, without headlines."""
    lines = re.findall(r"^\| (.+) \|$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    return [line.split(" | ") for line in lines]


TABLE = {row[0].strip("`"): row for row in rows("recipes.md")}


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
