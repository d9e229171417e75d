"""Implementations beside each other: checked first, then timed in turns, and their numbers written."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kernels.benchmark.shapes import Implementation
from kernels.benchmark.timing import Call, Subject, directions

DIRECTIONS = ("forward", "backward", "both")


def compare(
    implementations: Mapping[str, Implementation],
    check: Callable[[Implementation, Any], None],
    sets: Sequence[Any],
    shape: object,
    device: str,
    rounds: int,
) -> dict[tuple[str, str], Subject]:
    """Each implementation on the sets of inputs, which take turns, by name and direction.

    One that `check` finds wrong ends the program; the one called `compiled` is left out where it can't be compiled.
    """
    subjects: dict[tuple[str, str], Subject] = {}
    for name, implementation in implementations.items():
        try:
            check(implementation, sets[0])
        except AssertionError as error:
            sys.exit(f"error: {name} is wrong, so nothing is timed: {error} ({shape})")
        except RuntimeError as error:
            if name != "compiled":
                raise
            print(f"compiled is left out, torch.compile fails: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        eager = [directions(implementation, inputs) for inputs in sets]
        for direction in DIRECTIONS:

            def graphed(implementation: Implementation = implementation, direction: str = direction) -> list[Call]:
                drawn = [implementation.draw(inputs) if implementation.draw else None for inputs in sets]
                return [directions(implementation, *each)[direction] for each in zip(sets, drawn, strict=True)]

            calls = [each[direction] for each in eager]
            subjects[name, direction] = Subject(f"{name} {direction}", calls, graphed, device)
    for _ in range(rounds):
        for subject in subjects.values():
            subject.sample()
    return subjects


def save(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file; one that can't be written ends the program with one line."""
    try:
        write(path)
    except OSError as error:
        sys.exit(f"error: {path} can't be written: {error.strerror}")
