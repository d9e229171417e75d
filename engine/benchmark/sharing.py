"""How much faster a step is where sentences share their image's pass through the backbone, beside the bound.

    python -m engine.benchmark.sharing --json sharing.json                    on a GPU: RN50, 128 sentences, fp16
    python -m engine.benchmark.sharing --device cpu --json sharing.json       16 sentences, fp32: fifteen minutes

One engine takes steps of as many sentences with K = 1, 2, 4 and 8 sentences per image (--sentences_per_image), in
turns. With K = 1, the backbone's forward and backward pass have the share b of a step. Nothing else can be saved, so
K gives a step that is 1 / (1 - b + b / K) times as fast at best, if the backbone takes as long for each image as with
K = 1. Likewise for the memory at its peak, of which the share m is what autograd keeps of the backbone, as counted: at
best 1 - m + m / K of it is left.
"""

import argparse
import datetime
import statistics
import sys
from typing import Any

import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from engine.benchmark.counting import Memory
from engine.benchmark.machine import describe
from engine.benchmark.step.measuring import WARM_UP, Samples, built, measure, warm_up
from engine.benchmark.step.original import as_loaded
from engine.benchmark.step.ours import Ours
from engine.benchmark.step.parts import Recorder
from engine.benchmark.step.workload import Workload, add_flags, check_files, check_sizes, settle_flags, write_figures
from engine.data.loading import Batch
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.model.activations import activation_bytes

GB = 1e9
NOTES = """
of bound   the speed-up that was measured, over 1 / (1 - b + b / K); b is the backbone's share of a step with K = 1
per image  the backbone's seconds for an image over those with K = 1; the bound takes them for equal, so where this is
           less than 1, more than 100 % of the bound can be reached
memory     the peak over that with K = 1, and 1 - m + m / K, at which it would be if all else stayed"""


class Shared:
    """The engine's step on another batch."""

    def __init__(self, ours: Ours, batch: Batch) -> None:
        self.ours, self.batch = ours, as_loaded(batch, ours.device)
        self.recorder: Recorder = ours.recorder

    def step(self) -> None:
        self.ours.batch = self.batch
        self.ours.step()

    def close(self) -> None:
        self.ours.close()


