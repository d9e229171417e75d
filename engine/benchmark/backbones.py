"""Other ways to run the same backbone, to be compared with: operator by operator, as PyTorch's own modules do."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.model.clip_resnet import BatchNorm2d, Bottleneck, ClipResNet

Norm = Callable[[BatchNorm2d, Tensor], Tensor]


def torch_norm(module: BatchNorm2d, features: Tensor) -> Tensor:
    """PyTorch's own: features of any precision, with fp32 statistics, as in apex's O1."""
    if module.training and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
    assert module.running_mean is not None
    scale, shift = (parameter.to(module.running_mean.dtype) for parameter in (module.weight, module.bias))
    return F.batch_norm(
        *(features, module.running_mean, module.running_var, scale, shift),
        training=module.training,
        momentum=module.momentum or 0.0,
        eps=module.eps,
    )


def casting_norm(module: BatchNorm2d, features: Tensor) -> Tensor:
    """With features cast to fp32 and back: what the engine did before it had kernels for it."""
    return torch_norm(module, features.float()).to(features.dtype)


def _block(block: Bottleneck, norm: Norm, x: Tensor) -> Tensor:
    out = F.relu(norm(block.bn1, block.conv1(x)))
    out = F.relu(norm(block.bn2, block.conv2(out)))
    if block.stride > 1:
        out = F.avg_pool2d(out, block.stride)
    out = norm(block.bn3, block.conv3(out))
    for part in block.downsample.children():
        x = norm(part, x) if isinstance(part, BatchNorm2d) else part(x)
    return F.relu(out + x)


def _forward(backbone: ClipResNet, norm: Norm, layout: torch.memory_format, images: Tensor, *_: object) -> Tensor:
    x = images.contiguous(memory_format=layout)
    for number in (1, 2, 3):
        convolution, bn = backbone.get_submodule(f"conv{number}"), backbone.get_submodule(f"bn{number}")
        assert isinstance(bn, BatchNorm2d)
        x = F.relu(norm(bn, convolution(x)))
    x = F.avg_pool2d(x, 2)
    for stage in range(1, 5):
        for block in backbone.get_submodule(f"layer{stage}").children():
            assert isinstance(block, Bottleneck)
            x = _block(block, norm, x)
    return x


def run_plainly(
    model: nn.Module, norm: Norm = torch_norm, layout: torch.memory_format = torch.contiguous_format
) -> None:
    """Have the ClipResNet in a model computed operator by operator from now on, with everything kept."""
    for module in model.modules():
        if isinstance(module, ClipResNet):
            module.forward = partial(_forward, module, norm, layout)  # type: ignore[method-assign]
