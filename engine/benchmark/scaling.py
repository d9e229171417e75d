"""What the pre-training recipes take on 1, 8, 64 and 512 GPUs: counted, and predicted from that.

    python -m engine.benchmark.scaling
    python -m engine.benchmark.scaling --recipe rn50_stage_one --tflops 150 --network_gb_per_s 10

Counted on torch's meta device: operations of a step, values that are trained, and memory. What follows from them is no
better than the assumptions, which are flags: how much a GPU computes in a second over a whole step, and how fast GPUs
send to each other. The global batch is the recipe's on any number of GPUs, unless --grow has it grow with them.
"""

import argparse
from dataclasses import dataclass
from functools import cache
from typing import Any

from engine.benchmark.counting import flops
from engine.benchmark.step.workload import Workload
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import OptimizationConfig
from engine.configuration.parsing import parse
from engine.distributed.leaving import telling_errors
from engine.errors import UserError
from engine.optim.hybrid import trained_values
from engine.tasks.pretraining import PretrainConfig
from engine.training.preflight.memory import training_bytes
from engine.training.program import RECIPES

GB = 1e9
SENTENCES = 9_180_000  # of LXMERT's data
ITEMSIZE = 2  # bytes of a value in half precision
GPUS = 8  # that the recipes are for
GROUPS = 3  # of parameters: AdamW's with decay and without, and SGD's
COUNTED = 8  # sentences; operations grow with them in proportion
RECIPE_NAMES = ("rn50_stage_one", "rn50_stage_two", "rn50x4_stage_one", "rn50x4_stage_two")

NOTES = """
B x A      sentences of a micro-batch x accumulation; their product and the number of GPUs make the global batch
K          sentences that share a pass of their image (--sentences_per_image)
BN         images that a batch norm sees, B / K
memory     GB of a GPU at the peak, as `python -m engine.benchmark.memory` counts
sent       MB that a GPU sends in a step: gradients once for each micro-batch, weights once, as a ring sends them
compute    milliseconds of a step at --tflops; step: the same with what isn't hidden behind the backward pass
sentences  a second, on all GPUs; efficiency: over as many times one GPU's
images     that each GPU's loading processes have to deliver a second
GPU-hours  of all epochs that the recipe trains"""


@dataclass(frozen=True)
class Assumptions:
    """What hasn't been measured."""

    tflops: float  # that a GPU computes in a second, over forward and backward pass
    gpus_per_machine: int
    machine_gb_per_s: float  # that a GPU sends to the others of its machine
    network_gb_per_s: float  # and to those of other machines
    microseconds: float  # that a collective takes beside its bytes

    def seconds_to_send(self, size: float, calls: int, gpus: int) -> float:
        rate = self.machine_gb_per_s if gpus <= self.gpus_per_machine else self.network_gb_per_s
        return size / (rate * GB) + calls * self.microseconds / 1e6


@dataclass(frozen=True)
class Counts:
    """Of a recipe's model."""

    flops: float  # of a sentence's forward and backward pass
    values: int  # that are trained


def ring_bytes(values: int, gpus: int, accumulation: int) -> tuple[float, float]:
    """Bytes that a rank sends in a step under ZeRO-2: of gradients, reduced once per micro-batch, and of weights."""
    once = values * ITEMSIZE * (gpus - 1) / gpus
    return accumulation * once, once


def workload(config: PretrainConfig) -> Workload:
    height, width = config.image_size_min, config.image_size_max
    return Workload(config.clip_model_name, 12, 768, config.sub_feat_num, height, width, "fp16")


@cache
def on_meta(work: Workload, sentences: int, sentences_per_image: int) -> tuple[Any, dict[str, Any]]:
    """Model and inputs of so many sentences, without memory."""
    return work.on_meta(sentences, sentences_per_image=sentences_per_image)


@cache
def count(work: Workload, sentences_per_image: int) -> Counts:
    model, inputs = on_meta(work, COUNTED, sentences_per_image)
    return Counts(flops(model, inputs) / COUNTED, sum(trained_values(model)))


