"""The one exception that a user is meant to read."""


class UserError(Exception):
    """Something that the person who started the program can mend.

    The message is one line: what was wrong, what was found, what to do. Programs print it and exit with code 2.
    """
