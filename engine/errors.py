"""The one exception that a user is meant to read."""

from typing import Any


class UserError(Exception):
    """Something that the person who started the program can mend.

    The message is one line: what was wrong, what was found, what to do. Where several things are wrong before a
    training starts, it is a list of such lines. Programs print it and exit with code 2.
    """


def other_numbers(libraries: str, what: str, found: Any, recorded: Any) -> UserError:
    """What to say of installed libraries that don't give what the tested versions give."""
    return UserError(
        f"{libraries} gives {found} for {what}, where the tested versions give {recorded}; a model would be trained or "
        "asked with other numbers than it should be, so install versions that docs/versions.md lists, such as those of "
        "constraints.txt"
    )


def numbered(problems: list[str]) -> str:
    """Several problems below a line that says what they are about, one line each."""
    return "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))
