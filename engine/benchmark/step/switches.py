"""Optimisations by name, each of which the benchmark can turn over: off what the engine has on, on what it could have.

A switch changes one thing of a step and nothing of its numbers, up to rounding. What the engine gets one day moves from
off to on, and its function then undoes it. `python -m engine.benchmark.step --ablate` measures each turned over alone.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from deepspeed import DeepSpeedEngine

from engine.benchmark.backbones import run_plainly
from engine.benchmark.step.original import (
    eager_attention,
    float_images,
    label_all_words,
    plain_feed_forward,
    sample_on_the_host,
)
from engine.data.loading import Batch
from engine.errors import UserError
from engine.model.compilation import compile_forward
from engine.model.pretraining import ClipVilForPretraining


def nothing(_: Any) -> None:
    """Leaves things as they are."""


@dataclass(frozen=True)
class Switch:
    """What turns it over: functions on what a step is made of."""

    about: str
    on: bool  # in the engine as it is
    model: Callable[[ClipVilForPretraining], None] = nothing  # built, before DeepSpeed has it
    settings: Callable[[dict[str, Any]], None] = nothing  # DeepSpeed's
    engine: Callable[[DeepSpeedEngine], None] = nothing  # finished
    batch: Callable[[Batch], Batch] = lambda batch: batch  # on the host
    around: Callable[[], AbstractContextManager[Any]] = nullcontext  # each step
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")  # in which it changes anything
    devices: tuple[str, ...] = ("cpu", "cuda")


def loops_over_parameters(engine: DeepSpeedEngine) -> None:
    """Operator by operator instead of one kernel for an update."""
    for group in engine.optimizer.optimizer.param_groups:
        group.update(fused=False, foreach=False)


def compile_backbone(model: ClipVilForPretraining) -> None:
    """Our kernels are no business of the compiler's; it gets the plain operators, and fuses them itself."""
    backbone = model.bert.encoder.visual_model.visual
    run_plainly(backbone, layout=torch.channels_last)
    backbone.forward = torch.compile(backbone.forward, dynamic=False)  # type: ignore[method-assign]  # hooks stay outside


def compile_encoder(model: ClipVilForPretraining) -> None:
    for layer in model.bert.encoder.layer:
        compile_forward(layer)


def checkpoint(part: str) -> Callable[[ClipVilForPretraining], None]:
    return lambda model: setattr(model.bert.encoder, "activation_checkpointing", part)


def zero_setting(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda settings: settings["zero_optimization"].update({name: value})


SWITCHES = {
    "uint8_images": Switch("images travel as uint8, normalised on the device", True, batch=float_images),
    "device_sampling": Switch("cells drawn and gathered on the device, by our kernels", True, model=sample_on_the_host),
    "sdpa": Switch("attention as one operator", True, model=eager_attention),
    "recomputed_gelu": Switch("GELU's result computed again, not kept", True, model=plain_feed_forward),
    "packed_words": Switch("words scored where they are masked alone", True, batch=label_all_words),
    "fused_optimizers": Switch("an update of a parameter group in one kernel", True, engine=loops_over_parameters),
    "fused_norms": Switch(
        "batch norm, shortcut and ReLU in one pass, by our kernels, kept once",
        True,
        model=partial(run_plainly, layout=torch.channels_last),
    ),
    "channels_last": Switch("the backbone in NHWC; without, operator by operator in NCHW", True, model=run_plainly),
    "small_buckets": Switch(
        "ZeRO's buckets of 3e7 elements, not 5e8", True, settings=zero_setting("reduce_bucket_size", 500_000_000)
    ),
    "gradients_in_place": Switch(
        "a rank alone leaves gradients where autograd made them",
        True,
        settings=zero_setting("contiguous_gradients", True),
    ),
    "no_throughput_timer": Switch(
        "without DeepSpeed's timer, which waits for the device twice a step",
        True,
        settings=lambda settings: settings.update({"timers": {"throughput": {"enabled": True}}}),
    ),
    "cudnn_benchmark": Switch(
        "cuDNN tries its algorithms for each shape",
        False,
        around=partial(torch.backends.cudnn.flags, enabled=True, benchmark=True),
        devices=("cuda",),
    ),
    "checkpointed_early": Switch(
        "what --activation_checkpointing early computes again", False, model=checkpoint("early")
    ),
    "checkpointed_all": Switch("what --activation_checkpointing all computes again", False, model=checkpoint("all")),
    "compiled_layers": Switch(
        "torch.compile of BERT's layers, as with --compile", False, model=compile_encoder, devices=("cuda",)
    ),
    "compiled_backbone": Switch("torch.compile of the backbone", False, model=compile_backbone, devices=("cuda",)),
}


def named(names: str, *, on: bool) -> list[str]:
    """The switches in a list with commas, which have to be on, or off, in the engine.

    Raises:
        UserError: for one that isn't there, or is so already.
    """
    found = [name.strip() for name in names.split(",") if name.strip()]
    choices = [name for name, switch in SWITCHES.items() if switch.on == on]
    for name in found:
        if name not in choices:
            flag, state = ("--without", "on") if on else ("--with", "off")
            raise UserError(
                f"{flag} {name}: no optimisation of this name is {state} here; there are {', '.join(choices)}"
            )
    return found


def useful(turned: Iterable[str], device: str, dtype: str) -> list[str]:
    """Those of all switches that can change anything here, and aren't turned over already."""
    return [
        name
        for name, switch in SWITCHES.items()
        if name not in turned and dtype in switch.dtypes and device in switch.devices
    ]
