"""Where a training goes on from: a checkpoint of this engine or of the original, as one kind of object."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_set_full_fp32_param

from engine.checkpoint.answers import match_answers
from engine.checkpoint.description import ModelDescription
from engine.checkpoint.manifest import MANIFEST, verify
from engine.checkpoint.original import SUFFIX, read_original
from engine.checkpoint.pretrained import CONFIG, ModelFolder
from engine.checkpoint.shards import Shards
from engine.checkpoint.weights import HEAD, LoadReport, State, load_state
from engine.data.trained_on import TrainedOn
from engine.errors import UserError

CONTENT = "clipvil"  # our own entry beside DeepSpeed's


class SavedState(Protocol):
    """Weights, and what optimisers and schedules remember, by the names of parameters."""

    source: str
    scheduler: dict[str, Any] | None

    @property
    def answers(self) -> list[str] | None: ...  # of the head's rows, where it is known
    @property
    def trained_on(self) -> TrainedOn | None: ...  # where it is known
    @property
    def loss_scaler(self) -> Any: ...
    def weights(self) -> State: ...
    def moment_keys(self, name: str) -> set[str]: ...
    def moments(self, name: str) -> State: ...
    def steps(self, name: str) -> float | None: ...


class Checkpoint(Shards):
    """A checkpoint folder of this engine."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.source = str(folder)
        if CONTENT not in self.model:
            raise UserError(f"{folder} was not written by this engine")
        self.content: dict[str, Any] = self.model[CONTENT]
        self.description = ModelDescription.from_dict(self.content["description"], self.source)
        self.scheduler: dict[str, Any] | None = self.model["lr_scheduler"]
        self.counters = {name: self.model[name] for name in ("global_steps", "skipped_steps", "global_samples")}

    @property
    def answers(self) -> list[str] | None:
        return self.description.answers

    @property
    def trained_on(self) -> TrainedOn | None:
        return TrainedOn.from_tensors(self.content.get("trained_on"))


def open_checkpoint(path: str, *, optimizers: bool = True, progress: bool = False) -> SavedState:
    """`snap/pretrain/NAME/Epoch09`, with or without `_LXRT.pth`: ours is verified, the original's read.

    A folder with a model will do, too, and the `BEST.pth` of the original's VQA.

    Args:
        optimizers: whether the original's optimiser files are read, where there are any.

    Raises:
        UserError: if there is none, or it is damaged.
    """
    folder = Path(path.removesuffix(SUFFIX).removesuffix(".pth"))
    if (folder / CONFIG).exists():
        return ModelFolder(folder, progress=progress)
    if (folder / MANIFEST).exists():
        verify(folder, progress=progress)
        return Checkpoint(folder)
    file = Path(f"{folder}{SUFFIX}")
    vqa = Path(f"{folder}.pth")
    return read_original(vqa if vqa.exists() and not file.exists() else file, optimizers=optimizers)


def load_weights(
    model: torch.nn.Module, saved: SavedState, answers: list[str] | None, *, without: tuple[str, ...] = ()
) -> LoadReport:
    """Fill a freshly built model. The answer head may be new; rows of another table are matched by their answers.

    Args:
        without: what the model doesn't take, as the beginnings of names.
    """
    state = {key: tensor for key, tensor in saved.weights().items() if not key.startswith(without or ("\0",))}
    if answers is not None and saved.answers is not None:
        state = match_answers(state, saved.answers, answers)
    return load_state(model, state, saved.source, may_miss=(HEAD,))


def restore_masters(engine: DeepSpeedEngine, weights: State) -> None:
    """Give ZeRO's fp32 weights the digits that a cast to fp16 or bf16 took from them.

    DeepSpeed makes them from the model after it has cast that.

    Raises:
        AssertionError: if one of them isn't what it should be, in the model's dtype.
    """
    for name, parameter in engine.module.named_parameters():
        if name in weights:
            value = weights[name].to(parameter.device)
            assert torch.equal(parameter.detach(), value.to(parameter.dtype)), name
            safe_set_full_fp32_param(parameter, value.float())


