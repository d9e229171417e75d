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
import os
import sys
from pathlib import Path

import torch.distributed as dist
from deepspeed.accelerator import get_accelerator

from engine.benchmark.step.run import Benchmark
from engine.benchmark.step.switches import SWITCHES
from engine.benchmark.step.workload import HEAD_SIZE
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES, STRIDE
from engine.model.encoder import VisualShape, check_grid
from kernels.benchmark.shapes import DTYPES


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    here = get_accelerator().device_name()
    on, off = (", ".join(name for name, switch in SWITCHES.items() if switch.on == state) for state in (True, False))
    parser.add_argument("--device", choices=["cuda", "cpu"], default=here)
    parser.add_argument("--model", choices=list(SHAPES), default="RN50")
    parser.add_argument("--batch", default="", help="images of a step, or `largest`: what fits; 32, on a CPU 2")
    parser.add_argument("--dtype", choices=list(DTYPES), help="fp16; on a CPU fp32")
    parser.add_argument("--layers", type=int, default=12, help="of BERT")
    parser.add_argument("--hidden_size", type=int, default=768, help="of BERT, a multiple of 64")
    parser.add_argument("--sub_feat_num", type=int, default=100, help="cells drawn per image")
    parser.add_argument(
        "--image_size", type=int, nargs=2, default=[384, 640], metavar=("HEIGHT", "WIDTH"), help="384 640"
    )
    parser.add_argument("--without", default="", metavar="NAMES", help=f"turn off: {on}")
    parser.add_argument("--with", default="", dest="with_", metavar="NAMES", help=f"turn on: {off}")
    parser.add_argument("--ablate", action="store_true", help="also measure each of them turned over, one at a time")
    parser.add_argument("--rounds", type=int, help="times that each is measured; 10, on a CPU 5")
    parser.add_argument("--steps", type=int, help="steps on end each time; 4, on a CPU 1")
    parser.add_argument("--minutes", type=float, default=60, help="after these, leave out what is left of --ablate")
    parser.add_argument("--memory_gb", type=float, help="for `largest`: how much there is; what is free on the GPU")
    rates = [250, 500, 1000, 2000, 4000]
    parser.add_argument("--loader_rates", type=float, nargs="+", default=rates, help="images a second, for data_wait")
    golden = Path(__file__).resolve().parents[3] / "tests" / "golden" / "model_pretrain"
    parser.add_argument("--golden", type=Path, default=golden, metavar="DIR", help="the recorded numbers")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="torch.profiler's trace of one step, and its table")
    options = parser.parse_args(arguments)
    if options.device != here:
        if options.device == "cuda":
            parser.error("--device cuda: DeepSpeed finds no GPU here; --device cpu measures the CPU")
        # DeepSpeed chooses its accelerator once, when it is imported.
        command = [sys.executable, "-m", "engine.benchmark.step", *(sys.argv[1:] if arguments is None else arguments)]
        os.execve(sys.executable, command, {**os.environ, "DS_ACCELERATOR": "cpu"})
    on_gpu = options.device == "cuda"
    options.dtype = options.dtype or ("fp16" if on_gpu else "fp32")
    options.batch = options.batch or ("32" if on_gpu else "2")
    options.rounds = 10 if options.rounds is None and on_gpu else 5 if options.rounds is None else options.rounds
    options.steps = 4 if options.steps is None and on_gpu else 1 if options.steps is None else options.steps
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
    if options.dtype == "fp16" and options.device == "cpu":
        raise UserError("--dtype fp16 needs a GPU; on a CPU use bf16 or fp32")
    if options.hidden_size < HEAD_SIZE or options.hidden_size % HEAD_SIZE:
        raise UserError(f"--hidden_size {options.hidden_size}: a multiple of {HEAD_SIZE} is needed")
    if any(side < STRIDE or side % STRIDE for side in options.image_size):
        raise UserError(f"--image_size {options.image_size}: multiples of {STRIDE} are needed")
    height, width = options.image_size
    check_grid(VisualShape(SHAPES[options.model], options.sub_feat_num), height, width, STRIDE)
    if not options.golden.is_dir():
        raise UserError(f"--golden {options.golden} is missing; the recorded numbers are in the project's tests/golden")
    for path in (options.json, options.trace):
        if path is not None:
            try:
                path.touch()
            except OSError as error:
                raise UserError(f"{path} can't be written: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> None:
    ranks = Ranks.from_environment()
    options = parse(arguments)
    with telling_errors():
        if ranks.world_size > 1:
            raise UserError("this benchmark measures one device; start it without a launcher")
        check_options(options)
        device = pick_device(ranks)
        join()
        Benchmark(options, device).run()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
