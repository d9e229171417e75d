"""The project's documents, and what stands in them."""

from collections.abc import Callable
from pathlib import Path

from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [path.relative_to(ROOT).as_posix() for path in PAGES]
LANGUAGES = ("bash", "python", "json", "yaml", "text")


def blocks(path: Path, evaluate: Callable[[Example], str | None] | None = None) -> list[Example]:
    """The fenced blocks of a page, in their order; `evaluate` is what each one's own `evaluate()` calls."""
    parsers = [CodeBlockParser(language, evaluate) for language in LANGUAGES]
    return list(Document.parse(str(path), *parsers).examples())


def language_of(block: Example) -> str:
    return str(block.region.lexemes["arguments"])


def prose(path: Path) -> str:
    """A page with its blocks blanked out, so that what is found keeps its line."""
    text = path.read_text(encoding="utf-8")
    for block in blocks(path):
        start, end = block.region.start, block.region.end
        text = text[:start] + "".join("\n" if letter == "\n" else " " for letter in text[start:end]) + text[end:]
    return text
