"""The entry of a start in run.json: written as it begins, and as it ends."""

import hashlib
import json
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from engine.configuration.flags import TrainingConfig
from engine.data.splits import Split
from engine.distributed.launchers import launcher_command
from engine.errors import UserError
from engine.files import write_json
from engine.provenance.environment import by_host, checkout, place, versions
from engine.provenance.history import RUN, RUNNING, STARTS, read_starts
from engine.provenance.results import Results


def describe_start(
    config: TrainingConfig,
    settings: dict[str, Any],
    device: torch.device,
    splits: dict[str, Split | None],
    answers: list[str] | None,
    came_from: str | None,
) -> dict[str, Any]:
    """What is known of a start before it trains. All ranks call it, once they have joined.

    Args:
        settings: DeepSpeed's.
        splits: by what they are used for.
        answers: of the answer head, if there is one.
        came_from: the checkpoint that it goes on from, or whose weights it takes.
    """
    places: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(places, place(dist.get_rank(), device))
    if dist.get_rank() != 0:
        return {}
    data: dict[str, Any] = {use: split.describe() for use, split in splits.items() if split is not None}
    if answers is not None:
        content = json.dumps(answers).encode()
        data["answers"] = {"count": len(answers), "sha256": hashlib.sha256(content).hexdigest()}
    return {
        "command": {"argv": sys.argv, "launcher": launcher_command()},
        "rank_0": {"host": socket.gethostname(), "pid": os.getpid()},
        "configuration": asdict(config),
        "deepspeed": settings,
        "code": checkout(),
        "versions": versions(),
        "hosts": by_host(places),
        "seeds": {"seed": config.seed},
        "data": data,
        "came_from": came_from,
    }


class RunRecord:
    """The entry of this start in run.json. Rank 0 writes; the others' does nothing.

    As a context it surrounds all that a start does, and writes the error that ends it.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        self.path, self.rank = folder / RUN, rank
        self.results = Results()
        self.state: Any = None  # the training's, whose `step` is the last one
        self.starts: list[dict[str, Any]] = []

    def begin(self, start: dict[str, Any], *, resumed: bool) -> None:
        """Write that this start began; earlier ones stay if it goes on from their checkpoints.

        Raises:
            UserError: if that can't be written.
        """
        if self.rank != 0:
            return
        self.began = time.monotonic()
        times = {"start": now(), "end": None, "exit": RUNNING, "seconds": None, "step": None}
        starts = [*(self._earlier() if resumed else []), times | start | {"results": None}]
        write_json(self.path, {STARTS: starts}, indent=1)
        self.starts = starts

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.end(reason_of(error))

    def end(self, reason: str) -> None:
        """Write how this start ended. A disk that is full must not hide the error that ends the run."""
        if not self.starts:  # it never began, or has ended, or this is another rank
            return
        self.starts[-1] |= {
            "end": now(),
            "exit": reason,
            "seconds": round(time.monotonic() - self.began, 3),
            "step": self.state.step if self.state is not None else None,
            "results": self.results.to_dict(),
        }
        try:
            write_json(self.path, {STARTS: self.starts}, indent=1)
        except UserError as problem:
            print(f"warning: the end of this run is not recorded: {problem}", file=sys.stderr, flush=True)
        self.starts = []

    def _earlier(self) -> list[dict[str, Any]]:
        """The starts so far. A file that can't be read is moved aside: it must not keep a run from going on."""
        try:
            return read_starts(self.path)
        except FileNotFoundError:  # of an earlier version
            return []
        except UserError as error:
            aside = self.path.with_name(f"{RUN}.damaged")
            print(f"warning: {error}; it is moved to {aside.name}, and a new one begins", flush=True)
            with suppress(OSError):  # if writing the new one fails, too, that tells
                self.path.replace(aside)
            return []


def reason_of(error: BaseException) -> str:
    """Why a run ended that didn't come to its end, in one line."""
    if isinstance(error, UserError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def now() -> str:
    """The time in UTC, such as 2026-01-31T12:00:00+00:00."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
