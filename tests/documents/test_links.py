"""What the documents point to is there: files, sections, modules; and every page can be reached."""

import re
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.conftest import ROOT
from tests.documents.pages import PAGES, blocks, prose

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
MODULE = re.compile(r"python3? -m ([\w.]+)|--module ([\w.]+)")
OURS = ("engine", "kernels", "launch", "tests", "docs", "ds_configs")  # folders of the checkout
# Words in backticks that begin like a path of the checkout and are none.
NO_PATHS = {"kernels/embed_norm.py": "was removed, and docs/decisions.md says why"}


def links(path: Path) -> list[str]:
    return LINK.findall(prose(path))


def anchors(path: Path) -> set[str]:
    """Of all headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def paths_named(path: Path) -> list[str]:
    """Files and folders of this checkout that stand in backticks."""
    words = [word for code in CODE.findall(prose(path)) for word in code.split()]
    found = [word.rstrip(".,:;") for word in words if re.fullmatch(rf"({'|'.join(OURS)})/[\w./-]*", word)]
    return [word for word in found if word not in NO_PATHS and "NAME" not in word]


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = PAGES[name]
    broken = []
    for link in links(page):
        if "://" in link:
            parts = urlsplit(link)
            if parts.scheme != "https" or "." not in parts.netloc:
                broken.append(f"{link}: no address")
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            broken.append(f"{link}: no such file")
        elif anchor and anchor not in anchors(target):
            broken.append(f"{link}: {target.name} has no such heading")
    assert broken == []


@pytest.mark.parametrize("name", PAGES)
def test_paths_and_modules_exist(name: str) -> None:
    page = PAGES[name]
    assert [path for path in paths_named(page) if not (ROOT / path).exists()] == []
    commands = [block.text for block in blocks(page) if block.language == "bash"] + CODE.findall(prose(page))
    modules = {first or second for command in commands for first, second in MODULE.findall(command)}
    assert [module for module in modules if find_spec(module) is None] == []


def test_every_page_can_be_reached() -> None:
    """By links from README.md, over any number of pages."""
    reached, todo = set(), [ROOT / "README.md"]
    while todo:
        page = todo.pop()
        if page not in reached and page.exists():
            reached.add(page)
            files = [link.partition("#")[0] for link in links(page) if "://" not in link]
            todo += [(page.parent / file).resolve() for file in files if file.endswith(".md")]
    assert [name for name, page in PAGES.items() if page not in reached] == []


def test_something_is_found() -> None:
    """Else nothing above could fail."""
    assert sum(len(links(page)) for page in PAGES.values()) > 30
    assert sum(len(paths_named(page)) for page in PAGES.values()) > 100