def run(options: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """All figures, timed in one process with one engine."""
    height, width = options.image_size
    work = Workload(
        *(options.model, options.layers, options.hidden_size, options.sub_feat_num, height, width, options.dtype)
    )
    batch = work.batch(options.batch)

    def alone() -> Shared:
        return Shared(Ours(work.model(), batch, work.config(options.batch), device), batch)

    subject, peak = built(alone, device.type)
    with Memory(device.type) as step:
        warm_up(subject, 1)
    kept, peaks = peak - step.peak, {1: peak}
    subjects = {1: subject}
    for number in options.sentences_per_image[1:]:
        subjects[number] = Shared(subject.ours, work.batch(options.batch, number))
        warm_up(subjects[number], WARM_UP - 1)
        with Memory(device.type) as step:
            warm_up(subjects[number], 1)
        peaks[number] = kept + step.peak
    names = {f"K = {number}": each for number, each in subjects.items()}
    samples = dict(zip(subjects, measure(names, device.type, options.rounds, options.steps).values(), strict=True))
    backbone_share = backbone_seconds(samples[1]) / sum(samples[1].median_parts().values())
    memory_share = backbone_keeps(work, options.batch) / peaks[1]
    subject.close()
    return {
        "date": datetime.date.today().isoformat(),
        "model": options.model,
        "layers": options.layers,
        "hidden_size": options.hidden_size,
        "sub_feat_num": options.sub_feat_num,
        "image_size": options.image_size,
        "sentences": options.batch,
        "dtype": options.dtype,
        "rounds": options.rounds,
        **describe(device.type),
        "backbone_share": backbone_share,
        "backbone_share_of_peak": memory_share,
        "rows": [
            row_of(number, samples, peaks, backbone_share, memory_share, options.batch) for number in sorted(samples)
        ],
    }


def backbone_keeps(work: Workload, images: int) -> int:
    """Bytes that autograd keeps of the backbone's forward pass on so many images."""
    model, inputs = work.on_meta(images)
    backbone = model.bert.encoder.visual_model.visual
    return activation_bytes(backbone, {"images": inputs["images"].to(backbone.conv1.weight.dtype)})


def backbone_seconds(samples: Samples) -> float:
    """Of its forward and its backward pass in a step."""
    parts = samples.median_parts()
    return parts["backbone"] + parts["backbone backward"]


def row_of(
    number: int, samples: dict[int, Samples], peaks: dict[int, int], share: float, memory_share: float, sentences: int
) -> dict[str, float]:
    """Speed and memory with `number` sentences per image, beside those with one."""
    # Rounds are compared one by one: what slows the machine down for a while meets both.
    ratios = [one / ours for one, ours in zip(samples[1].seconds, samples[number].seconds, strict=True)]
    speed_up, bound = statistics.median(ratios), 1 / (1 - share + share / number)
    return {
        "sentences_per_image": number,
        "sentences_per_second": sentences / samples[number].median,
        "speed_up": speed_up,
        "bound": bound,
        "share_of_bound": speed_up / bound,
        "backbone_per_image": number * backbone_seconds(samples[number]) / backbone_seconds(samples[1]),
        "peak_gb": peaks[number] / GB,
        "memory": peaks[number] / peaks[1],
        "memory_bound": 1 - memory_share + memory_share / number,
    }


def show(report: dict[str, Any]) -> None:
    height, width = report["image_size"]
    print(
        f"{report['device_name']}: {report['model']} and {report['layers']} layers, {report['sentences']} sentences, "
        f"images of {height} x {width}, {report['dtype']}\n"
        f"the backbone has {100 * report['backbone_share']:.1f} % of a step (b), and what it keeps has "
        f"{100 * report['backbone_share_of_peak']:.1f} % of the peak of memory (m)\n"
    )
    columns = ("K", "sentences/s", "speed-up", "bound", "of bound", "per image", "peak GB", "memory", "at best")
    print("".join(f"{column:>12}" for column in columns))
    for row in report["rows"]:
        print(
            f"{row['sentences_per_image']:>12}{row['sentences_per_second']:>12.2f}{row['speed_up']:>12.2f}"
            f"{row['bound']:>12.2f}{100 * row['share_of_bound']:>10.0f} %{row['backbone_per_image']:>12.2f}"
            f"{row['peak_gb']:>12.2f}{row['memory']:>12.2f}{row['memory_bound']:>12.2f}"
        )
    print(NOTES)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.sharing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    here = get_accelerator().device_name()
    add_flags(parser, here)
    parser.add_argument("--batch", type=int, help="sentences of a step; 128, on a CPU 16")
    parser.add_argument("--sentences_per_image", type=int, nargs="+", default=[1, 2, 4, 8], metavar="K")
    options = parser.parse_args(arguments)
    settle_flags(
        parser, options, here, ["engine.benchmark.sharing", *(sys.argv[1:] if arguments is None else arguments)]
    )
    if options.batch is None:
        options.batch = 128 if options.device == "cuda" else 16
    return options


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError, naming the flag to change."""
    for name in ("batch", "layers", "sub_feat_num", "rounds", "steps"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} {getattr(options, name)}: 1 or more is needed")
    numbers = options.sentences_per_image = sorted({1, *options.sentences_per_image})
    if numbers[0] < 1 or any(options.batch % number for number in numbers):
        raise UserError(f"--sentences_per_image {numbers}: each has to divide the --batch of {options.batch} sentences")
    check_sizes(options)
    check_files(options.json)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with telling_errors():
        Ranks.check_alone()
        check_options(options)
        device = pick_device(Ranks.from_environment())
        join()
        report = run(options, device)
        show(report)
        write_figures(options.json, report)
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