def restore_optimizers(engine: DeepSpeedEngine, saved: SavedState, algorithms: Iterable[str]) -> None:
    """Moments and step counts into this rank's part, whatever number of ranks saved them.

    Raises:
        UserError: if AdamW's are asked for and a parameter has none.
    """
    zero = engine.optimizer
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    groups = zip(zero.optimizer.param_groups, zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
    for group, partition, parameters in groups:
        if group["algorithm"] not in algorithms:
            continue
        found = {parameter: saved.moment_keys(names[parameter]) for parameter in parameters}
        keys = set().union(*found.values())
        lacking = [names[parameter] for parameter in parameters if found[parameter] != keys or not keys]
        if lacking and group["algorithm"] == "adamw":
            raise UserError(
                f"{saved.source} has no state of AdamW for {lacking[0]}, so its training can't be continued here; add "
                "--not_load_adam_optimizer --not_load_scheduler to take its weights only"
            )
        state = zero.optimizer.state[partition]
        state.update({key: torch.zeros_like(partition) for key in keys})
        for parameter in parameters:
            if parameter._hp_mapping is not None:  # a part of it is this rank's
                ours, its = parameter._hp_mapping.hp_fragment_address, parameter._hp_mapping.lp_fragment_address
                for key, value in saved.moments(names[parameter]).items():
                    if value.shape != parameter.shape:
                        raise UserError(
                            f"{saved.source}: {key} of {names[parameter]} has shape {tuple(value.shape)}, parameter "
                            f"{tuple(parameter.shape)}; add --not_load_adam_optimizer --not_load_scheduler"
                        )
                    state[key].narrow(0, ours.start, ours.numel).copy_(value.flatten().narrow(0, its.start, its.numel))
        counts = {count for p in parameters if (count := saved.steps(names[p])) is not None}
        if len(counts) > 1:
            raise UserError(f"{saved.source}: AdamW's step counts differ between parameters ({sorted(counts)})")
        if counts:
            state["step"] = torch.tensor(counts.pop(), dtype=torch.float32, device=partition.device)


def restore_schedule(engine: DeepSpeedEngine, saved: SavedState) -> None:
    """The schedules' place, and the rates that belong to it.

    The original's covers AdamW only; SGD's milestones then count from the same step.

    Raises:
        UserError: if the checkpoint has none.
    """
    if saved.scheduler is None:
        raise UserError(f"{saved.source} has no state of the schedule; add --not_load_scheduler")
    schedule = engine.lr_scheduler
    state = dict(saved.scheduler)
    groups = engine.optimizer.optimizer.param_groups
    missing = len(groups) - len(state["base_lrs"])
    state["base_lrs"] = [*state["base_lrs"], *schedule.base_lrs[len(groups) - missing :]]
    state["lr_lambdas"] = [None] * len(groups)
    schedule.load_state_dict(state)
    schedule._last_lr = []
    for group, base, factor in zip(groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(schedule.last_epoch)
        schedule._last_lr.append(group["lr"])


def restore_loss_scale(engine: DeepSpeedEngine, saved: SavedState) -> None:
    scaler = engine.optimizer.loss_scaler
    if type(saved.loss_scaler) is type(scaler) and scaler.dynamic:
        for name in ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis"):
            setattr(scaler, name, getattr(saved.loss_scaler, name))


def restore_all(engine: DeepSpeedEngine, checkpoint: Checkpoint) -> None:
    """Everything that DeepSpeed's engine holds beside the weights."""
    restore_optimizers(engine, checkpoint, ("adamw", "sgd"))
    restore_schedule(engine, checkpoint)
    restore_loss_scale(engine, checkpoint)
    for name, value in checkpoint.counters.items():
        setattr(engine, name, value)


def restore_parts(engine: DeepSpeedEngine, saved: SavedState, *, adam: bool, schedule: bool) -> None:
    """What --load takes beside the weights: SGD's state always, AdamW's and the schedules' if wanted."""
    restore_optimizers(engine, saved, ("adamw", "sgd") if adam else ("sgd",))
    if adam:
        restore_loss_scale(engine, saved)
    if schedule:
        restore_schedule(engine, saved)
