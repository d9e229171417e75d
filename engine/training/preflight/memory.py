"""How much of a device's memory a training takes, and the largest micro-batch that fits."""

import json
import math
import os
import subprocess
import sys
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from engine.checkpoint.description import ModelDescription
from engine.configuration.deepspeed import is_offloaded
from engine.configuration.flags import TrainingConfig
from engine.errors import UserError
from engine.model.activations import cast_parameters, pass_bytes
from engine.optim.hybrid import parameter_groups
from engine.tasks.masking import IGNORE, pack_labels
from engine.tasks.pretraining import PretrainingOptions

GB = 1e9
ROOT = Path(__file__).resolve().parents[3]
DEFAULT_BUCKET_SIZE = 500_000_000  # elements; DeepSpeed's default of reduce_bucket_size
RESERVE = 0.1  # of a device: for its context, cuDNN's work space, and fragments between allocations


def training_bytes(
    model: nn.Module,
    inputs: Mapping[str, Any],
    settings: Mapping[str, Any],
    *,
    world_size: int = 1,
    on_gpu: bool = True,
    use_adam_for_visual: bool = False,
    sgd_momentum: bool = False,
) -> dict[str, int]:
    """What a training takes on a rank's device at its peak, and the parts of it, in bytes.

    Args:
        model: a model for pre-training or fine-tuning on the meta device, its parameters in the training's dtype.
        settings: DeepSpeed's, ZeRO stage 1 or 2, with fused optimisers.
        use_adam_for_visual: whether AdamW keeps moments of the backbone, too.
        sgd_momentum: whether SGD keeps its momentum.

    Returns:
        state: weights and buffers; of the rank's share, unless the host has them, fp32 weights (in fp32 these are the
        model's) and the optimisers' moments. buckets: ZeRO's, and the gradients that lie beside a pass. passes:
        pass_bytes, with the gradients that stay where a pass left them.
        peak: the state, the buckets, and the passes or, where these are small, the gradients and the copies of one
        optimiser's behind them: as one tensor, and in half precision that in fp32.

    Not counted: the inputs, cuDNN's work space, fragments, padding, and the device's own context.
    """
    zero = settings["zero_optimization"]
    itemsize = next(model.parameters()).itemsize
    in_fp32 = 0 if itemsize == 4 else 4  # bytes of an element's copy
    offloaded, whole_until_step = is_offloaded(zero), zero["stage"] == 1
    accumulated = settings.get("gradient_accumulation_steps", 1) > 1
    contiguous = offloaded or zero.get("contiguous_gradients", True)  # by default
    overlapped = bool(zero.get("overlap_comm"))
    groups = optimizer_groups(model, use_adam_for_visual=use_adam_for_visual)

    state = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    shares = {name: -(-sum(sizes) // world_size) for name, sizes in groups.items()}
    if not offloaded:
        moments = {name: 8 if name.startswith("adamw") else 4 * sgd_momentum for name in groups}
        state += sum(share * (in_fp32 + moments[name]) for name, share in shares.items())

    gradients = itemsize * sum(map(sum, groups.values()))
    reduced = 0 if offloaded else itemsize * reduced_values(list(groups.values()), world_size)
    elements = itemsize * int(zero.get("reduce_bucket_size", DEFAULT_BUCKET_SIZE))
    buckets = (1 + overlapped) * (elements if contiguous else min(elements, gradients))
    if offloaded:  # on its way to the host, a gradient is copied, and its norm is taken in fp64
        buckets += (itemsize + 8) * max(map(max, groups.values()))
    if whole_until_step:
        in_place = not accumulated and not (contiguous and overlapped)
        buckets += gradients * accumulated + reduced * (contiguous and overlapped)
        behind = gradients * in_place + reduced * (contiguous and not overlapped)
    else:
        in_place = not contiguous
        buckets += reduced * (contiguous + accumulated)
        behind = gradients * in_place
    passes = pass_bytes(model, inputs, on_gpu=on_gpu, with_gradients=in_place)
    copies = 0 if offloaded else (itemsize + in_fp32) * max(shares.values())
    return {
        "state": state,
        "buckets": buckets,
        "passes": passes,
        "peak": state + buckets + max(passes, behind + copies),
    }


def optimizer_groups(model: nn.Module, *, use_adam_for_visual: bool) -> dict[str, list[int]]:
    """Values of each parameter that is trained, in the order and by the names of the optimisers' groups."""
    rates = dict.fromkeys(("lr", "weight_decay", "adam_epsilon", "sgd_lr", "sgd_momentum", "sgd_weight_decay"), 0.0)
    groups = parameter_groups(model, **rates, use_adam_for_visual=use_adam_for_visual)
    return {group["name"]: [parameter.numel() for parameter in group["params"]] for group in groups}


def reduced_values(groups: list[list[int]], world_size: int) -> int:
    """Values of the gradients that a rank keeps once they are reduced, of the rank that has most.

    Ranks have equal shares of each group. A parameter that crosses from one share to the next is kept whole by both.
    """
    kept = [0] * world_size
    for sizes in groups:
        share, end = -(-sum(sizes) // world_size), 0
        for size in sizes:
            begin, end = end, end + size
            for rank in range(begin // share, (end - 1) // share + 1):
                kept[rank] += size
    return max(kept)


def device_memory(config: TrainingConfig, device: torch.device) -> float:
    """Bytes that a training may fill, the reserve included.

    Raises:
        UserError: if there is no GPU, and no flag in its place.
    """
    if config.memory_limit is not None:
        return config.memory_limit * GB
    if device.type != "cuda":
        raise UserError("there is no GPU whose memory could be filled; say with --memory_limit GB how much there is")
    return torch.cuda.get_device_properties(device).total_memory


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


def largest_micro_batch(
    config: TrainingConfig,
    description: ModelDescription,
    settings: Mapping[str, Any],
    world_size: int,
    limit: float,
    sentences_per_pass: float = 1.0,
) -> int:
    """Samples of the largest micro-batch that fits into `limit` bytes, and that makes up the global batch exactly.

    Args:
        sentences_per_pass: the mean number of sentences that share a pass of the backbone.

    Raises:
        UserError: if not even the smallest one fits.
    """
    share, shared = (config.global_batch_size or 0) // world_size, config.sentences_per_image
    choices = [samples for samples in range(shared, share + 1, shared) if share % samples == 0]
    fits = {"choices": choices, "limit": (1 - RESERVE) * limit}
    samples = _count(fits, config, description, settings, world_size, sentences_per_pass)
    if not samples:
        fewest = "1 sample fits" if shared == 1 else f"{shared} samples fit"
        raise UserError(
            f"--micro_batch_size auto: not even {fewest} into {limit / GB:.1f} GB with "
            f"--activation_checkpointing {config.activation_checkpointing}; choose `all`, or a smaller model"
        )
    return samples


def check_micro_batch(
    config: TrainingConfig,
    description: ModelDescription,
    settings: Mapping[str, Any],
    world_size: int,
    limit: float,
    sentences_per_pass: float = 1.0,
) -> None:
    """Raises UserError if --batch_size takes more than `limit` bytes, by count, with the number that would fit."""
    count = partial(_count, config=config, description=description, settings=settings, world_size=world_size)
    peak = count({"samples": config.batch_size}, sentences_per_pass=sentences_per_pass)
    if peak <= (1 - RESERVE) * limit:
        return
    fewer = list(range(config.sentences_per_image, config.batch_size, config.sentences_per_image))
    fitting = count({"fewer": fewer, "limit": (1 - RESERVE) * limit}, sentences_per_pass=sentences_per_pass)
    remedy = "not even one sample fits: choose a smaller model"
    if fitting:
        remedy = f"lower it to {fitting} or fewer (--global_batch_size keeps the samples of a step)"
    raise UserError(
        f"--batch_size {config.batch_size} takes {peak / GB:.3g} GB at its peak, by count, and the device has "
        f"{limit / GB:.3g} GB, {RESERVE:.0%} of which are kept free; {remedy}, or compute activations twice with "
        "--activation_checkpointing all"
    )


def _count(
    question: Mapping[str, Any],
    config: TrainingConfig,
    description: ModelDescription,
    settings: Mapping[str, Any],
    world_size: int,
    sentences_per_pass: float,
) -> int:
    """`answer` in a process of its own: a backward pass starts threads, and loading workers are still to be forked."""
    about = what_to_count(config, description, settings, world_size, sentences_per_pass)
    counted = subprocess.run(
        [sys.executable, "-m", "engine.training.preflight.memory"],
        input=json.dumps({**question, **about}),
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(counted.stdout)


def what_to_count(
    config: TrainingConfig,
    description: ModelDescription,
    settings: Mapping[str, Any],
    world_size: int,
    sentences_per_pass: float,
) -> dict[str, Any]:
    """A training as `peak_counter` takes it, in values that JSON knows."""
    return {
        "description": {**description.to_dict(), "vocabulary": None},
        "dtype": {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[config.precision],
        "checkpointing": config.activation_checkpointing,
        "freeze_clip": config.freeze_clip,
        "use_adam_for_visual": config.use_adam_for_visual,
        "sgd_momentum": config.sgd_momentum > 0,
        "world_size": world_size,
        "settings": settings,
        "sentences_per_pass": sentences_per_pass,
    }


def peak_counter(question: Mapping[str, Any]) -> Callable[..., int]:
    """What counts the bytes that a micro-batch of so many `samples` takes at its peak.

    With a `share`, so many samples of a step are a rank's, and the accumulation follows; else the settings have it.
    """
    description = ModelDescription.from_dict(question["description"], "the question")
    with torch.device("meta"):
        model = description.build()
    cast_parameters(model, getattr(torch, question["dtype"]))
    model.bert.encoder.activation_checkpointing = question["checkpointing"]
    model.bert.encoder.visual_model.requires_grad_(not question["freeze_clip"])

    @cache
    def peak(samples: int, share: int | None = None) -> int:
        settings = question["settings"]
        if share is not None:
            settings = {**settings, "gradient_accumulation_steps": share // samples}
        inputs = inputs_on_meta(description, samples, question["sentences_per_pass"])
        named = {name: question[name] for name in ("world_size", "use_adam_for_visual", "sgd_momentum")}
        return training_bytes(model, inputs, settings, **named)["peak"]

    return peak


def answer(question: Mapping[str, Any]) -> int:
    """The peak of so many `samples`; or of `fewer`, or of `choices`, the largest number that is within `limit`, or 0.

    The last of the choices is a rank's whole share of a step. It needs no accumulated gradients, so it may take less
    than a smaller one; among the others, the larger one takes more.
    """
    peak = peak_counter(question)

    def largest(samples: list[int], share: int | None = None) -> int:
        fitting = bisect_right(samples, question["limit"], key=lambda number: peak(number, share))
        return samples[fitting - 1] if fitting else 0

    if "samples" in question:
        return peak(question["samples"])
    if "fewer" in question:
        return largest(question["fewer"])
    *accumulated, whole = question["choices"]
    if peak(whole, whole) <= question["limit"]:
        return whole
    return largest(accumulated, whole)


def inputs_on_meta(description: ModelDescription, samples: int, sentences_per_pass: float = 1.0) -> dict[str, Any]:
    """A model's inputs with labels of all kinds, without memory; see docs/architecture.md, hop 15."""
    num_images = math.ceil(samples / sentences_per_pass)
    sizes, answers = description.preprocessing, len(description.answers or ())
    with torch.device("meta"):
        words = torch.zeros(samples, sizes.max_seq_length, dtype=torch.int64)
        images = torch.zeros(num_images, 3, sizes.image_size_min, sizes.image_size_max, dtype=torch.uint8)
        state = torch.zeros(3, dtype=torch.int64)
        inputs = {"input_ids": words, "token_type_ids": words, "attention_mask": words, "images": images}
        if num_images < samples:
            inputs["grid_of"] = words[:, 0]
        if description.architecture == "pretraining":
            labels: dict[str, Any] = {"matched_label": words[:, 0], "ans": words[:, 0]}
            masked, _ = pack_labels(np.full(words.shape, IGNORE), PretrainingOptions.word_mask_rate)  # by default
            places = torch.zeros(len(masked), dtype=torch.int64)
            labels |= {"masked_positions": places, "masked_lm_labels": places}
        else:
            labels = {"target": torch.zeros(samples, answers), "is_labelled": words[:, 0].bool()}
    return {**inputs, **labels, "sampling_state": state}


if __name__ == "__main__":
    print(answer(json.load(sys.stdin)))
