"""run.json: how each start of a run came about, and how it ended.

    {"starts": [the first start, ..., the newest]}

A start is written when all checks have passed, and again at its end. One that was killed never wrote its end: `exit`
still says RUNNING, and who reads it can't tell it from one that runs, unless the lock on the run's folder tells.
"""

import fcntl
import json
from pathlib import Path
from typing import Any

from engine.errors import UserError

RUN, STARTS, RUNNING = "run.json", "starts", "running"
LOCK = ".lock"  # in a run's folder; a training holds it while it uses the folder


def read_starts(path: Path) -> list[dict[str, Any]]:
    """The starts of a run, the first one first.

    Raises:
        FileNotFoundError: if there is no such file.
        UserError: if it isn't what was written.
    """
    try:
        starts = json.loads(path.read_text())[STARTS]
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or can't be read ({type(error).__name__}: {error})") from None
    if not isinstance(starts, list) or not starts or not all(isinstance(start, dict) for start in starts):
        raise UserError(f"{path} is damaged or can't be read (it lists no starts)")
    return starts


def is_in_use(folder: Path) -> bool:
    """Whether a training holds the lock on a run's folder, as far as its file system tells this machine."""
    try:
        with (folder / LOCK).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # for a moment; a start that meets it waits
    except BlockingIOError:
        return True
    except OSError:  # there is no such file, or its file system knows no locks
        pass
    return False