def predict(
    config: PretrainConfig, gpus: int, sentences_per_image: int, assumed: Assumptions, grow: bool = False
) -> dict[str, float]:
    """A recipe on so many GPUs.

    Args:
        grow: keep each GPU's samples of a step instead of the global batch.

    Raises:
        UserError: if the samples of a step can't be divided so.
    """
    share = config.batch_size * config.gradient_accumulation_steps  # of each of the GPUs that the recipe is for
    global_batch = share * (gpus if grow else GPUS)
    share = global_batch // gpus
    batch = min(config.batch_size, share)
    if share * gpus != global_batch or share % batch or batch % sentences_per_image:
        raise UserError(
            f"{global_batch} samples a step can't be divided among {gpus} GPUs, {sentences_per_image} to an image"
        )
    accumulation, work = share // batch, workload(config)
    counts = count(work, sentences_per_image)
    settings = deepspeed_settings(
        OptimizationConfig(batch_size=batch, gradient_accumulation_steps=accumulation, fp16=True), gpus
    )
    memory = training_bytes(*on_meta(work, batch, sentences_per_image), settings, world_size=gpus)["peak"]
    compute = share * counts.flops / (assumed.tflops * 1e12)
    gradients, weights = ring_bytes(counts.values, gpus, accumulation)
    sending = 0.0
    buckets = -(-counts.values // settings["zero_optimization"]["reduce_bucket_size"])
    if gpus > 1:
        # Each bucket is reduced part by part to the ranks that own it, hidden behind two thirds of compute. A rank has
        # a share of each group of the optimisers.
        calls = accumulation * max(buckets, GROUPS * gpus)
        reducing = assumed.seconds_to_send(gradients, calls, gpus)
        sending = max(0.0, reducing - compute * 2 / 3) + assumed.seconds_to_send(weights, 1, gpus)
    step = compute + sending
    rate = global_batch / step
    return {
        "batch": batch,
        "accumulation": accumulation,
        "norm_images": batch / sentences_per_image,
        "memory_gb": memory / GB,
        "sent_mb": (gradients + weights) / 1e6,
        "compute_ms": 1e3 * compute,
        "step_ms": 1e3 * step,
        "sentences_per_second": rate,
        "efficiency": compute / step,
        "images_per_second_and_gpu": rate / gpus / sentences_per_image,
        "gpu_hours": gpus * SENTENCES * config.last_epoch / rate / 3600,
    }


def line(gpus: int, sentences_per_image: int, found: dict[str, float]) -> str:
    return (
        f"{gpus:5}{sentences_per_image:4}{found['batch']:6.0f} x {found['accumulation']:<4.0f}"
        f"{found['norm_images']:6.1f}{found['memory_gb']:9.2f}{found['sent_mb']:9.0f}{found['compute_ms']:10.1f}{found['step_ms']:10.1f}"
        f"{found['sentences_per_second']:11.0f}{100 * found['efficiency']:10.0f} %"
        f"{found['images_per_second_and_gpu']:9.0f}{found['gpu_hours']:11.0f}"
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", nargs="+", choices=RECIPE_NAMES, default=RECIPE_NAMES)
    parser.add_argument("--gpus", nargs="+", type=int, default=[1, 8, 64, 512], metavar="N")
    parser.add_argument("--sentences_per_image", nargs="+", type=int, default=[1, 8], metavar="K")
    grown = "let the global batch grow with the GPUs, from the recipe's on 8"
    parser.add_argument("--grow", action="store_true", help=grown)
    parser.add_argument("--tflops", type=float, default=100.0, help="that a GPU computes over a step; 100")
    parser.add_argument("--gpus_per_machine", type=int, default=8)
    parser.add_argument("--machine_gb_per_s", type=float, default=200.0, help="a GPU sends within its machine; 200")
    parser.add_argument("--network_gb_per_s", type=float, default=20.0, help="a GPU sends to other machines; 20")
    parser.add_argument("--microseconds", type=float, default=20.0, help="of a collective, beside its bytes; 20")
    options = parser.parse_args(arguments)
    with telling_errors():
        numbers = [*options.gpus, *options.sentences_per_image, options.gpus_per_machine]
        rates = [options.tflops, options.machine_gb_per_s, options.network_gb_per_s]
        if min(numbers) < 1 or min(rates) <= 0 or options.microseconds < 0:
            raise UserError("all numbers of GPUs and sentences have to be 1 or more, and all rates more than 0")
        assumed = Assumptions(
            *(options.tflops, options.gpus_per_machine, options.machine_gb_per_s, options.network_gb_per_s),
            options.microseconds,
        )
        print(f"Predicted, not measured: {assumed}")
        for name in options.recipe:
            config, _ = parse(PretrainConfig, ["--recipe", name], RECIPES)
            print(f"\n{name}: {count(workload(config), 1).values / 1e6:.0f} million values, {config.last_epoch} epochs")
            print(
                f"{'GPUs':>5}{'K':>4}{'B x A':>10}{'BN':>9}{'memory':>9}{'sent':>9}{'compute':>10}{'step':>10}"
                f"{'sentences':>11}{'efficiency':>12}{'images':>9}{'GPU-hours':>11}"
            )
            for gpus in options.gpus:
                for number in options.sentences_per_image:
                    try:
                        print(line(gpus, number, predict(config, gpus, number, assumed, options.grow)), flush=True)
                    except UserError as error:
                        print(f"{gpus:5}{number:4}  {error}")
        print(NOTES)


if __name__ == "__main__":
    main()
