"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something that the person who started the program can mend.

    The message is one line: what was wrong, what was found, what to do. Where several things are wrong before a
    training starts, it is a list of such lines. Programs print it and exit with code 2.
    """


def numbered(problems: list[str]) -> str:
    """Several problems below a line that says what they are about, one line each."""
    return "".join(f"\n  {number}. {problem}" for number, problem in enumerate(problems, 1))
