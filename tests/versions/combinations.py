"""The versions that are tried together. Each is allowed by setup.py; together they span what it allows."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Combination:
    """A Python, and which versions of the libraries it gets. What isn't pinned is the newest that fits."""

    about: str
    python: str
    constraints: tuple[str, ...] = ()  # as in a constraints file
    pinned: bool = False  # by constraints.txt
    lowest: bool = False  # each library that setup.py names in the lowest version that it allows


COMBINATIONS = {
    "lowest": Combination("the lowest versions that setup.py allows", "3.10", lowest=True),
    "gpu": Combination(
        "a GPU machine's own PyTorch",
        "3.12",
        ("torch==2.11.*", "triton==3.6.*", "transformers==5.17.*", "numpy==2.5.*"),
    ),
    "python3.10": Combination("constraints.txt, oldest Python", "3.10", pinned=True),
    "python3.13": Combination("constraints.txt, newest Python", "3.13", pinned=True),
    "newest": Combination("the newest versions there are", "3.13"),
}
