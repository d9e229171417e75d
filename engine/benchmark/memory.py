"""How much GPU memory a training takes, and what fits, by --activation_checkpointing and by ZeRO's stage: counted.

    python -m engine.benchmark.memory

Nothing is run: engine.model.memory and engine.training.preflight.memory count on torch's meta device.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from torch import nn

from engine.benchmark.step.workload import TOKENS, Workload
from engine.configuration.deepspeed import deepspeed_settings
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import CHECKPOINTED_STAGES
from engine.model.memory import activation_bytes, gpu_operators
from engine.training.preflight.memory import RESERVE, training_bytes

GB = 1e9
HEIGHT, WIDTH, CELLS = 384, 640, 240
DEVICES = (24, 40, 80)  # GB
FEW, MANY = 16, 32  # samples that are counted; all that grows with them grows in proportion

NOTES = f"""\
Counted, not measured on a GPU. GB are 10^9 bytes. Pre-training without answers, BERT base, {TOKENS} tokens,
{HEIGHT} x {WIDTH} images, fp16, ZeRO-2 on one GPU with the buckets of ds_configs/zero2_fp16.json.

cells      that a sequence has of each image; {CELLS} are all
kept       activations that autograd keeps for the backward pass, GB a sample
passes     the most that lives at once in forward and backward pass, GB a sample
state      weights and buckets, fp32 weights and moments, GB; the same for any number of samples
N GB       the largest micro-batch on a GPU of N GB, {RESERVE:.0%} of which are left to what isn't counted:
           the GPU's context, cuDNN's work space, and fragments between allocations"""

STAGES: dict[str, dict[str, Any]] = {  # what is changed in the section zero_optimization
    "stage 1": {"stage": 1},
    "stage 2": {},
    "stage 2, offload": {"offload_optimizer": {"device": "cpu"}},
}
ACCUMULATION = 2
STAGE_NOTES = f"""
ZeRO's stages: as above, with 100 cells, no checkpointing and {ACCUMULATION} micro-batches to a step, on so many GPUs.
state      weights and, of a GPU's share, fp32 weights and moments, GB; with offload, the host has the latter
gradients  buckets, and gradients that are kept beside a pass or are on their way to the host, GB"""


def main() -> None:
    argparse.ArgumentParser(
        prog="python -m engine.benchmark.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    ).parse_args()  # it has no flags, and says so
    print(NOTES)
    fits = "".join(f"{device:>5} GB" for device in DEVICES)
    print(f"\n{'backbone':10}{'cells':>5}  {'checkpointing':14}{'kept':>7}{'passes':>8}{'state':>7}{fits}")
    for backbone in (name for name in SHAPES if name != "tiny"):
        for cells in (100, CELLS):
            for part in CHECKPOINTED_STAGES:
                print(f"{backbone:10}{cells:5}  {part:14}{row(backbone, cells, part)}")
    print(STAGE_NOTES)
    print(f"\n{'backbone':10}{'GPUs':>5}  {'ZeRO':18}{'passes':>8}{'state':>7}{'gradients':>11}{fits}")
    for backbone in ("RN50", "RN50x4", "RN50x16"):
        for gpus in (1, 8):
            for name, zero in STAGES.items():
                print(f"{backbone:10}{gpus:5}  {name:18}{stage_row(backbone, gpus, zero)}", flush=True)


def row(backbone: str, cells: int, part: str) -> str:
    work = Workload(backbone, 12, 768, cells, HEIGHT, WIDTH, "fp16")
    kept = []
    for images in (FEW, MANY):
        with gpu_operators():
            kept.append(activation_bytes(*on_meta(work, images, part)) / GB)
    found = count(work, part)
    kept_a_sample = (kept[1] - kept[0]) / (MANY - FEW)
    state = found["state"] + found["buckets"]
    return f"{kept_a_sample:7.3f}{found['a_sample']:8.3f}{state:7.2f}" + largest(found)


def stage_row(backbone: str, gpus: int, zero: Mapping[str, Any]) -> str:
    work = Workload(backbone, 12, 768, 100, HEIGHT, WIDTH, "fp16")
    found = count(work, "none", gpus=gpus, accumulation=ACCUMULATION, zero=zero)
    return f"{found['a_sample']:8.3f}{found['state']:7.2f}{found['buckets']:11.2f}" + largest(found)


def count(
    work: Workload, part: str, *, gpus: int = 1, accumulation: int = 1, zero: Mapping[str, Any] | None = None
) -> dict[str, float]:
    """GB of state, of buckets, and of the passes: what each sample adds, and what is left of it without one."""
    found = []
    for images in (FEW, MANY):
        settings = deepspeed_settings(work.config(images), gpus) | {"gradient_accumulation_steps": accumulation}
        settings["zero_optimization"] |= zero or {}
        counted = training_bytes(*on_meta(work, images, part), settings, world_size=gpus)
        found.append({name: size / GB for name, size in counted.items()})
    a_sample = (found[1]["passes"] - found[0]["passes"]) / (MANY - FEW)
    return {**found[0], "a_sample": a_sample, "begin": found[0]["passes"] - FEW * a_sample}


def largest(found: Mapping[str, float]) -> str:
    """The largest micro-batches for all devices."""
    rest = found["state"] + found["buckets"] + found["begin"]
    fitting = (int(((1 - RESERVE) * device - rest) / found["a_sample"]) for device in DEVICES)
    return "".join(f"{images:8}" for images in fitting)


def on_meta(work: Workload, images: int, part: str) -> tuple[nn.Module, Mapping[str, Any]]:
    model, inputs = work.on_meta(images)
    model.bert.encoder.activation_checkpointing = part
    return model, inputs


if __name__ == "__main__":
    main()
