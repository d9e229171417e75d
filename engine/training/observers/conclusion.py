"""The last lines of a training: what it came to, where everything lies, and what to type next."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.configuration.parsing import LOCAL_RANK
from engine.distributed.launchers import command_line
from engine.tasks.task import Task
from engine.training.loop import Observer, TrainState
from engine.training.observers.reporter import Listener
from engine.training.observers.saver import Saver
from engine.training.observers.validator import BEST, LAST


class Conclusion(Observer, Listener):
    """Comes last among the observers, when everything has been saved.

    Args:
        metric: of the validation, the higher the better; None for its loss.
    """

    def __init__(self, saver: Saver, task: Task[Any], folder: Path, metric: str | None) -> None:
        self.saver, self.task, self.folder, self.metric = saver, task, folder, metric
        self.latest: Mapping[str, Any] | None = None
        self.best: Mapping[str, Any] | None = None

    def hear(self, record: Mapping[str, Any]) -> None:
        if record["kind"] == "train":
            self.latest = record
        elif record["kind"] == "valid" and (self.best is None or self._goodness(record) > self._goodness(self.best)):
            self.best = record

    def restart(self, records: Sequence[Mapping[str, Any]]) -> None:
        for record in records:
            self.hear(record)

    def after_training(self, state: TrainState) -> None:
        self.saver.reporter.say("\n".join(self.lines(state, self.saver.saved, stopped=self.saver.stop_requested)))

    def lines(self, state: TrainState, saved: str, *, stopped: bool) -> list[str]:
        """What is said, `saved` being the name of the newest checkpoint."""
        lines = [f"{'stopped' if stopped else 'done'} after step {state.step}"]
        if self.latest is not None:
            lines[0] += ", last report: " + ", ".join(losses(self.latest))
        if self.best is not None:
            name = self.metric or "loss"
            lines.append(f"best validation: {name} {self.best[name]:.4g}, after epoch {self.best['epoch']}")
        best = next((self.folder / name for name in (BEST, LAST) if (self.folder / name).is_dir()), None)
        kept = [name for name in (saved, f"{saved}_LXRT.pth", BEST, LAST) if name and (self.folder / name).exists()]
        lines.append(f"in {self.folder}: {', '.join([*kept, 'metrics.jsonl', 'config.yaml'])}")
        if stopped:
            lines.append(f"to go on: {command_line(with_resume(sys.argv), self.task.ranks)}")
        elif saved:
            command = self.task.next_command(self.folder / saved, best)
            lines.append(f"next: {command_line(command, self.task.ranks)}")
        return lines

    def _goodness(self, record: Mapping[str, Any]) -> float:
        return float(record[self.metric]) if self.metric is not None else -float(record["loss"])


def losses(record: Mapping[str, Any]) -> list[str]:
    """The total, and those of the tasks where there are several."""
    shown = [name for name in record if name.endswith("_loss")]
    return [f"{name} {record[name]:.4g}" for name in ("loss", *(shown if len(shown) > 1 else ()))]


def with_resume(argv: Sequence[str]) -> list[str]:
    """This program's own command line, which goes on where it stopped."""
    own = [word for word in argv if not word.startswith(tuple(f"{flag}=" for flag in LOCAL_RANK))]
    return own if any(word.split("=")[0] == "--resume" for word in own) else [*own, "--resume", "auto"]
