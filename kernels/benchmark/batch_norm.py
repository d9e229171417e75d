"""Batch norm with shortcut and ReLU, timed beside PyTorch's operators and torch.compile of them, in one run.

    python -m kernels.benchmark.batch_norm --json batch_norm.json
    python -m kernels.benchmark.batch_norm --device cpu

The features are those of RN50 on images of 384 x 640, channels_last. Before anything is timed, each result and gradient
is compared with the same in fp64. What is compared takes turns, and medians count.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._functorch import config as functorch_config
from tqdm import tqdm

from kernels.backend import use_triton
from kernels.batch_norm import Norm, batch_norm, batch_norm_add
from kernels.benchmark.comparing import compare, save
from kernels.benchmark.shapes import DTYPES, Implementation
from kernels.benchmark.timing import Subject, copy_gigabytes_per_second, device_name

SETS = 2  # of inputs, which take turns; both together are larger than a GPU's cache
NOTES = """
us       median. On a GPU: device time in a CUDA graph, else of eager calls; on a CPU: all of it
GB/s     the fewest bytes over that time: features read twice (statistics, then all else), the rest once, in the
         backward pass g as well; %: of what a plain copy reaches in this run
x        how many times as long the other takes"""


class Shape(NamedTuple):
    name: str
    channels: int
    height: int
    width: int
    shortcut: bool


SHAPES = [
    Shape("stem", 64, 192, 320, False),
    Shape("stage 1", 64, 96, 160, False),
    Shape("stage 1, shortcut", 256, 96, 160, True),
    Shape("stage 2, shortcut", 512, 48, 80, True),
    Shape("stage 3", 256, 24, 40, False),
    Shape("stage 3, shortcut", 1024, 24, 40, True),
    Shape("stage 4, shortcut", 2048, 12, 20, True),
]


def fewest_bytes(shape: Shape, images: int, dtype: str, direction: str) -> int:
    tensor = images * shape.channels * shape.height * shape.width * DTYPES[dtype].itemsize
    forward = tensor * (4 if shape.shortcut else 3)  # features twice, (shortcut), result
    # d_out, (result), features, (g); then g, features, d_features
    backward = tensor * (7 if shape.shortcut else 5)
    return {"forward": forward, "backward": backward, "both": forward + backward}[direction]


@dataclass
class Inputs:
    """Noise, and the gradient of the result."""

    shape: Shape
    images: int
    dtype: torch.dtype
    device: str
    seed: int
    leaves: tuple[Tensor, ...] = field(init=False)
    d_tokens: Tensor = field(init=False)

    def __post_init__(self) -> None:
        noise = torch.Generator(self.device).manual_seed(self.seed)
        size = (self.images, self.shape.channels, self.shape.height, self.shape.width)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=noise, device=self.device, dtype=self.dtype)

        def features() -> Tensor:
            return normal(*size).contiguous(memory_format=torch.channels_last)

        scale, shift = 1 + normal(size[1]) / 4, normal(size[1]) / 4
        leaves = (features(), scale, shift, *((features(),) if self.shape.shortcut else ()))
        self.leaves = tuple(leaf.requires_grad_() for leaf in leaves)
        self.d_tokens = features()

    @property
    def running(self) -> tuple[Tensor, Tensor]:
        """New ones for each call: PyTorch's batch norm keeps them for the backward pass, and nobody may move them."""
        return torch.zeros(self.shape.channels, device=self.device), torch.ones(self.shape.channels, device=self.device)

    def finished(self, gradients: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return gradients


def ours(inputs: Inputs, _: Tensor | None) -> tuple[Tensor, Tensor]:
    features, scale, shift, *shortcut = inputs.leaves
    norm = Norm(scale, shift, *inputs.running, by_batch=True)
    if shortcut:
        return batch_norm_add(features, shortcut[0], norm)
    out = batch_norm(features, norm, relu=True)
    return out, out


def operators(leaves: tuple[Tensor, ...], running: tuple[Tensor, Tensor], relu: bool = True) -> Tensor:
    """PyTorch's own, with half features and fp32 weights and statistics as in autocast."""
    features, scale, shift, *shortcut = leaves
    wide = running[0].dtype
    out = F.batch_norm(features, *running, scale.to(wide), shift.to(wide), training=True)
    out = out + shortcut[0] if shortcut else out
    return F.relu(out) if relu else out


def implementations() -> dict[str, Implementation]:
    functorch_config.donated_buffer = False  # one forward pass serves many backward passes that are timed
    compiled = torch.compile(operators, fullgraph=True, dynamic=False)

    def of(function: Callable[..., Tensor]) -> Implementation:
        return Implementation(lambda inputs, _: (out := function(inputs.leaves, inputs.running), out))

    return {"ours": Implementation(ours), "operators": of(operators), "compiled": of(compiled)}


def check(implementation: Implementation, inputs: Inputs) -> None:
    """Compare with fp64.

    Raises:
        AssertionError: if a result or a gradient is off by more than roundings explain, in the norm.
    """
    out, _ = implementation.compute(inputs, None)
    gradients = torch.autograd.grad(out, inputs.leaves, inputs.d_tokens)
    wide = tuple(leaf.detach().double().requires_grad_() for leaf in inputs.leaves)
    running = tuple(tensor.double() for tensor in inputs.running)
    # Signs within rounding of zero are the implementation's own affair.
    exact = operators(wide, (running[0], running[1]), relu=False) * (out > 0)
    exact_gradients = torch.autograd.grad(exact, wide, inputs.d_tokens.double())
    # A few roundings of half precision; or of fp32, in sums that a CPU takes pixel by pixel: sqrt(R) of them are usual.
    pixels = out.numel() // out.shape[1]
    u = max(torch.finfo(inputs.dtype).eps / 2, 2.0**-24 * pixels**0.5)
    for name, found, truth in zip(
        ("result", "d_features", "d_scale", "d_shift", "d_shortcut"),
        (out, *gradients),
        (exact, *exact_gradients),
        strict=False,
    ):
        error = ((found.double() - truth).norm() / truth.norm()).item()
        assert error <= 3 * u, f"{name} is off by {error:.1e} of its norm"


def measure(shape: Shape, options: argparse.Namespace) -> dict[tuple[str, str], Subject]:
    torch.compiler.reset()
    sets = [Inputs(shape, options.images, DTYPES[options.dtype], options.device, seed) for seed in range(SETS)]
    return compare(implementations(), check, sets, shape.name, options.device, options.rounds)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.benchmark.batch_norm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if gpu else "cpu")
    parser.add_argument("--dtype", choices=list(DTYPES), help="fp16; on a CPU fp32")
    parser.add_argument("--images", type=int, help="32; on a CPU 2")
    parser.add_argument("--shapes", type=int, default=len(SHAPES), help="the last ones, which are the smallest")
    parser.add_argument("--rounds", type=int, default=20, help="times that each is timed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    if on_gpu and not gpu:
        parser.error("--device cuda: torch finds no GPU here; --device cpu times the CPU paths")
    options.dtype = options.dtype or ("fp16" if on_gpu else "fp32")
    options.images = options.images or (32 if on_gpu else 2)
    if min(options.images, options.shapes, options.rounds) < 1:
        parser.error("--images, --shapes and --rounds have to be 1 or more")
    try:
        backend = "triton" if use_triton(options.device) else "torch"
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    copy = copy_gigabytes_per_second(options.device, options.rounds)
    print(
        f"{device_name(options.device)}, {backend}, {options.dtype}, {options.images} images; copies {copy:.0f} GB/s\n"
    )
    print(f"{'':28}{'us':>10}{'GB/s':>8}{'%':>6}{'x operators':>13}{'x compiled':>12}")
    rows: list[dict[str, Any]] = []
    for shape in tqdm(SHAPES[-options.shapes :], disable=None, leave=False):
        subjects = measure(shape, options)
        for name, direction in subjects:
            microseconds = subjects[name, direction].samples.median()
            bandwidth = fewest_bytes(shape, options.images, options.dtype, direction) / microseconds / 1e3
            ratios = {
                f"ratio_to_{other}": subjects[other, direction].samples.median() / microseconds
                for other in ("operators", "compiled")
                if (other, direction) in subjects
            }
            row = {"shape": shape.name, "implementation": name, "direction": direction, "microseconds": microseconds}
            row |= {"gb_per_s": bandwidth, "percent_of_copy": 100 * bandwidth / copy, **ratios}
            rows.append(row | {"device": device_name(options.device), "dtype": options.dtype, "images": options.images})
            if name == "ours":
                shown = "".join(f"{ratio:{width}.2f}" for ratio, width in zip(ratios.values(), (13, 12), strict=False))
                title = f"{shape.name}, {direction}"
                tqdm.write(f"{title:28}{microseconds:10.1f}{bandwidth:8.1f}{100 * bandwidth / copy:6.0f}{shown}")
        if options.json:
            save(options.json, partial(Path.write_text, data=json.dumps(rows, indent=1) + "\n"))
    print(NOTES)


if __name__ == "__main__":
    main()
