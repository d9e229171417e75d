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

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


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
    "RN50x4": ResNetShape((4, 6, 10, 6), 80),
    "tiny": ResNetShape((1, 1, 1, 1), 8),  # for tests and the demo
}


class Recomputation(threading.local):
    """Entered by a thread while it runs a block for the second time: one of autograd's, on a GPU."""

    running = False

    def __enter__(self) -> None:
        self.running = True

    def __exit__(self, *_: object) -> None:
        self.running = False


RECOMPUTATION = Recomputation()


def run_block(block: Callable[..., Tensor], *inputs: Tensor, checkpointed: bool) -> Tensor:
    """block(*inputs). If checkpointed, autograd keeps only the inputs, and the backward pass runs the block again."""
    if not checkpointed:
        return block(*inputs)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=lambda: (nullcontext(), RECOMPUTATION))


class BatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose arithmetic stays in fp32 when its scale and shift are fp16 or bf16.

    DeepSpeed casts parameters but leaves the running statistics in fp32, which nn.BatchNorm2d refuses.
    A batch counts once in the running statistics, also when it is normalised again for the backward pass.
    """

    def forward(self, features: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C, H, W), same dtype
        running_mean, running_var = self.running_mean, self.running_var
        if self.training and RECOMPUTATION.running and running_mean is not None and running_var is not None:
            # Copies take the update. Without any, autograd would save fewer tensors than the first time, an error.
            running_mean, running_var = running_mean.clone(), running_var.clone()
        elif self.training and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normalised = F.batch_norm(
            features.float(),
            running_mean,
            running_var,
            self.weight.float(),
            self.bias.float(),
            training=self.training,
            momentum=self.momentum or 0.0,
            eps=self.eps,
        )
        return normalised.to(features.dtype)


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
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            # The odd first name leaves "0" and "1", OpenAI's names, to the parts that have weights.
            self.downsample = nn.Sequential(
                OrderedDict([("-1", nn.AvgPool2d(stride)), ("0", convolution), ("1", BatchNorm2d(out_channels))])
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.avgpool(out)))
        return F.relu(out + self.downsample(x))


class ClipResNet(nn.Module):
    """Images (B, 3, H, W), normalised, to the last feature grid (B, 32 * width, H / 32, W / 32)."""

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        width = shape.width
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = BatchNorm2d(width)
        self.avgpool = nn.AvgPool2d(2)

        channels = width
        for stage, blocks in enumerate(shape.layers):
            stage_width, stride = width * 2**stage, 1 if stage == 0 else 2
            layer = []
            for block in range(blocks):
                layer.append(Bottleneck(channels, stage_width, stride if block == 0 else 1))
                channels = stage_width * Bottleneck.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))

        for name, parameter in self.named_parameters():
            if name.startswith("layer") and name.endswith("bn3.weight"):
                nn.init.zeros_(parameter)  # as CLIP does: each block starts as its shortcut

    def stem(self, images: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.avgpool(F.relu(self.bn3(self.conv3(x))))

    def forward(self, images: Tensor, checkpointed_stages: int = 0) -> Tensor:
        """The grid. The stem and the blocks of that many stages keep their inputs alone for the backward pass."""
        x = run_block(self.stem, images, checkpointed=checkpointed_stages > 0)
        for stage in range(1, 5):
            for block in self.get_submodule(f"layer{stage}").children():
                x = run_block(block, x, checkpointed=stage <= checkpointed_stages)
        return x
