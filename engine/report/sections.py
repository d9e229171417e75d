"""What a report is made of. What finds something out gives sections; the page alone knows HTML."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Picture:
    """A PNG, in the page and as a file beside it."""

    name: str  # of its file, without .png; each once in a report
    png: bytes
    alt: str  # what it shows, for who can't see it
    caption: str = ""
    dark: bytes | None = None  # the same to be seen on a dark page; a photo is the same on both


@dataclass(frozen=True)
class Table:
    """Rows of texts under a heading each. Numbers are given as they are to be read."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclass(frozen=True)
class Card:
    """A picture beside lines about it, such as a question and its answers; the page shows several side by side."""

    picture: Picture
    title: str
    lines: Sequence[str]
    is_good: bool | None = None  # whether what is told of is right; None where that isn't asked


Part = str | Picture | Table | Sequence[Card]  # a str is a paragraph


@dataclass(frozen=True)
class Section:
    """Parts under a headline, in their order."""

    title: str
    parts: Sequence[Part]
