"""One ending after another."""

import random
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.kill.endings import ENDINGS, end
from tests.kill.training import SAVE_STEP, Training

REPEATS = 1500  # of each scene's sentences in the second training: preparing them takes a second or two


def rounds(times: int, seed: int, names: Sequence[str] = tuple(ENDINGS)) -> Iterator[str]:
    """A line for each ending. The named ones take turns; one that came too late is tried again.

    Raises:
        AssertionError: if one leaves something, or a training doesn't come to what it has to.
    """
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="clipvil-kill-") as folder:
        # Ten micro-batches an epoch, of which one is left over; and one part of a long epoch.
        flags = ["--epochs", "3", "--gradient_accumulation_steps", "3", "--sentences_per_image", "2"]
        short = Training(Path(folder, "short"), 1, flags)
        long = Training(Path(folder, "long"), REPEATS, ["--max_steps", "12"])
        yield f"undisturbed, the trainings take {short.whole:.1f} and {long.whole:.1f} s"
        hits, misses, ends = Counter[str](), 0, 0
        while (number := hits.total()) < times:
            training, name = (short, long)[draw.random() < 0.5], names[number % len(names)]
            unprepared = training is long and draw.random() < 0.5
            if unprepared:
                shutil.rmtree(training.root / "cache", ignore_errors=True)
            ending = end(training, name, draw)
            reported, saved = training.steps()
            assert reported - saved <= 2 * SAVE_STEP, f"{reported} steps were done, the newest checkpoint is of {saved}"
            if ending.hit:
                hits[name] += 1
                state = ", without prepared annotations" if unprepared else ""
                yield f"{number + 1}. {ending.text}{state}: {saved} of {reported} steps are saved"
            else:  # the training had ended by itself
                misses += 1
                assert misses <= times + 10, f"{misses} of {misses + number} trainings ended before they were disturbed"
            if training.has_ended():
                training.check_the_end()
                ends += 1
        for training in (short, long):
            if training.output.exists():
                training.check_the_end()
                ends += 1
        yield ", ".join(f"{name} {count}" for name, count in hits.items())
        yield f"{ends} trainings came to their end, each equal to the undisturbed one"
