import pytest
import torch
from torch import nn

from engine.model.clip_resnet import SHAPES, STRIDE, BatchNorm2d, ClipResNet, ResNetShape


def norms(dtype=torch.float32):
    """Ours and torch's, with the same scale and shift; ours has those in `dtype`, and statistics in fp32."""
    torch.manual_seed(0)
    ours, reference = BatchNorm2d(3), nn.BatchNorm2d(3)
    ours.weight, ours.bias = nn.Parameter((torch.rand(3) + 0.5).to(dtype)), nn.Parameter(torch.randn(3).to(dtype))
    reference.weight, reference.bias = (nn.Parameter(p.detach().float()) for p in (ours.weight, ours.bias))
    return ours, reference


def features(dtype=torch.float32):
    return (3 * torch.randn(4, 3, 5, 2, generator=torch.Generator().manual_seed(1)) + 1).to(dtype).requires_grad_()


def assert_same_statistics(ours, reference):
    for name, buffer in reference.named_buffers():
        own = ours.get_buffer(name)
        assert own.dtype == buffer.dtype, name
        assert torch.equal(own, buffer), name


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_batch_norm_is_torchs_in_fp32(training):
    """Exactly: both end in the same F.batch_norm."""
    ours, reference = (norm.train() for norm in norms())
    for norm in (ours, reference):  # so that evaluation doesn't start from plain statistics
        norm(features())
    inputs = [features(), features()]
    outputs = [norm.train(training)(x) for norm, x in zip((ours, reference), inputs, strict=True)]
    assert torch.equal(*outputs)
    for output in outputs:
        (output * torch.arange(output.numel()).view_as(output)).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert torch.equal(ours.weight.grad, reference.weight.grad)
    assert torch.equal(ours.bias.grad, reference.bias.grad)
    assert_same_statistics(ours, reference)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["fp16", "bf16"])
def test_batch_norm_with_half_parameters_computes_in_fp32(dtype):
    """Exactly the fp32 norm of the same numbers, rounded once."""
    ours, reference = norms(dtype)
    assert ours.weight.dtype == dtype
    x = features(dtype)
    output = ours(x)
    assert output.dtype == dtype
    assert torch.equal(output, reference(x.detach().float()).to(dtype))
    assert_same_statistics(ours, reference)
    output.sum().backward()
    assert x.grad.dtype == ours.weight.grad.dtype == ours.bias.grad.dtype == dtype


def test_batch_norm_has_torchs_state_dict():
    assert BatchNorm2d(3).state_dict().keys() == nn.BatchNorm2d(3).state_dict().keys()


@pytest.mark.parametrize(("name", "channels"), [("RN50", 2048), ("RN50x4", 2560), ("tiny", 32 * SHAPES["tiny"].width)])
@pytest.mark.parametrize(("height", "width"), [(384, 640), (640, 384)], ids=["landscape", "portrait"])
def test_grid_of_each_shape(name, channels, height, width):
    """On the meta device: shapes only."""
    with torch.device("meta"):
        grid = ClipResNet(SHAPES[name])(torch.empty(2, 3, height, width))
    assert SHAPES[name].channels == channels
    assert grid.shape == (2, channels, height // 32, width // 32)
    assert STRIDE == 32


@pytest.mark.parametrize(("name", "blocks"), [("RN50", [3, 4, 6, 3]), ("RN50x4", [4, 6, 10, 6]), ("tiny", [1] * 4)])
def test_weights_have_openais_names(name, blocks):
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {f"conv{n}.weight" for n in (1, 2, 3)} | {f"bn{n}.{part}" for n in (1, 2, 3) for part in norm}
    for stage, count in enumerate(blocks, start=1):
        for block in range(count):
            prefix = f"layer{stage}.{block}"
            expected |= {f"{prefix}.conv{n}.weight" for n in (1, 2, 3)}
            expected |= {f"{prefix}.bn{n}.{part}" for n in (1, 2, 3) for part in norm}
        first = f"layer{stage}.0.downsample"
        expected |= {f"{first}.0.weight"} | {f"{first}.1.{part}" for part in norm}
    with torch.device("meta"):
        assert ClipResNet(SHAPES[name]).state_dict().keys() == expected


def test_each_block_starts_as_its_shortcut():
    torch.manual_seed(0)
    model = ClipResNet(ResNetShape((2, 1, 1, 1), 4))
    first, second = model.layer1
    x = torch.rand(2, 4, 6, 6)
    assert torch.equal(first(x), torch.relu(first.downsample(x)))
    out = first(x)
    assert torch.equal(second(out), out)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = ClipResNet(ResNetShape((1, 1, 1, 1), 4))
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
