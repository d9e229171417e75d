"""How much GPU memory a training takes with each choice of --activation_checkpointing, and what fits: counted.

    python -m engine.benchmark.memory

Nothing is run: engine.model.memory and engine.training.memory count on torch's meta device.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from engine.benchmark.step.workload import TOKENS, Workload
from engine.configuration.deepspeed import deepspeed_settings
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import CHECKPOINTED_STAGES
from engine.model.memory import activation_bytes, gpu_operators
from engine.training.memory import RESERVE, training_bytes

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


def main() -> None:
    print(NOTES)
    fits = "".join(f"{device:>5} GB" for device in DEVICES)
    print(f"\n{'backbone':10}{'cells':>5}  {'checkpointing':14}{'kept':>7}{'passes':>8}{'state':>7}{fits}")
    for backbone in (name for name in SHAPES if name != "tiny"):
        for cells in (100, CELLS):
            for part in CHECKPOINTED_STAGES:
                print(f"{backbone:10}{cells:5}  {part:14}{row(backbone, cells, part)}")


def row(backbone: str, cells: int, part: str) -> str:
    work = Workload(backbone, 12, 768, cells, HEIGHT, WIDTH, "fp16")
    kept, found = [], []
    for images in (FEW, MANY):
        model, inputs = on_meta(work, images, part)
        with gpu_operators():
            kept.append(activation_bytes(model, inputs) / GB)
        settings = deepspeed_settings(work.config(images), world_size=1)
        found.append({name: size / GB for name, size in training_bytes(model, inputs, settings).items()})
    a_sample = (found[1]["passes"] - found[0]["passes"]) / (MANY - FEW)
    state = found[0]["state"] + found[0]["buckets"]
    begin = found[0]["passes"] - FEW * a_sample
    largest = [int(((1 - RESERVE) * device - state - begin) / a_sample) for device in DEVICES]
    kept_a_sample = (kept[1] - kept[0]) / (MANY - FEW)
    return f"{kept_a_sample:7.3f}{a_sample:8.3f}{state:7.2f}" + "".join(f"{images:8}" for images in largest)


def on_meta(work: Workload, images: int, part: str) -> tuple[nn.Module, Mapping[str, Any]]:
    model, inputs = work.on_meta(images)
    model.bert.encoder.activation_checkpointing = part
    return model, inputs


if __name__ == "__main__":
    main()
