"""How a program ends: with one line, at once, and with its workers."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from engine.distributed.ranks import Ranks
from engine.distributed.workers import end_workers
from engine.errors import UserError


def has_lost_a_rank(error: Exception) -> bool:
    """Whether a collective failed because another rank is gone."""
    import torch.distributed as dist  # here, because flags are checked before anything heavy is imported

    return isinstance(error, dist.DistError) or "gloo/transport" in str(error)


@contextmanager
def telling_errors(ranks: Ranks) -> Iterator[None]:
    """What ends a program under a launcher becomes one line and an exit code."""
    try:
        yield
    except UserError as error:
        exit_with(error)
    except RuntimeError as error:
        if not has_lost_a_rank(error):
            raise
        leave(f"rank {ranks.rank} ends, another one is gone", code=1)
    except KeyboardInterrupt:
        sys.exit(130)


def exit_with(error: UserError) -> NoReturn:
    """Say what was wrong, in one line, and leave with code 2 at once: other threads and ranks must not hold us.

    What stops every rank alike is said once: rank 0 leaves, and the launcher ends the others while they wait.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if Ranks.from_environment().rank != 0:
        time.sleep(3)
    leave(f"error: {error}", code=2)


def leave(message: str, code: int) -> NoReturn:
    """End this process and its workers, whatever else it still does."""
    print(f"\n{Path(sys.argv[0]).name}: {message}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    end_workers()
    os._exit(code)
