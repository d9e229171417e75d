"""What a checkpoint remembers of optimisers and schedules, back into DeepSpeed's engine."""

from collections.abc import Iterable

import torch
from deepspeed import DeepSpeedEngine

from engine.checkpoint.state import Checkpoint, SavedState
from engine.checkpoint.weights import POSITION_TABLES, resize_rows
from engine.errors import UserError

MOMENTS = {"adamw": {"exp_avg", "exp_avg_sq"}, "sgd": {"momentum_buffer"}}


def restore_optimizers(engine: DeepSpeedEngine, saved: SavedState, algorithms: Iterable[str]) -> None:
    """Moments and step counts into this rank's part, whatever number of ranks saved them.

    Moments of position tables are interpolated as the tables are. They can't begin at zero: AdamW has one step count
    for all parameters, by which the first steps of moments of zero would be several times too long.

    Raises:
        UserError: if AdamW's are asked for and a parameter has none.
    """
    zero = engine.optimizer
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    groups = zip(zero.optimizer.param_groups, zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)
    for group, partition, parameters in groups:
        if group["algorithm"] not in algorithms:
            continue
        own = MOMENTS[group["algorithm"]]  # the other run may have had another algorithm for the backbone
        found = {parameter: own & saved.moment_keys(names[parameter]) for parameter in parameters}
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
                moments = saved.moments(names[parameter])
                for key in keys & moments.keys():
                    value = moments[key]
                    if names[parameter] in POSITION_TABLES:
                        value = resize_rows(value, len(parameter))
                    if value.shape != parameter.shape:
                        raise UserError(
                            f"{saved.source}: {key} of {names[parameter]} has shape {tuple(value.shape)}, parameter "
                            f"{tuple(parameter.shape)}; add --not_load_adam_optimizer --not_load_scheduler"
                        )
                    state[key].narrow(0, ours.start, ours.numel).copy_(value.flatten().narrow(0, its.start, its.numel))
        counted = parameters if group["algorithm"] == "adamw" else []
        counts = {count for p in counted if (count := saved.steps(names[p])) is not None}
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
    known = state["base_lrs"][: len(groups)]  # another run may have frozen its backbone, or this one does
    state["base_lrs"] = [*known, *schedule.base_lrs[len(known) :]]
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
