"""A dry run: what is tried out, and what is told of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from engine.checkpoint.space import Files, free_bytes
from engine.configuration.flags import TrainingConfig
from engine.configuration.recipes import to_yaml
from engine.distributed.device import pick_device
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.progress import duration
from engine.tasks.task import Task
from engine.training.preflight.memory import GB, RESERVE, device_memory, explained, memory_of
from engine.training.preflight.plan import Plan
from engine.training.preflight.trial import Findings, largest_measured, trial_folder, try_out
from engine.training.prepared import prepare


def rehearse(
    config: TrainingConfig,
    task_class: Callable[..., Task[Any]],
    ranks: Ranks,
    settings: dict[str, Any],
    *,
    find_batch_size: bool,
) -> None:
    """Do what a training does up to its first steps, print on rank 0 what it would take, and leave nothing behind.

    Args:
        find_batch_size: whether the largest micro-batch is measured, too.

    Raises:
        UserError: with what keeps the training from running, or if it takes more memory than there is.
    """
    if find_batch_size:
        device_memory(config, pick_device(ranks))
    prepared = prepare(config, task_class, ranks, settings, dry_run=True)
    engine, first, limit = prepared.engine, ranks.rank == 0, memory_of(config, prepared.device)
    if first:
        effective = json.dumps(prepared.settings, indent=2)
        print(f"recipe:\n{to_yaml(config)}DeepSpeed:\n{effective}\ntrying out ...", flush=True)
    content = {"description": prepared.description.to_dict(), "trained_on": prepared.trained_on.to_tensors()}
    largest = None
    with trial_folder(Path(config.output)) as folder, explained(config, prepared.device):
        loaders = (prepared.batches, prepared.validation_batches)
        found = try_out(engine, *loaders, config, content, folder, weights_file=prepared.task.epoch_weights)
        if find_batch_size:
            largest = largest_measured(engine, prepared.batches, config, (1 - RESERVE) * limit)
        dist.barrier()
    if first:
        about = (found, config, prepared.plan, prepared.files, prepared.device, limit, largest)
        told = lines_of(*about, find_batch_size=find_batch_size)
        print("\n".join(told), flush=True)
    prepared.leave()
    if limit and found.peak_bytes > limit:
        raise UserError(
            f"rank {found.fullest_rank} took {found.peak_bytes / GB:.3g} GB, more than the {limit / GB:.3g} GB that "
            f"there are; lower --batch_size {config.batch_size} (--find_batch_size measures how far), or compute "
            "activations twice with --activation_checkpointing all"
        )


def lines_of(
    found: Findings,
    config: TrainingConfig,
    plan: Plan,
    files: Files,
    device: torch.device,
    limit: float,
    largest: tuple[int, int] | None,
    *,
    find_batch_size: bool,
) -> list[str]:
    """What a dry run tells, a line each."""
    ranks, on_gpu = dist.get_world_size(), device.type == "cuda"
    # At an epoch's end, training waits until its checkpoint is complete.
    saving = plan.epochs * found.seconds_of_save + (plan.saves - plan.epochs) * found.seconds_stopped
    seconds = plan.steps * found.seconds_per_step + saving + plan.epochs * found.seconds_of_validation
    memory = f"{found.peak_bytes / GB:.3g} GB at its peak, on rank {found.fullest_rank}"
    memory += f", of {limit / GB:.3g} GB" if limit else ""
    both = "broad and of high images" if found.orientations == 2 else "one orientation, as there are no others"
    output = Path(config.output)
    told = {
        "batch": f"{config.batch_size} x {config.gradient_accumulation_steps} x {ranks} = "
        f"{config.batch_size * config.gradient_accumulation_steps * ranks} samples per step "
        "(micro-batch x accumulation x ranks)",
        "step": f"{found.seconds_per_step:.3g} s, the median of {found.steps}; {found.data_wait:.0%} of the time is "
        "spent waiting for data",
        "memory": f"{memory} ({'of the GPU' if on_gpu else 'of the process'}), with batches of {both}",
        "checkpoint": f"{found.checkpoint_bytes / GB:.3g} GB in {found.seconds_of_save:.3g} s, for "
        f"{found.seconds_stopped:.3g} s of which the training stands still",
        "validation": f"{found.seconds_of_validation:.3g} s each" if found.seconds_of_validation else "none",
        "all of it": f"{plan.steps:,} steps, {plan.saves:,} checkpoints and {plan.epochs:,} epochs: "
        f"{duration(seconds)}, or {seconds * ranks / 3600:.3g} {'GPU' if on_gpu else 'rank'}-hours",
        "disk": f"{plan.bytes_on_disk(files, config.keep) / GB:.3g} GB of the {free_bytes(output) / GB:.3g} GB free at "
        f"{output}",
    }
    if find_batch_size:
        samples, peak = largest or (0, 0)
        fits = f"--micro_batch_size {samples}, with {peak / GB:.3g} GB at its peak (measured)"
        told["would fit"] = fits if largest else "not even the smallest micro-batch"
    return ["nothing keeps this training from running", *(f"  {name:<11} {text}" for name, text in told.items())]
