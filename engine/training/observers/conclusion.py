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

    def __init__(self, task: Task[Any], saver: Saver, results: Results, reason: str) -> None:
        """Args:
        reason: why the training ends where it does, unless a signal stops it.
        """
        self.task, self.saver, self.results, self.reason = task, saver, results, reason
        self.folder = saver.checkpoints.folder

    def after_training(self, state: TrainState) -> None:
        self.saver.reporter.say("\n".join(self.lines(state)))

    def lines(self, state: TrainState) -> list[str]:
        saved, stopped, ranks = self.saver.saved, self.saver.stop_requested, self.task.ranks
        lines = [f"stopped after step {state.step}" if stopped else f"done after step {state.step}: {self.reason}"]
        told = {"last report": self.results.train, "best validation": self.results.best}
        if self.results.valid != self.results.best:
            told["last validation"] = self.results.valid
        lines += [f"{name}: {figures(record)}" for name, record in told.items() if record]
        if not stopped and (lesson := not_learnt(self.results)):
            lines.append(f"note: {lesson}")
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


def figures(record: Mapping[str, Any]) -> str:
    """The score where there is one, the total loss, those of the tasks where there are several, and how far it was."""
    losses = [name for name in record if name.endswith("_loss")]
    names = [*([SCORE] if SCORE in record else []), "loss", *(losses if len(losses) > 1 else [])]
    return ", ".join(f"{name} {record[name]:.4g}" for name in names) + f", after epoch {record['epoch']:.4g}"


def not_learnt(results: Results) -> str:
    """What it means that BEST scores nothing, or no more than the model of the first validation; "" otherwise."""
    best, first = results.best, results.first
    if SCORE not in best or SCORE not in first:
        return ""
    if best[SCORE] == 0:
        return (
            "BEST scores 0: it has no answer of the validation right, and is only the latest of models that have none; "
            "train for longer, from a pre-trained model (--load_lxmert or --load_lxmert_qa), unless the line of that "
            "split says that its answers are not in the table"
        )
    if best[SCORE] <= first[SCORE] and results.valid != first:
        return (
            f"BEST scores no more than the first model that was validated, after epoch {first['epoch']:.4g}: what was "
            "trained since doesn't show in the answers; try another --lr, or more data"
        )
    return ""


def with_resume(argv: Sequence[str]) -> list[str]:
    """This program's own flags, to go on where it stopped."""
    own = [word for word in argv if not word.startswith(tuple(f"{flag}=" for flag in LOCAL_RANK))]
    return own if any(word.split("=")[0] == "--resume" for word in own) else [*own, "--resume", "auto"]
