"""The backbone's memory traffic, counted without a GPU: what is kept for the backward pass, and what moves.

    python -m engine.benchmark.traffic
    python -m engine.benchmark.traffic --model RN50x4 --images 30

It compares the backbone as it is with the same one operator by operator, and as torch.compile would fuse it. A training
of a ResNet is limited by memory traffic, so fewer bytes are less time; on a GPU, `python -m engine.benchmark.step
--ablate` measures whether that holds.
"""

import argparse
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._functorch.aot_autograd import aot_module
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from tqdm import tqdm

from engine.benchmark.backbones import casting_norm, run_plainly, torch_norm
from engine.benchmark.counting import Traffic
from engine.model.activations import activation_bytes, cast_parameters
from engine.model.clip_resnet import SHAPES, ClipResNet
from engine.progress import Bar
from kernels.benchmark.shapes import DTYPES

GB = 1e9
NOTES = """
kept           what autograd keeps between forward and backward pass, beside weights and images
convolutions   what they read and write, each tensor once per operator, forward and backward
all else       the same of batch norm, ReLU, additions, pooling and casts; batch norm reads its features twice, and
               in the backward pass its gradient, too
of before      all else, over that of `before`
compiled is what Inductor's scheduler makes of the operators of PyTorch: its fusions are those for a CPU, which may
differ from a GPU's."""


class Counted(NamedTuple):
    """Bytes."""

    kept: int
    convolutions: int
    others: int


def counted(name: str, dtype: torch.dtype, images: int, size: tuple[int, int], change: Any = None) -> Counted:
    """Of a backbone's forward and backward pass, on the meta device."""
    with torch.device("meta"):
        backbone = ClipResNet(SHAPES[name])
        cast_parameters(backbone, dtype)
        batch = torch.empty(images, 3, *size, dtype=dtype)
        if change is not None:
            change(backbone)
        kept = activation_bytes(backbone, {"images": batch})
        with Traffic() as traffic:
            grid = backbone(batch)
            grid.backward(torch.empty_like(grid))
    return Counted(kept, traffic.convolution_bytes, traffic.bytes - traffic.convolution_bytes)


def counted_compiled(name: str, dtype: torch.dtype, images: int, size: tuple[int, int]) -> Counted:
    """Of the graphs that torch.compile would make of the plain operators. Nothing is compiled to machine code or run.

    It uses parts of torch that may change: aot_module divides the joint graph into forward and backward, as little as
    possible kept; GraphLowering and its scheduler fuse.
    """
    moved: dict[bool, int] = {True: 0, False: 0}  # by whether they are convolutions
    kept = 0

    def compiler(is_backward: bool) -> Callable[[Any, list[Tensor]], Callable[[list[Any]], list[Any]]]:
        def lower(module: Any, inputs: list[Tensor]) -> Callable[[list[Any]], list[Any]]:
            nonlocal kept
            mode = next(each.fake_mode for each in inputs if hasattr(each, "fake_mode"))
            graph = GraphLowering(module, example_inputs=inputs, is_backward=is_backward, is_inference=False)
            with DebugContext(), V.set_graph_handler(graph), V.set_fake_mode(mode):
                graph.run(*inputs)
                graph._update_scheduler()
                for node in graph.scheduler.nodes:
                    kernel = getattr(node.node, "python_kernel_name", None) or ""
                    moved["convolution" in kernel] += node.get_read_write_buffers_sizes()
            results = [node and node.meta["val"] for node in module.graph.output_node().args[0]]
            if not is_backward:
                given = {node.name for node in module.graph.nodes if node.op == "placeholder"}
                saved = [node for node in module.graph.output_node().args[0][1:] if node.name not in given]
                kept = sum(node.meta["val"].nbytes for node in saved)

            def run(arguments: list[Any]) -> list[Any]:
                arguments.clear()
                return [
                    each if each is None else torch.empty_strided(each.shape, each.stride(), dtype=each.dtype)
                    for each in results
                ]

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return lower

    backbone = ClipResNet(SHAPES[name])
    cast_parameters(backbone, dtype)
    run_plainly(backbone, layout=torch.channels_last)
    compiled: nn.Module = aot_module(
        backbone,
        compiler(False),
        compiler(True),
        partition_fn=min_cut_rematerialization_partition,
        decompositions=select_decomp_table(),
    )
    grid = compiled(torch.empty(images, 3, *size, dtype=dtype))
    grid.backward(torch.empty_like(grid))
    return Counted(kept, moved[True], moved[False])


def ways(name: str, dtype: torch.dtype, images: int, size: tuple[int, int]) -> Iterator[tuple[str, Counted]]:
    shape = (name, dtype, images, size)
    yield "before", counted(*shape, change=lambda backbone: run_plainly(backbone, casting_norm))
    yield "operators", counted(*shape, change=lambda backbone: run_plainly(backbone, torch_norm, torch.channels_last))
    yield "compiled", counted_compiled(*shape)
    yield "ours", counted(*shape)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m engine.benchmark.traffic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", choices=list(SHAPES), default="RN50")
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--dtype", choices=list(DTYPES), default="fp16")
    parser.add_argument("--image_size", type=int, nargs=2, default=[384, 640], metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args(arguments)
    if options.images < 1 or any(side < 64 or side % 32 for side in options.image_size):
        parser.error("--images has to be 1 or more, --image_size two multiples of 32 from 64 on")
    height, width = options.image_size
    print(f"{options.model}, {options.images} images of {height} x {width}, {options.dtype}; GB\n")
    print(f"{'':12}{'kept':>8}{'convolutions':>14}{'all else':>10}{'of before':>11}")
    before = None
    for way, found in Bar(
        ways(options.model, DTYPES[options.dtype], options.images, (height, width)), total=4, disable=None, leave=False
    ):
        before = before or found.others
        figures = f"{found.kept / GB:8.2f}{found.convolutions / GB:14.1f}{found.others / GB:10.1f}"
        tqdm.write(f"{way:12}{figures}{found.others / before:11.2f}")
    print(NOTES)


if __name__ == "__main__":
    main()
