"""Steps timed in turns, the memory that they take, and the check that comes before."""

import gc
import statistics
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from engine.benchmark.counting import Memory
from engine.benchmark.machine import synchronise
from engine.benchmark.recorded import Quantity, RecordedPass, gradients_of, read_passes
from engine.benchmark.step.parts import PARTS, Recorder
from engine.errors import UserError
from engine.model.pretraining import ClipVilForPretraining

WARM_UP = 3  # steps: the first ones find memory, choose algorithms, and make AdamW's moments


class Subject(Protocol):
    """What is measured: a model with all that a step needs."""

    recorder: Recorder

    def step(self) -> None: ...
    def close(self) -> None: ...  # nothing holds its memory then but who holds the subject


AnySubject = TypeVar("AnySubject", bound=Subject)


@dataclass
class Samples:
    """Seconds of a step each; `host` until the last kernel is launched, `parts` of steps that are not in `seconds`."""

    seconds: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)
    parts: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def quantile(self, share: float) -> float:
        return torch.tensor(self.seconds).quantile(share).item()

    def median_parts(self) -> dict[str, float]:
        return {part: statistics.median(values) for part, values in self.parts.items()}


def sample(step: Callable[[], object], samples: Samples, device: str, steps: int) -> None:
    """Several steps on end, as training runs them: on a GPU the host may be ahead of the device."""
    synchronise(device)
    started = time.perf_counter()
    for _ in range(steps):
        step()
    launched = time.perf_counter()
    synchronise(device)
    samples.seconds.append((time.perf_counter() - started) / steps)
    samples.host.append((launched - started) / steps)


def sample_parts(subject: Subject, samples: Samples, device: str, steps: int) -> None:
    synchronise(device)
    subject.recorder.start()
    for _ in range(steps):
        subject.step()
    for part, seconds in subject.recorder.stop().items():
        samples.parts[part].append(seconds / steps)


def measure(subjects: Mapping[str, Any], device: str, rounds: int, steps: int) -> dict[str, Samples]:
    """Subjects and functions in turns, so that what else the machine does meets them alike; functions have no parts.

    The steps whose parts are noted and those that are timed whole take turns in being the first after another subject.
    """
    found = {name: Samples() for name in subjects}
    for number in range(rounds):
        for name, subject in subjects.items():
            step = subject if callable(subject) else subject.step
            both = [partial(sample, step, found[name], device, steps)]
            if not callable(subject):
                both.append(partial(sample_parts, subject, found[name], device, steps))
            for each in both if number % 2 else reversed(both):
                each()
    return found


def built(make: Callable[[], AnySubject], device: str) -> tuple[AnySubject, int]:
    """A subject that is warm, and its peak of memory: what it keeps, and what a step needs beside.

    Raises:
        OutOfMemoryError: with nothing of the subject left.
    """
    with Memory(device) as kept:
        subject = make()
        warm_up(subject, WARM_UP - 1)
        gc.collect()  # what is only unreachable isn't kept
    with Memory(device) as step:
        warm_up(subject, 1)
    return subject, kept.kept + step.peak


def warm_up(subject: Subject, steps: int) -> None:
    try:
        for _ in range(steps):
            subject.step()
    except torch.OutOfMemoryError:
        subject.close()
        raise


def recorded(folder: Path) -> list[RecordedPass]:
    """Raises UserError where a file is missing or damaged."""
    try:
        return read_passes(folder)
    except (OSError, EOFError, ValueError, LookupError, zipfile.BadZipFile) as error:
        raise UserError(f"--golden {folder} can't be read as recorded numbers ({error!r}); copy it again") from None


def check(
    name: str, change: Callable[[ClipVilForPretraining], object], folder: Path, device: str, passes: int | None = None
) -> int:
    """Hold a changed model against passes recorded from the original; gives the number of quantities.

    Raises:
        UserError: with each quantity beyond its tolerance, or where the folder can't be read.
    """
    backends = torch.backends
    tf32 = backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32
    backends.cuda.matmul.allow_tf32 = backends.cudnn.allow_tf32 = False  # the tolerances are those of fp32
    quantities: list[Quantity] = []
    for each in recorded(folder)[:passes]:
        model = each.model(device)
        change(model)
        output = model(**each.inputs(device))
        output.loss.backward()
        quantities += each.compare(output, gradients_of(model))
    backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32 = tf32
    beyond = [f"\n    {quantity}" for quantity in quantities if quantity.is_beyond]
    if beyond:
        raise UserError(f"{name} is off the recorded numbers, so nothing is timed:{''.join(beyond)}")
    return len(quantities)
