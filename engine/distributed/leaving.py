"""How a program ends: with one line, at once, and with its workers."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from engine.commands import program_name
from engine.distributed.launchers import launchers
from engine.distributed.workers import end_workers
from engine.errors import UserError
from engine.files import NO_SPACE
from engine.printing import reader_is_gone

INTERRUPTED, NO_READER = 130, 141  # exit codes, as shells give them for SIGINT and SIGPIPE
# What a disk refuses, wherever a program meets it, and what to do.
OF_THE_DISK = {
    **dict.fromkeys(NO_SPACE, "make room, or have it written elsewhere"),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "start from a folder that you may write to, or name one"),
}
LONGEST_END = 30  # seconds that are granted to a launcher
SPEAKER = """
import select, sys
select.select([int(sys.argv[1])], [], [], float(sys.argv[2]))
sys.stderr.write(sys.argv[3])
"""


def has_lost_a_rank(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone."""
    import torch.distributed as dist  # here, because flags are checked before anything heavy is imported

    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


@contextmanager
def telling_errors() -> Iterator[None]:
    """What ends a program under a launcher becomes one line and an exit code."""
    try:
        yield
        print(end="", flush=True)  # what nobody reads any more is noticed here, not when Python ends
    except UserError as error:
        exit_with(error)
    except RuntimeError as error:
        if not has_lost_a_rank(error):
            raise
        say_last(f"rank {os.environ.get('RANK', '0')} ends, another one is gone")
        leave(code=1)
    except BrokenPipeError:
        if not reader_is_gone():
            raise
        leave(code=NO_READER)
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        exit_with(UserError(f"{error.filename or 'what is written'}: {error.strerror}; {OF_THE_DISK[error.errno]}"))
    except KeyboardInterrupt:
        leave(code=INTERRUPTED)


def exit_with(error: UserError) -> NoReturn:
    """Say what was wrong, in one line, and leave with code 2 at once: other threads and ranks must not hold us.

    What stops every rank alike is said once: rank 0 leaves, and the launcher ends the others while they wait.
    """
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if os.environ.get("RANK", "0") != "0":
        time.sleep(3)
    say_last(f"error: {error}")
    leave(code=2)


def say(message: str) -> None:
    """Print one line to standard error, under the program's name."""
    print(f"\n{program_name()}: {message}", file=sys.stderr, flush=True)


def say_last(message: str) -> None:
    """The same; under a launcher, when that has ended and said all that it has to say.

    deepspeed writes several lines behind the last one of a rank that failed, and torchrun thirty, which hide it.
    """
    try:
        ending = os.pidfd_open(next(launchers()))
    except (StopIteration, OSError):  # there is none, or none any more
        return say(message)
    sys.stderr.flush()
    line = f"\n{program_name()}: {message}\n"
    speaker = [sys.executable, "-I", "-S", "-c", SPEAKER, str(ending), str(LONGEST_END), line]
    subprocess.Popen(speaker, pass_fds=[ending], start_new_session=True)  # the launcher may end what is in its own


def leave(code: int) -> NoReturn:
    """End this process and its workers, whatever else it still does."""
    with suppress(OSError):  # nobody may be there to read it
        sys.stdout.flush()
    end_workers()
    os._exit(code)
