"""Signs that a training isn't well, found in its reports. docs/runs.md has the rules; the numbers stand here.

A warning is told once, until what it is about is over; then it may come again.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from engine.training.reports.pace import Share

HISTORY = 50  # reports that a median is taken of, the latest that were in order
ENOUGH = 10  # reports before there is a median to compare with
# Reports that have to show a sign, and steps between the first and the last of them, where a single one may be chance
# or a checkpoint being written.
IN_A_ROW, LASTING_STEPS = 3, 50
EXPLODED = 10.0  # times the median
SLOWED = 2 / 3  # of the median speed
SKIPPED_SHARE, SKIPPED_STEPS = 0.1, 200  # fp16's loss scale falls up to 16 times before it has settled
BEHIND, NOTICEABLE = 1.5, 0.1  # times the others' median, and by this share of a micro-batch
AT_CHANCE, LEARNT_AFTER = 1.1, 1000  # times what a constant guess gets, and steps


class Sign(NamedTuple):
    """Something that a report shows: where, and what to say of it."""

    name: str
    text: str
    rank: int | None = None  # None: all of them alike

    @property
    def key(self) -> tuple[str, int | None]:
        return self.name, self.rank


class Level:
    """A figure's median over the reports in which it was in order."""

    def __init__(self) -> None:
        self.values: deque[float] = deque(maxlen=HISTORY)

    def leaves(self, value: float, *, above: float = math.inf, below: float = 0.0) -> float | None:
        """The median, if the value is more than `above` or less than `below` times that; else the value counts."""
        if len(self.values) >= ENOUGH:
            median = statistics.median(self.values)
            if not below * median <= value <= above * median:
                return median
        if math.isfinite(value):
            self.values.append(value)
        return None


