"""A dry run: what is tried out, and what is told of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch.utils.data import DataLoader

from engine.checkpoint.space import Files, free_bytes
from engine.configuration.flags import TrainingConfig
from engine.configuration.recipes import to_yaml
from engine.data.loading import Batch
from engine.data.waiting import TimedLoader
from engine.errors import UserError
from engine.training.preflight.memory import GB, RESERVE, device_memory
from engine.training.preflight.plan import Plan
from engine.training.preflight.trial import Findings, largest_measured, trial_folder, try_out


def rehearse(
    engine: DeepSpeedEngine,
    batches: TimedLoader[Batch],
    validation_batches: DataLoader[Batch] | None,
    config: TrainingConfig,
    settings: dict[str, Any],
    content: dict[str, Any],
    plan: Plan,
    files: Files,
    *,
    weights_file: bool,
    find_batch_size: bool,
) -> None:
    """Try a training out and print, on rank 0, what it would take.

    Raises:
        UserError: if it takes more memory than there is.
    """
    first, limit = engine.global_rank == 0, memory_of(config, engine.device)
    if first:
        print(f"recipe:\n{to_yaml(config)}DeepSpeed:\n{json.dumps(settings, indent=2)}\ntrying out ...", flush=True)
    with trial_folder(Path(config.output)) as folder, explained(config, engine.device):
        loaders = (batches, validation_batches)
        found = try_out(engine, *loaders, config, content, folder, weights_file=weights_file)
        largest = largest_measured(engine, batches, config, (1 - RESERVE) * limit) if find_batch_size else None
        dist.barrier()
    if first:
        print("\n".join(lines_of(found, config, plan, files, engine.device, limit, largest)), flush=True)
    if limit and found.peak_bytes > limit:
        raise UserError(
            f"rank {found.fullest_rank} took {found.peak_bytes / GB:.3g} GB, more than the {limit / GB:.3g} GB that "
            f"there are; lower --batch_size {config.batch_size} (--find_batch_size measures how far), or compute "
            "activations twice with --activation_checkpointing all"
        )


def memory_of(config: TrainingConfig, device: torch.device) -> float:
    """Bytes that a rank may fill: its GPU's or --memory_limit's; 0 where neither is known."""
    return device_memory(config, device) if config.memory_limit is not None or device.type == "cuda" else 0.0


@contextmanager
def explained(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Raises UserError for a GPU that is full."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        memory = f"the {memory_of(config, device) / GB:.3g} GB of {device}"
        raise UserError(
            f"--batch_size {config.batch_size} doesn't fit into {memory} ({str(error).splitlines()[0]}); lower it, or "
            "compute activations twice with --activation_checkpointing all"
        ) from None


def lines_of(
    found: Findings,
    config: TrainingConfig,
    plan: Plan,
    files: Files,
    device: torch.device,
    limit: float,
    largest: tuple[int, int] | None,
) -> list[str]:
    """What a dry run tells, a line each."""
    ranks, on_gpu = dist.get_world_size(), device.type == "cuda"
    stopped = plan.saves * found.seconds_stopped + plan.epochs * found.seconds_of_validation
    seconds = plan.steps * found.seconds_per_step + stopped
    memory = f"{found.peak_bytes / GB:.3g} GB at its peak, on rank {found.fullest_rank}"
    memory += f", of {limit / GB:.3g} GB" if limit else ""
    output = Path(config.output)
    told = {
        "batch": f"{config.batch_size} x {config.gradient_accumulation_steps} x {ranks} = "
        f"{config.batch_size * config.gradient_accumulation_steps * ranks} samples per step "
        "(micro-batch x accumulation x ranks)",
        "step": f"{found.seconds_per_step:.3g} s, the median of {found.steps}; {found.data_wait:.0%} of the time is "
        "spent waiting for data",
        "memory": f"{memory} ({'of the GPU' if on_gpu else 'of the process'})",
        "checkpoint": f"{found.checkpoint_bytes / GB:.3g} GB in {found.seconds_of_save:.3g} s, for "
        f"{found.seconds_stopped:.3g} s of which the training stands still",
        "validation": f"{found.seconds_of_validation:.3g} s each" if found.seconds_of_validation else "none",
        "all of it": f"{plan.steps:,} steps, {plan.saves:,} checkpoints and {plan.epochs:,} epochs: "
        f"{duration(seconds)}, or {seconds * ranks / 3600:.3g} {'GPU' if on_gpu else 'rank'}-hours",
        "disk": f"{plan.bytes_on_disk(files, config.keep) / GB:.3g} GB of the {free_bytes(output) / GB:.3g} GB free at "
        f"{output}",
    }
    if largest is not None:
        samples, peak = largest
        told["would fit"] = f"--micro_batch_size {samples}, with {peak / GB:.3g} GB at its peak (measured)"
    return ["nothing keeps this training from running", *(f"  {name:<11} {text}" for name, text in told.items())]


def duration(seconds: float) -> str:
    """For the eye."""
    minutes, hours = seconds / 60, seconds / 3600
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if hours < 2 else f"{hours:.1f} h"
