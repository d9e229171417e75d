"""The project's documents, and what stands in them."""

from pathlib import Path
from typing import NamedTuple

from sybil import Document
from sybil.parsers.markdown import CodeBlockParser

from tests.conftest import ROOT

PAGES = {
    path.relative_to(ROOT).as_posix(): path
    for path in [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
}
LANGUAGES = ("bash", "python", "json", "yaml", "text")


class Block(NamedTuple):
    """A fenced block of a page: where it is in its text, and what stands in it."""

    start: int
    end: int
    line: int
    language: str
    text: str


def blocks(path: Path) -> list[Block]:
    """In the order of the page."""
    found = []
    for language in LANGUAGES:
        for example in Document.parse(str(path), CodeBlockParser(language)).examples():
            region = example.region
            found.append(Block(region.start, region.end, example.line, language, str(example.parsed)))
    return sorted(found)


def prose(path: Path) -> str:
    """A page with its blocks blanked out."""
    text = path.read_text(encoding="utf-8")
    for start, end, *_ in blocks(path):
        text = text[:start] + "".join("\n" if letter == "\n" else " " for letter in text[start:end]) + text[end:]
    return text
