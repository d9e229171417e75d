"""When a run is saved, and what is saved beside the optimisers' state."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import set_seed

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.original import SUFFIX
from engine.checkpoint.saving import Checkpoints, saved_buffers
from engine.checkpoint.state import CONTENT, Checkpoint
from engine.configuration.flags import TrainingConfig
from engine.data.loading import Batch
from engine.data.sampler import TrainingSampler
from engine.data.trained_on import TrainedOn
from engine.optim.schedules import course, length_in_steps
from engine.training.loop import Observer, TrainState
from engine.training.observers.reporter import Reporter
from engine.training.observers.save_file import SaveFile
from engine.training.preemption import Preemption


class Saver(Observer):
    """A checkpoint after each epoch, every `save_step` optimiser steps, when one is asked for, and at the end.

    A checkpoint stands at an optimiser step. Micro-batches that an epoch leaves over take none, and their gradients are
    in no checkpoint; so the one at the end of such an epoch goes on from the epoch's last step, and a resumed run does
    the left-over ones again.
    """

    def __init__(
        self,
        engine: DeepSpeedEngine,
        config: TrainingConfig,
        batches: DataLoader[Batch],
        description: ModelDescription,
        reporter: Reporter,
        checkpoints: Checkpoints,
        preemption: Preemption,
        trained_on: TrainedOn,
        *,
        digests: dict[str, str],
        weights_files: bool,
    ) -> None:
        """Args:
        digests: of the data to train on; a run that goes on has to have the same.
        weights_files: whether EpochNN_LXRT.pth is written, too.
        """
        self.engine, self.config, self.description = engine, config, description
        self.sampler: TrainingSampler = batches.batch_sampler  # type: ignore[assignment]
        self.reporter, self.checkpoints, self.preemption = reporter, checkpoints, preemption
        self.trained_on, self.digests, self.weights_files = trained_on, digests, weights_files
        self.save_step = config.save_step or sys.maxsize
        self.hosts = dist.new_group(backend="gloo") if dist.get_world_size() > 1 else None
        self.last_step_of_epoch: dict[str, Any] | None = None  # the position there, where micro-batches are left over
        self.save_requested, self.save_file = False, SaveFile(checkpoints.folder)
        self.saved, self.saved_weights = "", False  # the last checkpoint, and whether its NAME_LXRT.pth is there
        self.saved_step = 0  # where it stands

    def after_micro_step(self, state: TrainState, batch: Batch, at_boundary: bool) -> None:
        if not at_boundary:
            return
        epoch_goes_on = self.sampler.batches_left(state.batches) >= self.config.gradient_accumulation_steps
        self._keep_last_step(state)
        self.agree()
        is_due = self.save_requested or state.step % self.save_step == 0
        if epoch_goes_on and state.step != self.config.max_steps and is_due:
            self._save(f"Step{state.step:06d}", state)

    def after_epoch(self, state: TrainState) -> None:
        self._save(f"Epoch{state.epoch + 1:02d}", state, weights_file=self.weights_files)
        self._finish()  # before a validation of minutes
        self.agree()
        self.last_step_of_epoch = None

    def after_training(self, state: TrainState) -> None:
        if state.batches:
            name = self.saved if state.step == self.saved_step else f"Step{state.step:06d}"  # it may be an epoch's
            self._save(name, state, weights_file=self.weights_files and not self.stop_requested)
        self._finish()
        if self.engine.global_rank == 0:
            self.save_file.discard()
        if self.stop_requested:
            self.reporter.say(f"asked to stop by a signal, after step {state.step}; --resume auto goes on from there")

    def restore(self, checkpoint: Checkpoint) -> TrainState:
        """Go on where a checkpoint of this run stands, whatever number of ranks wrote it."""
        positions: list[dict[str, Any]] = checkpoint.content["ranks"]
        state = TrainState(**positions[0]["progress"])
        buffers = self.engine.module.state_dict()
        for name, value in positions[0]["buffers"].items():
            buffers[name].copy_(value)
        rank, report = self.engine.global_rank, dict(positions[0]["report"])
        if len(positions) == dist.get_world_size():
            set_generator_states(positions[rank]["generators"])
            report["sums"] = positions[rank]["report"]["sums"]
        else:
            set_seed((self.config.seed + rank + 1_000_003 * state.step) % 2**32)  # dropout draws no number twice
            if rank != 0:
                report["sums"] = {}
            else:
                names = {name: None for position in positions for name in position["report"]["sums"]}
                zero = torch.zeros(2, dtype=torch.float64)
                report["sums"] = {
                    name: torch.stack([p["report"]["sums"].get(name, zero) for p in positions]).sum(0) for name in names
                }
        self.reporter.load_state_dict(report, state.step)
        before, now = positions[0].get("threads"), cpu_threads(self.engine.device)
        if before is not None and now is not None and before != now:
            self.reporter.say(
                f"warning: a rank had {before} thread{'s' * (before > 1)} and now has {now}, which round sums "
                f"otherwise; with OMP_NUM_THREADS={before} losses repeat those of an undisturbed run digit for digit"
            )
        if (epochs := checkpoint.content["config"]["epochs"]) < self.config.epochs:
            self.reporter.say(self._longer(epochs, checkpoint))
        self.saved, self.saved_step = checkpoint.folder.name, state.step
        weights = [Path(f"{checkpoint.folder}{SUFFIX}").exists()]
        dist.broadcast_object_list(weights, src=0)
        self.saved_weights = weights[0] or self.saved.startswith("Epoch")
        self._keep_last_step(state)
        return state

    def _longer(self, epochs: int, checkpoint: Checkpoint) -> str:
        """What --epochs that have grown change, once the schedules are restored."""
        config, schedule = self.config, self.engine.lr_scheduler
        total_steps = length_in_steps(len(self.sampler), config.epochs, config.gradient_accumulation_steps)
        groups = self.engine.optimizer.optimizer.param_groups
        assert checkpoint.scheduler is not None  # it has been restored
        place = [group["schedule"] for group in groups].index("warmup")
        rate, peak = checkpoint.scheduler["_last_lr"][place], schedule.base_lrs[place]
        goes_on = course(rate, peak, schedule.last_epoch, total_steps * config.warmup_ratio, total_steps)
        told = f"--epochs has grown from {epochs} to {config.epochs}: AdamW's rate {goes_on}"
        return told if config.freeze_clip else f"{told}; the backbone's goes on by --schedule {config.schedule}"

    def agree(self) -> None:
        """One small reduction a step: has any rank been asked to stop or to save, and does any still write?

        Between hosts, so that nobody waits for a device.
        """
        asked = self.preemption.save_asked.is_set() or (self.engine.global_rank == 0 and self.save_file.asks())
        self.preemption.save_asked.clear()
        flags = torch.tensor([self.preemption.received is not None, self.checkpoints.is_busy, asked], dtype=torch.int32)
        if self.hosts is not None:
            dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.hosts)
        stop, busy, save = flags.tolist()
        self.stop_requested = bool(stop)
        self.save_requested |= bool(save)  # until the next checkpoint, which may be the epoch's
        if not busy:
            self._finish()

    def _save(self, name: str, state: TrainState, *, weights_file: bool = False) -> None:
        if name == self.saved and (self.saved_weights or not weights_file):
            self.save_requested = False
            return
        self._finish()
        positions: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(positions, self.last_step_of_epoch or self._position(state))
        content = {
            "description": self.description.to_dict(),
            "config": asdict(self.config),
            "samples": len(self.sampler.groups),
            "digests": self.digests,
            "trained_on": self.trained_on.to_tensors(),
            "frozen_weights": self.engine.frozen_weights,
            "ranks": positions,
        }
        self.checkpoints.save(name, state.step, {CONTENT: content}, weights_file=weights_file)
        self.saved, self.saved_step, self.saved_weights = name, state.step, weights_file
        self.save_requested = False

    def _finish(self) -> None:
        if (name := self.checkpoints.finish()) is not None:
            self.reporter.say(f"saved {self.checkpoints.folder / name}")
        if not self.save_requested and (problem := self.save_file.remove()):
            self.reporter.say(f"warning: {problem}")

    def _keep_last_step(self, state: TrainState) -> None:
        """Where the epoch leaves micro-batches over behind this step, remember it."""
        if 0 < self.sampler.batches_left(state.batches) < self.config.gradient_accumulation_steps:
            self.last_step_of_epoch = self._position(state)

    def _position(self, state: TrainState) -> dict[str, Any]:
        """All that is in neither the weights nor the optimisers' state, of this rank."""
        buffers = saved_buffers(self.engine.module) if self.engine.global_rank == 0 else {}
        return {
            "progress": asdict(state),
            "generators": generator_states(),
            "threads": cpu_threads(self.engine.device),
            "buffers": {name: buffer.detach().cpu().clone() for name, buffer in buffers.items()},
            "report": self.reporter.state_dict(),
        }


def cpu_threads(device: torch.device) -> int | None:
    """Of a rank, where they decide how sums are rounded."""
    return torch.get_num_threads() if device.type == "cpu" else None


def generator_states() -> dict[str, Tensor]:
    """Of the generators that dropout draws from, by device. Every other draw follows from its sample."""
    states = {"cpu": torch.get_rng_state()}
    accelerator = get_accelerator()
    if accelerator.device_name() != "cpu":
        states[accelerator.device_name()] = accelerator.get_rng_state()
    return states


def set_generator_states(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    accelerator = get_accelerator()
    if accelerator.device_name() in states and accelerator.device_name() != "cpu":
        accelerator.set_rng_state(states[accelerator.device_name()])
