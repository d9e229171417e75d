"""The last lines of a training: what it came to, where everything lies, and what to type next."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from engine.checkpoint.manifest import BEST, LAST
from engine.commands import own_words, program_words
from engine.configuration.parsing import LOCAL_RANK
from engine.distributed.launchers import command_line
from engine.provenance.results import SCORE, Results
from engine.tasks.task import Task
from engine.training.loop import Observer, TrainState
from engine.training.observers.saver import Saver


class Conclusion(Observer):
    """Comes last among the observers, when everything has been saved."""

    def __init__(self, task: Task[Any], saver: Saver, results: Results) -> None:
        self.task, self.saver, self.results = task, saver, results
        self.folder = saver.checkpoints.folder

    def after_training(self, state: TrainState) -> None:
        self.saver.reporter.say("\n".join(self.lines(state)))

    def lines(self, state: TrainState) -> list[str]:
        saved, stopped, ranks = self.saver.saved, self.saver.stop_requested, self.task.ranks
        lines = [f"{'stopped' if stopped else 'done'} after step {state.step}"]
        if latest := self.results.train:
            lines[0] += ", last report: " + ", ".join(losses(latest))
        if validation := self.results.best:
            name = SCORE if SCORE in validation else "loss"
            lines.append(f"best validation: {name} {validation[name]:.4g}, after epoch {validation['epoch']:.4g}")
        best = next((self.folder / name for name in (BEST, LAST) if (self.folder / name).is_dir()), None)
        kept = [name for name in (saved, f"{saved}_LXRT.pth", BEST, LAST) if name and (self.folder / name).exists()]
        lines.append(f"in {self.folder}: {', '.join([*kept, 'metrics.jsonl', 'config.yaml', 'run.json'])}")
        if stopped:
            lines.append(f"to go on: {command_line([*own_words(), *with_resume(sys.argv[1:])], ranks)}")
        elif saved:
            name, *flags = self.task.next_command(self.folder / saved, best)
            program = program_words(name, with_launcher=ranks.world_size > 1)
            lines.append(f"next: {command_line([*program, *flags], ranks)}")
        return lines


def losses(record: Mapping[str, Any]) -> list[str]:
    """The total, and those of the tasks where there are several."""
    shown = [name for name in record if name.endswith("_loss")]
    return [f"{name} {record[name]:.4g}" for name in ("loss", *(shown if len(shown) > 1 else ()))]


def with_resume(argv: Sequence[str]) -> list[str]:
    """This program's own flags, to go on where it stopped."""
    own = [word for word in argv if not word.startswith(tuple(f"{flag}=" for flag in LOCAL_RANK))]
    return own if any(word.split("=")[0] == "--resume" for word in own) else [*own, "--resume", "auto"]
