"""What is told of a training: progress, metrics.jsonl, checks."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch.utils.data import DataLoader
from tqdm import tqdm

from engine.configuration.flags import TrainingConfig
from engine.data.loading import Batch
from engine.data.sampler import TrainingSampler
from engine.errors import UserError
from engine.training.loop import Observer, TrainState
from engine.training.metrics import Metrics, MetricsFile
from engine.training.observers.diagnosis import first_non_finite

UNREADABLE = "unreadable_images"


@dataclass
class Progress:
    """What happened since the last report."""

    started: float
    images: int = 0
    micro_batches: int = 0


class Listener:
    """Who hears, on every rank, each record that goes into metrics.jsonl."""

    def hear(self, record: Mapping[str, Any]) -> None: ...

    def restart(self, records: Sequence[Mapping[str, Any]]) -> None:
        """A resumed run goes on after these records (none on other ranks than 0); later ones are heard once more."""


class Reporter(Observer):
    """Progress and metrics of the training. Every rank has one; rank 0's also shows and writes."""

    def __init__(
        self,
        engine: DeepSpeedEngine,
        config: TrainingConfig,
        batches: DataLoader[Batch],
        metrics: Metrics,
        listeners: Sequence[Listener] = (),
    ) -> None:
        self.engine, self.config, self.metrics, self.listeners = engine, config, metrics, listeners
        self.sampler: TrainingSampler = batches.batch_sampler  # type: ignore[assignment]
        self.world_size = dist.get_world_size()
        self.file = MetricsFile(Path(config.output) / "metrics.jsonl", engine.global_rank)
        self.unreadable_here, self.unreadable = 0, 0  # on this rank, on all ranks as of the last report
        self.window = Progress(time.monotonic())
        steps = len(batches) // config.gradient_accumulation_steps * config.last_epoch
        self.total_steps = min(steps, config.max_steps or steps)
        self.bar = tqdm(
            total=self.total_steps,
            unit="step",
            disable=engine.global_rank != 0 or None,  # None: where there is no terminal; a log has the reports
            dynamic_ncols=True,
            mininterval=1,
        )

    def after_micro_step(self, state: TrainState, batch: Batch, at_boundary: bool) -> None:
        self.window.images += len(batch) * self.world_size
        self.window.micro_batches += 1
        self.count_unreadable(batch)
        if at_boundary:
            self.bar.update(state.step - self.bar.n)
            self._check_finite(batch)
        at_report = state.batches // self.world_size % self.config.report_step == 0
        if at_report or (at_boundary and state.step == self.total_steps):
            self._report(state)

    def after_epoch(self, state: TrainState) -> None:
        if self.window.micro_batches:
            self._report(state)

    def after_training(self, state: TrainState) -> None:
        self.bar.close()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to report as if nothing had happened: numbers, and tensors on the CPU."""
        return {
            "sums": self.metrics.state_dict(),
            "images": self.window.images,
            "micro_batches": self.window.micro_batches,
            "seconds": time.monotonic() - self.window.started,
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "unreadable": self.unreadable,
            "metrics_bytes": self.file.size(),
        }

    def load_state_dict(self, state: dict[str, Any], step: int) -> None:
        """Go on from there, and drop the lines of steps that are done again."""
        self.metrics.load_state_dict(state["sums"])
        started = time.monotonic() - state["seconds"]
        self.window = Progress(started, state["images"], state["micro_batches"])
        self.unreadable = state["unreadable"]
        self.engine._global_grad_norm = state["grad_norm"]
        self.file.truncate(state["metrics_bytes"])
        for listener in self.listeners:
            listener.restart(self.file.read())
        self.bar.update(step)

    def _report(self, state: TrainState) -> None:
        """Means since the last report, over all ranks."""
        totals = self.metrics.totals()
        self.unreadable += int(totals.pop(UNREADABLE, (0, 0))[0])
        self._check_unreadable(self.unreadable)
        seconds = time.monotonic() - self.window.started
        means = {name: total / count for name, (total, count) in totals.items() if count}
        rates = {group["schedule"]: group["lr"] for group in self.engine.optimizer.optimizer.param_groups}
        steps_left = self.total_steps - state.step
        seconds_per_step = seconds / self.window.micro_batches * self.config.gradient_accumulation_steps
        record = {
            "kind": "train",
            "epoch": round(min(state.batches / self.world_size / len(self.sampler), 1) + state.epoch, 4),
            "step": state.step,
            **with_total_loss(means),
            "grad_norm": float(self.engine.get_global_grad_norm() or 0.0),
            "lr": rates["warmup"],
            "sgd_lr": rates.get("milestones", 0.0),  # of a frozen backbone
            "loss_scale": float(self.engine.optimizer.loss_scale) if self.config.fp16 else 1.0,
            "skipped_steps": self.engine.skipped_steps,
            UNREADABLE: self.unreadable,
            "images_per_second": round(self.window.images / seconds, 2),
            "seconds_left": round(steps_left * seconds_per_step),
        }
        self.tell(record)
        self.window = Progress(time.monotonic())

    def tell(self, record: Mapping[str, Any], text: str = "") -> None:
        """Write a record and show it, with a text for the eye below it."""
        self.file.write(record)
        self.say(as_line(record) + (f"\n{text}" if text else ""))
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
                f"{count} unreadable images, more than --max_unreadable_images {limit} ({example}); "
                "restore the files or raise the limit"
            )

    def _check_finite(self, batch: Batch) -> None:
        """DeepSpeed skips a step whose gradients aren't finite; that mends itself only while a loss scale can fall."""
        optimizer = self.engine.optimizer
        if not optimizer.overflow:
            return
        scaler = optimizer.loss_scaler
        if self.config.fp16 and scaler.dynamic and optimizer.loss_scale > scaler.min_scale:
            return
        reason = first_non_finite(self.engine.module, batch.inputs)
        scale = f" at the smallest loss scale {optimizer.loss_scale:g}" if self.config.fp16 else ""
        raise UserError(
            f"the gradients are not finite{scale}, after {self.engine.skipped_steps} skipped steps: {reason}; "
            "lower --lr or --sgd_lr, or train in --bf16 or fp32"
        )

    def say(self, text: str) -> None:
        if self.engine.global_rank == 0:
            tqdm.write(text)


def with_total_loss(means: Mapping[str, float]) -> dict[str, float]:
    """The sum of the tasks' mean losses in front of them."""
    return {"loss": math.fsum(value for name, value in means.items() if name.endswith("_loss")), **means}


def as_line(record: Mapping[str, object]) -> str:
    """A record for the eye: three or four significant digits, no zero counts, and no tables."""
    zero = {k for k in ("skipped_steps", UNREADABLE) if record.get(k) == 0}
    shown = {k: v for k, v in record.items() if k not in {"kind", *zero} and not isinstance(v, Mapping)}
    values = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items())
    return f"{record['kind']}: " + ", ".join(values)
