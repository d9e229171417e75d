"""What is told of a training: progress, metrics.jsonl, checks."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from tqdm import tqdm

from engine.configuration.flags import TrainingConfig
from engine.data.loading import Batch
from engine.data.sampler import TrainingSampler
from engine.data.waiting import TimedLoader
from engine.errors import UserError
from engine.printing import counted
from engine.training.loop import Observer, TrainState
from engine.training.observers.diagnosis import first_non_finite
from engine.training.observers.ending import ending
from engine.training.reports.console import Console
from engine.training.reports.health import Health
from engine.training.reports.listener import Listener
from engine.training.reports.metrics import Metrics, MetricsFile
from engine.training.reports.pace import Pace, Share, speeds

UNREADABLE = "unreadable_images"


class Reporter(Observer):
    """Progress, metrics and warnings of the training. Every rank has one; rank 0's also shows and writes.

    Args:
        chance: what metrics come to by always giving the most frequent answer, by their names.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        config: TrainingConfig,
        batches: TimedLoader[Batch],
        metrics: Metrics,
        listeners: Sequence[Listener] = (),
        chance: Mapping[str, float] | None = None,
    ) -> None:
        self.engine, self.config, self.metrics, self.listeners = engine, config, metrics, list(listeners)
        self.sampler: TrainingSampler = batches.batch_sampler  # type: ignore[assignment]
        self.world_size = dist.get_world_size()
        self.file = MetricsFile(Path(config.output) / "metrics.jsonl", engine.global_rank)
        self.unreadable_here, self.unreadable = 0, 0  # on this rank, on all ranks as of the last report
        self.validated: tuple[float, int] = (0, 0)  # epoch and step of the last validation
        self.pace = Pace(engine, batches)
        scaler = engine.optimizer.loss_scaler if config.fp16 else None
        self.health = Health(chance or {}, float(scaler.min_scale) if scaler is not None and scaler.dynamic else None)
        self.total_steps, self.ending = ending(config, len(batches) // config.gradient_accumulation_steps)
        self.console = Console(engine.global_rank, self.total_steps, config.last_epoch)

    def begin(self, state: TrainState) -> None:
        """Say how far the training goes from here, and why no farther."""
        if state.step < self.total_steps:
            self.say(f"trains to step {self.total_steps:,}: {self.ending}")
        else:
            self.say(f"nothing is left to train after step {state.step:,}: {self.ending}; a larger number goes on")

    def after_micro_step(self, state: TrainState, batch: Batch, at_boundary: bool) -> None:
        self.pace.count(batch)
        self.count_unreadable(batch)
        if at_boundary:
            self.console.advance(state.step, self.epoch(state))
            self._check_finite(batch)
        at_report = state.batches // self.world_size % self.config.report_step == 0
        if at_report or (at_boundary and state.step == self.total_steps):
            self._report(state)

    def after_epoch(self, state: TrainState) -> None:
        if self.pace.micro_batches:
            self._report(state)

    def after_training(self, state: TrainState) -> None:
        self.console.close()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to report as if nothing had happened: numbers, and tensors on the CPU."""
        return {
            "sums": self.metrics.state_dict(),
            **self.pace.state_dict(),
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "unreadable": self.unreadable,
            "metrics_bytes": self.file.size(),
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on from there, and drop the lines of what is done again. All ranks call it."""
        self.metrics.load_state_dict(state["sums"])
        self.pace.load_state_dict(state)
        self.unreadable = state["unreadable"]
        self.engine._global_grad_norm = state["grad_norm"]
        self.file.truncate(state["metrics_bytes"], step)
        records = self.file.read()
        validations = [(record["epoch"], record["step"]) for record in records if record["kind"] == "valid"]
        last = [self.validated, *validations][-1:]  # which rank 0 alone has read
        dist.broadcast_object_list(last, src=0)
        self.validated = last[0]
        self.health.restart(records)
        for listener in self.listeners:
            listener.restart(records)
        self.console.restart(step)

    def _report(self, state: TrainState) -> None:
        """Means since the last report, over all ranks."""
        totals = self.metrics.totals()
        self.unreadable += int(totals.pop(UNREADABLE, (0, 0))[0])
        self._check_unreadable(self.unreadable)
        shares = self.pace.gather()
        record = self._record(state, {name: total / count for name, (total, count) in totals.items() if count}, shares)
        self.tell(record)
        for told in self.health.warnings(record, shares):
            self.tell(told)
        self.pace.start()

    def _record(self, state: TrainState, means: Mapping[str, float], shares: list[Share]) -> dict[str, Any]:
        rates = {group["schedule"]: group["lr"] for group in self.engine.optimizer.optimizer.param_groups}
        pace = speeds(shares, self.config.gradient_accumulation_steps)
        return {
            "kind": "train",
            "epoch": self.epoch(state),
            "step": state.step,
            **with_total_loss(means),
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "lr": rates["warmup"],
            "sgd_lr": rates.get("milestones", 0.0),  # of a frozen backbone
            "loss_scale": float(self.engine.optimizer.loss_scale) if self.config.fp16 else 1.0,
            "skipped_steps": self.engine.skipped_steps,
            UNREADABLE: self.unreadable,
            **pace,
            "seconds_left": round((self.total_steps - state.step) * pace["seconds_per_step"]),
        }

    def epoch(self, state: TrainState) -> float:
        """How many epochs are done, to four decimals."""
        return round(min(state.batches / self.world_size / len(self.sampler), 1) + state.epoch, 4)

    def tell(self, record: Mapping[str, Any], text: str = "") -> None:
        """Write a record and show it, with a text for the eye below it."""
        if record["kind"] == "valid":
            self.validated = (record["epoch"], record["step"])
        self.file.write(record)
        self.console.hear(record, text)
        for listener in self.listeners:
            listener.hear(record)

    def count_unreadable(self, batch: Batch) -> None:
        for problem in batch.unreadable:
            tqdm.write(f"skipped an unreadable image: {problem}")
        if batch.unreadable:
            self.unreadable_here += len(batch.unreadable)
            self.metrics.count(UNREADABLE, len(batch.unreadable))
            self._check_unreadable(self.unreadable_here, batch.unreadable[-1])

    def _check_unreadable(self, count: int, example: str = "see the lines above") -> None:
        if count > (limit := self.config.max_unreadable_images):
            raise UserError(
                f"{counted(count, 'unreadable image')}, more than --max_unreadable_images {limit} ({example}); "
                "restore the files or raise the limit"
            )

    def _check_finite(self, batch: Batch) -> None:
        """DeepSpeed skips a step whose gradients aren't finite; that mends itself only while a loss scale can fall.

        --stop_on nonfinite doesn't wait for that.
        """
        optimizer, stop_at_once = self.engine.optimizer, self.config.stop_on == "nonfinite"
        unseen = stop_at_once and not math.isfinite(self.engine.get_global_grad_norm() or 0.0)  # the host has the norm
        if not (optimizer.overflow or unseen):
            return
        scaler = optimizer.loss_scaler
        scale_can_fall = self.config.fp16 and scaler.dynamic and optimizer.loss_scale > scaler.min_scale
        if scale_can_fall and not stop_at_once:
            return
        reason = first_non_finite(self.engine.module, batch.inputs)
        scale = f", and the loss scale is now {optimizer.loss_scale:g}" if self.config.fp16 else ""
        raise UserError(
            f"the gradients are not finite{scale}, after {self.engine.skipped_steps} skipped steps: {reason}; "
            "lower --lr or --sgd_lr, or train in --bf16 or fp32"
        )

    def say(self, text: str) -> None:
        self.console.say(text)


def with_total_loss(means: Mapping[str, float]) -> dict[str, float]:
    """The sum of the tasks' mean losses in front of them."""
    return {"loss": math.fsum(value for name, value in means.items() if name.endswith("_loss")), **means}
