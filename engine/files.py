"""Files: written whole or not at all, by one process at a time, with progress and with errors that help."""

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from engine.errors import UserError
from engine.progress import Bar

NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def replacing(path: Path, mode: str) -> Iterator[IO[Any]]:
    """A file to write that takes the place of an older one when it is whole, and on the disk."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open(mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def _replacing_text(path: Path) -> Iterator[IO[str]]:
    """As `replacing`, in a folder that need not be there, with one line for what keeps it from being written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, "w") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}); free space or choose another folder") from None


def write_json(path: Path, value: Any, *, indent: int | None = None) -> None:
    """Write a JSON file, on the disk before it takes the place of an older one.

    Raises:
        UserError: if it can't be written; an older file is as it was.
    """
    with _replacing_text(path) as file:
        json.dump(value, file, indent=indent)
        file.write("\n")


def write_json_list(path: Path, items: Iterable[Any]) -> int:
    """Write a JSON list as its items come, one a line: they may be more than memory holds. As `write_json` does.

    Returns:
        how many there were.
    """
    written = 0
    with _replacing_text(path) as file:
        for item in items:
            file.write((",\n" if written else "[\n") + json.dumps(item))
            written += 1
        file.write("\n]\n" if written else "[]\n")
    return written


def check_writable(path: Path) -> None:
    """Raises UserError if a file can't be written; makes an empty one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserError(f"{path} can't be written ({error.strerror}); choose another place") from None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """One line for what the disk has against it, kept apart from what the network has."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            reason = "the disk is full; what is there is kept: free some space"
        else:
            reason = f"can't be written ({error.strerror}); mend that"
        raise UserError(f"{path}: {reason} and run the same command again") from None


def only_here(file: IO[bytes], path: Path) -> None:
    """Only one process at a time; the lock goes with the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"{path} is in use by another process; wait for it, or stop it") from None
    except OSError:
        pass  # Some network file systems know no locks.


def byte_bar(name: str, total: int | None, have: int, progress: bool) -> Bar:
    return Bar(desc=name, total=total, initial=have, unit="B", unit_scale=True, disable=not progress)
