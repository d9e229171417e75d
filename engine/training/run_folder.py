"""The folder of a run: one run at a time, and no other's checkpoints."""

import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

from engine.checkpoint.manifest import MANIFEST, complete_checkpoints, has_checkpoints, sweep
from engine.configuration.flags import TrainingConfig
from engine.configuration.recipes import to_yaml
from engine.errors import UserError
from engine.files import only_here
from engine.provenance.history import LOCK
from engine.training.preemption import GRACE

RUN_ID = ".run_id"  # what W&B and Comet know the run by
SAVE = "SAVE"  # a file by which somebody asks a running training for a checkpoint


class RunFolder:
    """`--output`: config.yaml, metrics.jsonl, checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: IO[bytes] | None = None

    def check(self, *, resume: bool) -> None:
        """Raises UserError if a run's checkpoints are here that this run isn't meant to go on from."""
        found = [*complete_checkpoints(self.path), *sorted(path.parent for path in self.path.glob(f"[!.]*/{MANIFEST}"))]
        if not resume and found:
            raise UserError(
                f"--output {self.path} holds a run, up to {found[0].name}; add --resume auto to go on from there, "
                "choose another folder, or remove it"
            )

    def check_unused(self) -> None:
        """Raises UserError if another process runs in this folder."""
        if (lock := self.path / LOCK).exists():
            with lock.open("ab") as file:
                only_here(file, self.path)

    def claim(self, config: TrainingConfig) -> None:
        """Keep other runs out until this process ends, and remove what an earlier one left unfinished.

        A run that goes on from another's checkpoint waits until that one, which may be saving its last, has ended.

        Raises:
            UserError: if the folder can't be written, a run that uses it doesn't end, or it holds a run by now that
                this one isn't meant to go on from.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self.lock = (self.path / LOCK).open("ab")
            if config.resume is None:
                only_here(lock, self.path)
            else:
                _wait(lambda: only_here(lock, self.path), f"waiting for another run to leave {self.path}")
            self.check(resume=config.resume is not None)  # the checks before the lock may have come too early
            sweep(self.path)
            with suppress(OSError):  # as when it is a folder; the saver tells
                (self.path / SAVE).unlink(missing_ok=True)  # it asked an earlier run
            if config.resume is None or not has_checkpoints(self.path):
                for name in ("metrics.jsonl", RUN_ID):
                    (self.path / name).unlink(missing_ok=True)
                drop_events(self.path / "tensorboard")
                drop_csv(self.path / "csv")
        except OSError as error:
            raise UserError(f"--output {self.path} can't be written: {error.strerror}; choose another folder") from None

    def leave(self) -> None:
        """Let others in."""
        if self.lock is not None:
            self.lock.close()

    def write_config(self, config: TrainingConfig) -> None:
        """Leave the flags as a recipe.

        Raises:
            UserError: if the disk is full.
        """
        try:
            (self.path / "config.yaml").write_text(to_yaml(config))
        except OSError as error:
            raise UserError(f"--output {self.path} can't be written: {error.strerror}; choose another folder") from None


def drop_events(folder: Path) -> None:
    """Remove TensorBoard's files. The last one is emptied: a TensorBoard that reads it would stop if it were gone."""
    paths = sorted(folder.glob("events.out.tfevents.*"))
    for path in paths[:-1]:
        path.unlink()
    for path in paths[-1:]:
        os.truncate(path, 0)


def drop_csv(folder: Path) -> None:
    for path in folder.glob("*.csv"):
        path.unlink()


def _wait(attempt: Callable[[], None], message: str) -> None:
    """A run that is being ended still writes its checkpoint."""
    deadline = time.monotonic() + GRACE + 10
    told = False
    while True:
        try:
            return attempt()
        except UserError:
            if time.monotonic() > deadline:
                raise
        if not told:
            print(message, file=sys.stderr, flush=True)
            told = True
        time.sleep(0.2)
