"""CLIP's ResNet (Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021).

It differs from torchvision's in three ways: a stem of three convolutions, average pooling in place of every
strided convolution, and (not built here, its output is never used) attention pooling at the end. Parameters
carry OpenAI's names, so that OpenAI's weights load.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.batch_norm import Norm, batch_norm, batch_norm_add, batch_norm_conv2d


@dataclass(frozen=True)
class ResNetShape:
    """Blocks per stage and width of the stem. The feature grid has stride 32 and 32 x width channels."""

    layers: tuple[int, int, int, int]
    width: int

    @property
    def channels(self) -> int:
        return self.width * 32


STRIDE = 32
SHAPES = {
    "RN50": ResNetShape((3, 4, 6, 3), 64),
    "RN101": ResNetShape((3, 4, 23, 3), 64),
    "RN50x4": ResNetShape((4, 6, 10, 6), 80),
    "RN50x16": ResNetShape((6, 8, 18, 8), 96),
    "RN50x64": ResNetShape((3, 15, 36, 10), 128),
    "tiny": ResNetShape((1, 1, 1, 1), 8),  # for tests and the demo
}


def grid_side(pixels: int) -> int:
    """Cells along a side of an image: the stem's convolution rounds half of it up, and four poolings round down."""
    return (pixels + 1) // STRIDE


Features = TypeVar("Features", Tensor, tuple[Tensor, Tensor])


class Recomputation(threading.local):
    """Entered by a thread while it runs a block for the second time: one of autograd's, on a GPU."""

    running = False

    def __enter__(self) -> None:
        self.running = True

    def __exit__(self, *_: object) -> None:
        self.running = False


RECOMPUTATION = Recomputation()


def run_block(block: Callable[..., Features], *inputs: Tensor, checkpointed: bool) -> Features:
    """block(*inputs). If checkpointed, autograd keeps only the inputs, and the backward pass runs the block again."""
    if not checkpointed:
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), RECOMPUTATION))


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm with what follows it, by kernels/batch_norm.py: fp32 arithmetic on features of any precision.

    DeepSpeed casts scale and shift but leaves the running statistics in fp32, which nn.BatchNorm2d refuses. A batch
    counts once in them, also when it is normalised again for the backward pass. ClipResNet counts the batches.
    """

    def forward(self, features: Tensor, relu: bool = False, pool: int = 1) -> Tensor:
        """(B, C, H, W) -> (B, C, H / pool, W / pool), same dtype."""
        return batch_norm(features, self._norm(), relu=relu, pool=pool)

    def add(self, features: Tensor, shortcut: Tensor) -> tuple[Tensor, Tensor]:
        """Batch norm, shortcut, ReLU; the result for a convolution and for the next shortcut."""
        return batch_norm_add(features, shortcut, self._norm())

    def then(self, convolution: nn.Conv2d, features: Tensor, pool: int = 1) -> Tensor:
        """Batch norm, ReLU, pooling, convolution; only `features` are kept for the backward pass."""
        padding = int(convolution.padding[0])
        return batch_norm_conv2d(features, self._norm(), convolution.weight, padding=padding, pool=pool)

    def _norm(self) -> Norm:
        again = self.training and RECOMPUTATION.running
        running = (None, None) if again else (self.running_mean, self.running_var)
        return Norm(self.weight, self.bias, *running, self.training, self.momentum or 0.0, self.eps)


class Bottleneck(nn.Module):
    """1x1, 3x3, (pool), 1x1 convolutions around a shortcut."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width)
        self.stride = stride
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            # The odd first name leaves "0" and "1", OpenAI's names, to the parts that have weights.
            self.downsample = nn.Sequential(
                OrderedDict([("-1", pool), ("0", convolution), ("1", BatchNorm2d(out_channels))])
            )

    def forward(self, x: Tensor, shortcut: Tensor) -> tuple[Tensor, Tensor]:
        """The features (B, C, H, W) come twice and go on twice: see kernels.batch_norm.batch_norm_add."""
        out = self.bn1.then(self.conv2, self.conv1(x))
        out = self.bn2.then(self.conv3, out, pool=self.stride)
        return self.bn3.add(out, self.downsample(shortcut))


class ClipResNet(nn.Module):
    """Images (B, 3, H, W), normalised, to the last feature grid (B, 32 * width, H / 32, W / 32).

    All features are channels_last: a pixel's channels lie together, as tensor cores and the kernels want them.
    """

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        width = shape.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = BatchNorm2d(width)

        channels = width
        for stage, blocks in enumerate(shape.layers):
            stage_width, stride = width * 2**stage, 1 if stage == 0 else 2
            layer = []
            for block in range(blocks):
                layer.append(Bottleneck(channels, stage_width, stride if block == 0 else 1))
                channels = stage_width * Bottleneck.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))

        self.norms = [module for module in self.modules() if isinstance(module, BatchNorm2d)]
        for name, parameter in self.named_parameters():
            if name.startswith("layer") and name.endswith("bn3.weight"):
                nn.init.zeros_(parameter)  # as CLIP does: each block starts as its shortcut

    def stem(self, images: Tensor) -> Tensor:
        x = self.bn1.then(self.conv2, self.conv1(images))
        return self.bn3(self.bn2.then(self.conv3, x), relu=True, pool=2)

    def forward(self, images: Tensor, checkpointed_stages: int = 0) -> Tensor:
        """The grid. The stem and the blocks of that many stages keep their inputs alone for the backward pass."""
        if self.training:
            torch._foreach_add_([norm.num_batches_tracked for norm in self.norms], 1)  # type: ignore[misc]
        images = images.contiguous(memory_format=torch.channels_last)
        x = shortcut = run_block(self.stem, images, checkpointed=checkpointed_stages > 0)
        for stage in range(1, 5):
            for block in self.get_submodule(f"layer{stage}").children():
                x, shortcut = run_block(block, x, shortcut, checkpointed=stage <= checkpointed_stages)
        return x