class Health:
    """Looks at each report of the training, with what each rank did; the same on every rank.

    Args:
        chance: what metrics come to by always giving the most frequent answer, by their names.
        scale_floor: the smallest loss scale of fp16; None in other precisions.
    """

    def __init__(self, chance: Mapping[str, float], scale_floor: float | None = None) -> None:
        self.chance, self.scale_floor = chance, scale_floor
        self.levels = {name: Level() for name in ("loss", "grad_norm", "samples_per_second", "data_wait")}
        self.skipped: deque[tuple[int, int]] = deque(maxlen=SKIPPED_STEPS + 1)  # step, and skipped ones until then
        # Reports in a row that show a sign, and the step of the first of them.
        self.shown: dict[tuple[str, int | None], tuple[int, int]] = {}
        self.told: set[tuple[str, int | None]] = set()

    def restart(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Go on behind these records: losses and gradients stay comparable, speeds on another machine don't."""
        for record in records:
            if record["kind"] == "train":
                for _ in self._figures(record):
                    pass
                self.skipped.append((record["step"], record["skipped_steps"]))

    def warnings(self, record: Mapping[str, Any], shares: Sequence[Share]) -> list[dict[str, Any]]:
        """Records of what has to be told of a report now."""
        at_once = [*self._not_finite(record), *self._loss_scale(record)]
        lasting = [
            *(*self._figures(record), *self._speed(record)),
            *(*self._ranks_behind(shares), *self._nothing_learnt(record)),
        ]
        step = record["step"]
        begun = {sign.key: self.shown.get(sign.key, (0, step)) for sign in lasting}
        self.shown = {key: (count + 1, first) for key, (count, first) in begun.items()}
        signs = at_once + [sign for sign in lasting if self._has_lasted(sign, step)]
        new = [sign for sign in signs if sign.key not in self.told]
        self.told = {sign.key for sign in signs}
        return [warning(step, sign) for sign in new]

    def _has_lasted(self, sign: Sign, step: int) -> bool:
        count, first = self.shown[sign.key]
        return count >= IN_A_ROW and step - first >= LASTING_STEPS

    def _not_finite(self, record: Mapping[str, Any]) -> Iterator[Sign]:
        """In fp16 gradients alone may be infinite, while the loss scale is looked for."""
        if not math.isfinite(record["loss"]):
            cause = (
                "fp16 holds no more than 65,504; train in --bf16, which has fp32's range"
                if self.scale_floor is not None
                else "lower --lr or --sgd_lr, go back to a checkpoint before it; --stop_on nonfinite names the module"
            )
            yield Sign("loss", f"the loss is {record['loss']}: {cause}")
        elif not math.isfinite(record["grad_norm"]) and self.scale_floor is None:
            yield Sign(
                "gradients",
                f"the norm of the gradients is {record['grad_norm']} though the loss is finite: lower --lr or "
                "--sgd_lr; --stop_on nonfinite ends the run there and names the module",
            )

    def _loss_scale(self, record: Mapping[str, Any]) -> Iterator[Sign]:
        if self.scale_floor is None:
            return
        if record["loss_scale"] <= self.scale_floor:
            yield Sign(
                "loss scale",
                f"fp16's loss scale has fallen to its floor of {self.scale_floor:g}, and the next infinite gradient "
                "ends the run: gradients are too large for fp16; train in --bf16, or lower --lr or --sgd_lr",
            )
        self.skipped.append((record["step"], record["skipped_steps"]))
        before = [entry for entry in self.skipped if entry[0] <= record["step"] - SKIPPED_STEPS]
        if not before:
            return
        steps, skipped = record["step"] - before[-1][0], record["skipped_steps"] - before[-1][1]
        if skipped > SKIPPED_SHARE * steps:
            yield Sign(
                "skipped",
                f"{skipped} of the last {steps} steps were skipped for infinite gradients: the loss scale doesn't "
                "settle; train in --bf16, lower --lr or --sgd_lr, or raise fp16.loss_scale_window in "
                "--deepspeed_config",
            )

    def _figures(self, record: Mapping[str, Any]) -> Iterator[Sign]:
        for name, words in (("loss", "the loss"), ("grad_norm", "the norm of the gradients")):
            median = self.levels[name].leaves(record[name], above=EXPLODED)
            if median is not None and math.isfinite(record[name]):
                yield Sign(
                    f"exploded {name}",
                    f"{words} is {record[name]:.4g}, and its median was {median:.4g}: the training diverges, or meets "
                    "other data; lower --lr or --sgd_lr and start again from a checkpoint before it",
                )

    def _speed(self, record: Mapping[str, Any]) -> Iterator[Sign]:
        """Whether a slower loader explains it shows in the wait for data."""
        speed = record["samples_per_second"]
        waits = self.levels["data_wait"].values
        usual_wait = statistics.median(waits) if waits else 0.0
        median = self.levels["samples_per_second"].leaves(speed, below=SLOWED)
        if median is None:
            self.levels["data_wait"].leaves(record["data_wait"])
            return
        if record["data_wait"] - usual_wait > NOTICEABLE:
            cause = (
                f"ranks now wait for data {record['data_wait']:.0%} of the time ({usual_wait:.0%} before); see whether "
                "the disk of the images has slowed down, or raise --num_workers"
            )
        else:
            cause = (
                "not for want of data; see whether other programs use these devices or cores, and whether the devices "
                "run hot (nvidia-smi -q -d PERFORMANCE)"
            )
        yield Sign("speed", f"{speed:.4g} samples/s, and the median was {median:.4g}: {cause}")

    def _ranks_behind(self, shares: Sequence[Share]) -> Iterator[Sign]:
        for rank, share in enumerate(shares):
            others = [*shares[:rank], *shares[rank + 1 :]]
            if not others:
                return
            usual = statistics.median(other.busy for other in others)
            lag = share.busy - usual
            if share.busy <= BEHIND * usual or lag <= NOTICEABLE * share.seconds / share.micro_batches:
                continue
            waited = share.waited / share.micro_batches
            if waited - statistics.median(other.waited / other.micro_batches for other in others) > lag / 2:
                cause = f"{waited:.3g} s of it for its loader; see its disk and cores, or raise --num_workers"
            else:
                cause = (
                    f"{share.forward:.3g} s of it in the forward pass; see whether other programs use its device or "
                    "cores, and whether the device runs hot"
                )
            yield Sign(
                "behind",
                f"this rank holds up the others: a micro-batch takes it {share.busy:.3g} s without the time in which "
                f"it waits for them, and the others {usual:.3g} s; {cause}",
                rank,
            )

    def _nothing_learnt(self, record: Mapping[str, Any]) -> Iterator[Sign]:
        for name, chance in self.chance.items():
            if record["step"] >= LEARNT_AFTER and record.get(name, math.inf) <= AT_CHANCE * chance:
                yield Sign(
                    f"chance {name}",
                    f"{name} is {record[name]:.3g} after {record['step']} steps, and always giving the most frequent "
                    f"answer comes to {chance:.3g}: nothing is learnt; see whether the loss falls, whether "
                    "--lr is far too high or low, and whether the annotations fit the vocabulary of --bert",
                )


def warning(step: int, sign: Sign) -> dict[str, Any]:
    """A record for metrics.jsonl."""
    where = f"step {step}" + (f", rank {sign.rank}" if sign.rank is not None else "")
    return {"kind": "warning", "step": step, "rank": sign.rank, "text": f"{where}: {sign.text}"}
