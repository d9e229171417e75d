"""One training step of a whole model, part by part, ours beside the original's way, in one run.

    python -m engine.benchmark.step --json step.json                     on the GPU: RN50, 32 images, fp16
    python -m engine.benchmark.step --device cpu --model RN50 --batch 2
    python -m engine.benchmark.step --batch largest --ablate

Both models are first held against numbers recorded from the original; one that differs ends the run. Then they take
turns. The baseline does the original's work the straightforward way: fp32 images from the host, batch norm as apex's O1
had it, eager attention with an additive mask, cells drawn on the host, updates parameter by parameter (autocast stands
for apex; engine/benchmark/step/original.py). `plain` is no more than forward and backward pass of the same modules in
eager PyTorch: what the baseline must not be slower than. docs/benchmarks/gpu.md says what each figure means.
"""

import argparse
import sys
from pathlib import Path

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from engine.benchmark.step.run import Benchmark
from engine.benchmark.step.switches import SWITCHES
from engine.benchmark.step.workload import add_flags, check_files, check_sizes, settle_flags
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks
from engine.errors import UserError


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    here = get_accelerator().device_name()
    on, off = (", ".join(name for name, switch in SWITCHES.items() if switch.on == state) for state in (True, False))
    add_flags(parser, here)
    parser.add_argument("--batch", default="", help="images of a step, or `largest`: what fits; 32, on a CPU 2")
    parser.add_argument("--without", default="", metavar="NAMES", help=f"turn off: {on}")
    parser.add_argument("--with", default="", dest="with_", metavar="NAMES", help=f"turn on: {off}")
    parser.add_argument("--ablate", action="store_true", help="also measure each of them turned over, one at a time")
    parser.add_argument("--minutes", type=float, default=60, help="after these, leave out what is left of --ablate")
    parser.add_argument("--memory_gb", type=float, help="for `largest`: how much there is; what is free on the GPU")
    rates = [250, 500, 1000, 2000, 4000]
    parser.add_argument("--loader_rates", type=float, nargs="+", default=rates, help="images a second, for data_wait")
    golden = Path(__file__).resolve().parents[3] / "tests" / "golden" / "model_pretrain"
    parser.add_argument("--golden", type=Path, default=golden, metavar="DIR", help="the recorded numbers")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="torch.profiler's trace of one step, and its table")
    options = parser.parse_args(arguments)
    command = ["engine.benchmark.step", *(sys.argv[1:] if arguments is None else arguments)]
    settle_flags(parser, options, here, command)
    options.batch = options.batch or ("32" if options.device == "cuda" else "2")
    return options


def check_options(options: argparse.Namespace) -> None:
    """Raises UserError, naming the flag to change."""
    if options.batch != "largest" and not (options.batch.isdecimal() and int(options.batch) > 0):
        raise UserError(f"--batch {options.batch}: a number of images, or `largest`, is needed")
    if options.batch == "largest" and options.device == "cpu" and options.memory_gb is None:
        raise UserError("--batch largest: a CPU has no memory of its own; say how much with --memory_gb")
    for name in ("layers", "sub_feat_num", "rounds", "steps", "minutes"):
        if not getattr(options, name) > 0:
            raise UserError(f"--{name} {getattr(options, name)}: more than 0 is needed")
    if not all(rate > 0 for rate in options.loader_rates):
        raise UserError("--loader_rates: images a second, each more than 0, are needed")
    check_sizes(options)
    if not options.golden.is_dir():
        raise UserError(f"--golden {options.golden} is missing; the recorded numbers are in the project's tests/golden")
    check_files(options.json, options.trace)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    with telling_errors():
        Ranks.check_alone()
        check_options(options)
        device = pick_device(Ranks.from_environment())
        join()
        Benchmark(options, device).run()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
