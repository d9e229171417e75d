import copy
from typing import get_args

import pytest
import torch
from torch import nn

from engine.benchmark.backbones import run_plainly
from engine.configuration.flags import ModelConfig
from engine.model.clip_resnet import SHAPES, STRIDE, BatchNorm2d, Bottleneck, ClipResNet, ResNetShape, grid_side
from engine.model.encoder import VisualShape, check_grid


@pytest.mark.parametrize("mode", ["training", "evaluation"])
def test_backbone_is_its_plain_composition(mode):
    """In fp64, in which nothing but an error is as large as 1e-9: outputs, gradients, running statistics."""
    torch.manual_seed(0)
    ours = ClipResNet(SHAPES["tiny"]).double()
    for norm in ours.norms:  # those that start at 0 would hide what their block does
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    plain = copy.deepcopy(ours)
    run_plainly(plain)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    for model in (ours, plain):
        model(images)  # so that evaluation doesn't start from plain statistics
    grids = [model.train(mode == "training")(images) for model in (ours, plain)]
    assert_close(*grids)
    for grid in grids:
        (grid * torch.arange(grid.numel()).view_as(grid)).sum().backward()
    gradients = [{name: p.grad for name, p in model.named_parameters()} for model in (ours, plain)]
    for name, gradient in gradients[1].items():
        assert_close(gradients[0][name], gradient)
    for name, buffer in plain.named_buffers():
        assert_close(ours.get_buffer(name), buffer)
    assert ours.bn1.num_batches_tracked == (2 if mode == "training" else 1)


def assert_close(ours, theirs, tolerance=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_batch_norm_of_half_features_computes_in_fp32(dtype):
    """As DeepSpeed has it: scale and shift are half, too, statistics fp32. Rounded once, by half a unit at most."""
    torch.manual_seed(0)
    norm, reference = BatchNorm2d(3).to(dtype), nn.BatchNorm2d(3)
    norm.running_mean, norm.running_var = norm.running_mean.float(), norm.running_var.float()
    x = (3 * torch.randn(4, 3, 5, 2) + 1).to(dtype).requires_grad_()
    output, exact = norm(x), reference(x.detach().float())
    assert output.dtype == dtype
    # And by that of fp32 arithmetic, which another order of the sums moves.
    assert ((output.float() - exact).abs() <= torch.finfo(dtype).eps / 2 * exact.abs() + 1e-6).all()
    for name in ("running_mean", "running_var"):
        assert norm.get_buffer(name).dtype == torch.float32
        assert_close(norm.get_buffer(name), reference.get_buffer(name), 1e-6)
    output.sum().backward()
    assert x.grad.dtype == norm.weight.grad.dtype == norm.bias.grad.dtype == dtype


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["nchw", "channels_last"])
def test_features_are_channels_last_throughout(layout):
    """From the images on, so that no layer, and no kernel behind the grid, makes a copy in another layout."""
    seen = []
    model = ClipResNet(SHAPES["tiny"])
    for module in model.modules():
        if isinstance(module, nn.Conv2d | BatchNorm2d | Bottleneck):
            module.register_forward_hook(
                lambda _module, inputs, output: seen.extend(
                    [inputs[0], output[0] if isinstance(output, tuple) else output]
                )
            )
    grid = model(torch.randn(2, 3, 64, 96).contiguous(memory_format=layout))
    assert len(seen) > 20
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in (*seen, grid))


def test_batch_norm_has_torchs_state_dict():
    assert BatchNorm2d(3).state_dict().keys() == nn.BatchNorm2d(3).state_dict().keys()


# Blocks of each stage, width, and the side of the square images that CLIP was trained on, as published.
PUBLISHED = {
    "RN50": ([3, 4, 6, 3], 64, 224),
    "RN101": ([3, 4, 23, 3], 64, 224),
    "RN50x4": ([4, 6, 10, 6], 80, 288),
    "RN50x16": ([6, 8, 18, 8], 96, 384),
    "RN50x64": ([3, 15, 36, 10], 128, 448),
    "tiny": ([1, 1, 1, 1], 8, 64),
}


def test_all_of_clips_resnets_are_there():
    assert SHAPES.keys() == PUBLISHED.keys()
    assert set(get_args(ModelConfig.__dataclass_fields__["clip_model_name"].type)) == PUBLISHED.keys()


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size", [(384, 640), None], ids=["landscape", "square"])
def test_grid_of_each_shape(name, size):
    """On the meta device: shapes only. Position tables of 25 rows, the default, are long enough for all of them."""
    height, width = size or 2 * (PUBLISHED[name][2],)
    with torch.device("meta"):
        grid = ClipResNet(SHAPES[name])(torch.empty(2, 3, height, width))
    assert SHAPES[name].channels == 32 * PUBLISHED[name][1]
    assert grid.shape == (2, 32 * PUBLISHED[name][1], height // 32, width // 32)
    assert STRIDE == 32
    check_grid(VisualShape(SHAPES[name], sub_feat_num=None), height, width)


@pytest.mark.parametrize("size", [(31, 62), (63, 64), (95, 100), (224, 127)])
def test_grid_of_any_size(size):
    with torch.device("meta"):
        grid = ClipResNet(SHAPES["tiny"])(torch.empty(2, 3, *size))
    assert grid.shape[2:] == tuple(map(grid_side, size))


def openais_layout(blocks, width):
    """Names and shapes of a published image tower, without its attention pool."""

    def norm(name, channels):
        parts = {part: (channels,) for part in ("weight", "bias", "running_mean", "running_var")}
        return {f"{name}.{part}": shape for part, shape in {**parts, "num_batches_tracked": ()}.items()}

    half, layout, channels = width // 2, {}, width
    for n, (into, out) in enumerate(((3, half), (half, half), (half, width)), start=1):
        layout |= {f"conv{n}.weight": (out, into, 3, 3), **norm(f"bn{n}", out)}
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        for block in range(count):
            prefix = f"layer{stage + 1}.{block}"
            sizes = ((planes, channels, 1, 1), (planes, planes, 3, 3), (4 * planes, planes, 1, 1))
            for n, size in enumerate(sizes, start=1):
                layout |= {f"{prefix}.conv{n}.weight": size, **norm(f"{prefix}.bn{n}", size[0])}
            if block == 0:
                layout[f"{prefix}.downsample.0.weight"] = (4 * planes, channels, 1, 1)
                layout |= norm(f"{prefix}.downsample.1", 4 * planes)
            channels = 4 * planes
    return layout


@pytest.mark.parametrize("name", PUBLISHED)
def test_weights_have_openais_names_and_shapes(name):
    blocks, width, _ = PUBLISHED[name]
    with torch.device("meta"):
        state = ClipResNet(SHAPES[name]).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == openais_layout(blocks, width)


def test_each_block_starts_as_its_shortcut():
    torch.manual_seed(0)
    model = ClipResNet(ResNetShape((2, 1, 1, 1), 4))
    first, second = model.layer1
    x = torch.rand(2, 4, 6, 6)
    out, _ = first(x, x)
    assert torch.equal(out, torch.relu(first.downsample(x)))
    assert torch.equal(second(out, out)[0], out)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = ClipResNet(ResNetShape((1, 1, 1, 1), 4))
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
