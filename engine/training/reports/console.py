"""What a person sees of a training: a live line on a terminal, and reports; plain lines everywhere else."""

import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from tqdm import tqdm
from tqdm.std import Bar as Meter  # type: ignore[attr-defined]  # which its stubs leave out

from engine.progress import is_terminal

ZERO_COUNTS = ("skipped_steps", "unreadable_images")  # not worth a word while they are 0
METER = 20  # columns of the drawn bar at most


class Field(NamedTuple):
    """A part of the live line. Where there is no room for all, those of the highest numbers are left out first."""

    number: int
    text: str


class LiveLine(tqdm):
    """tqdm's clock and cursor around a line of our own, which never wraps: it has as many fields as fit."""

    fields: Sequence[Field] = ()

    def __str__(self) -> str:
        done = min(1.0, self.n / self.total) if self.total else 1.0
        return live_line([*self.fields], done, columns() - 1, ascii_only=bool(self.format_dict["ascii"]))


class Console:
    """Rank 0's standard output and, where both streams are a terminal's, the live line on standard error.

    There are no colours anywhere, and no control characters but the live line's.
    """

    def __init__(self, rank: int, total_steps: int, epochs: int) -> None:
        self.rank, self.total_steps, self.epochs = rank, total_steps, epochs
        self.is_live = rank == 0 and is_terminal(sys.stdout) and is_terminal(sys.stderr)
        self.line = LiveLine(total=total_steps, disable=not self.is_live, mininterval=1)
        self.report: Mapping[str, Any] = {}  # the latest of the training

    def restart(self, step: int) -> None:
        """Go on behind this step."""
        self.line.initial = self.line.n = step

    def advance(self, step: int, epoch: float) -> None:
        if self.is_live:
            self.line.fields = live_fields(self.report, step, self.total_steps, epoch, self.epochs)
            self.line.update(step - self.line.n)

    def hear(self, record: Mapping[str, Any], text: str = "") -> None:
        """Show a record, with a text for the eye below it."""
        if record["kind"] == "train":
            self.report = record
        self.say(as_line(record) + (f"\n{text}" if text else ""))

    def say(self, text: str) -> None:
        if self.rank == 0:
            tqdm.write(fitted(text) if self.is_live else text)
            sys.stdout.flush()

    def close(self) -> None:
        """Leave nothing of the live line."""
        self.line.leave = False
        self.line.close()


def say_first(text: str) -> None:
    """Print a text before there is a training to show; rank 0 alone calls it."""
    print(fitted(text) if is_terminal(sys.stdout) else text, flush=True)


def columns() -> int:
    return shutil.get_terminal_size().columns


def live_fields(report: Mapping[str, Any], step: int, total_steps: int, epoch: float, epochs: int) -> list[Field]:
    """In the order in which they are shown; before the first report there is little to show."""
    fields = [Field(4, f"epoch {epoch:.2f}/{epochs}"), Field(0, f"step {step:,}/{total_steps:,}")]
    if not report:
        return fields
    losses = [f"{name.removesuffix('_loss')} {value:.3g}" for name, value in report.items() if name.endswith("_loss")]
    return [
        *fields,
        Field(1, f"loss {report['loss']:.3g}"),
        *([Field(5, ", ".join(losses))] if len(losses) > 1 else []),
        Field(3, f"{report['images_per_second']:.3g} images/s"),
        Field(6, f"data {report['data_wait']:.0%}"),
        Field(7, f"{report['peak_memory_gb']:.1f} GB"),
        Field(2, f"{tqdm.format_interval(report['seconds_left'])} left"),
    ]


def live_line(fields: list[Field], done: float, width: int, *, ascii_only: bool = False) -> str:
    """The fields that fit into `width` columns and, if there is room, a drawn bar of the share that is done."""
    separator = " | "
    while len(fields) > 1 and len(separator.join(field.text for field in fields)) > width:
        fields = [field for field in fields if field.number != max(other.number for other in fields)]
    text = separator.join(field.text for field in fields)[:width]
    room = min(METER, width - len(text) - 1)
    if room < METER // 2:
        return text
    return f"{Meter(done, room, charset=Meter.ASCII if ascii_only else Meter.UTF)} {text}"


def fitted(text: str, width: int | None = None) -> str:
    """A text whose long lines are broken between their fields, behind commas and semicolons; longer fields stay."""
    width = width or columns()
    lines: list[str] = []
    for line in text.split("\n"):
        first, *others = re.split(r"(?<=[,;]) ", line) if len(line) > width else [line]
        lines.append(first)
        for field in others:
            if len(lines[-1]) + 1 + len(field) <= width:
                lines[-1] += f" {field}"
            else:
                lines.append(f"  {field}")
    return "\n".join(lines)


def as_line(record: Mapping[str, Any]) -> str:
    """A record for the eye: three or four significant digits, no zero counts, no tables, nothing twice."""
    if record["kind"] == "warning":
        return f"warning: {record['text']}"
    left_out = {"kind", *(name for name in ZERO_COUNTS if record.get(name) == 0)}
    if record.get("samples_per_second") == record.get("images_per_second"):
        left_out.add("samples_per_second")
    shown = {k: v for k, v in record.items() if k not in left_out and not isinstance(v, Mapping)}
    values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items())
    return f"{record['kind']}: " + ", ".join(values)
