"""Batch norm, shortcut, ReLU, pooling and convolution as one step, against the same in fp64, operator by operator."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.graph import saved_tensors_hooks

from kernels import normalise
from kernels.batch_norm import Norm, batch_norm, batch_norm_add, batch_norm_conv2d

EPS = 1e-5
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
FP32 = 2.0**-24
# More pixels than a stretch has, with a rest; fewer channels than a tile, and more, with a rest; very few of either.
SHAPES = [(3, 8, 14, 16), (2, 72, 6, 10), (1, 3, 2, 4)]
# Roundings on the longest way to a result, each of at most 2**-24: a pairwise sum of 1,000 pixels (10), the mean's and
# the variance's quotient, the root, its inverse, and three products and sums.
STEPS = 16


def truncates(backend, dtype):
    """Triton's interpreter rounds bf16 towards zero, which is off by up to twice as much."""
    return backend == "triton" and dtype == torch.bfloat16


class Case:
    """Noise with a mean of twice its deviation, so that a bad variance shows."""

    def __init__(self, shape, dtype, device="cpu", seed=0, shortcut=False, parameters=None):
        noise = torch.Generator().manual_seed(seed)

        def normal(*size):
            return torch.randn(*size, generator=noise)

        channels = shape[1]
        layout = torch.channels_last
        offsets = 2 * normal(channels)[:, None, None]
        self.features = (normal(*shape) + offsets).to(device, dtype).contiguous(memory_format=layout).requires_grad_()
        self.shortcut = None
        if shortcut:
            self.shortcut = normal(*shape).to(device, dtype).contiguous(memory_format=layout).requires_grad_()
        parameters = parameters or dtype
        self.scale = (1 + normal(channels) / 4).to(device, parameters).requires_grad_()
        self.shift = (normal(channels) / 2).to(device, parameters).requires_grad_()
        self.running_mean, self.running_var = normal(channels).to(device), normal(channels).exp().to(device)
        self.d_out, self.d_again = (normal(*shape).to(device, dtype).contiguous(memory_format=layout) for _ in range(2))

    def norm(self, by_batch=True):
        running = self.running_mean, self.running_var
        return Norm(self.scale, self.shift, *running, by_batch, momentum=0.1, eps=EPS)

    def leaves(self):
        return [leaf for leaf in (self.features, self.scale, self.shift, self.shortcut) if leaf is not None]

    def exact(self, by_batch, g):
        """The same in fp64, without the ReLU: signs near zero are rounding's, so `g` comes from ours."""
        wide = [
            None if leaf is None else leaf.detach().double().requires_grad_()
            for leaf in (self.features, self.scale, self.shift, self.shortcut)
        ]
        features, scale, shift, shortcut = wide
        mean, var = self.running_mean.double(), self.running_var.double()
        if by_batch:
            mean, var = features.mean((0, 2, 3)), features.var((0, 2, 3), unbiased=False)
        normalised = (features - mean[:, None, None]) / (var[:, None, None] + EPS).sqrt()
        out = normalised * scale[:, None, None] + shift[:, None, None]
        if shortcut is not None:
            out = out + shortcut
        gradients = torch.autograd.grad(out, [leaf for leaf in wide if leaf is not None], g)
        return out.detach(), gradients, normalised.detach(), var.detach(), mean.detach()


@pytest.mark.parametrize("by_batch", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("what", ["plain", "relu", "shortcut"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_out_and_gradients(dtype, shape, what, by_batch, backend, device):
    case = Case(shape, dtype, device, shortcut=what == "shortcut")
    if what == "shortcut":
        out, again = batch_norm_add(case.features, case.shortcut, case.norm(by_batch))
        assert again.data_ptr() == out.data_ptr()
        gradients = torch.autograd.grad([out, again], case.leaves(), [case.d_out, case.d_again])
        d_out = case.d_out.double() + case.d_again.double()
    else:
        out = batch_norm(case.features, case.norm(by_batch), relu=what == "relu")
        gradients = torch.autograd.grad(out, case.leaves(), case.d_out)
        d_out = case.d_out.double()
    assert out.dtype == dtype
    assert out.is_contiguous(memory_format=torch.channels_last)
    signs = torch.ones_like(d_out) if what == "plain" else (out > 0).double()
    exact, exact_gradients, normalised, var, mean = case.exact(by_batch, d_out * signs)

    u = torch.finfo(dtype).eps / 2 * (2 if truncates(backend, dtype) else 1)
    rstd = (var + EPS).rsqrt()[:, None, None]
    # What cancels in features - mean is rounded in units of the mean.
    fp32 = STEPS * FP32 * (1 + mean.abs()[:, None, None] * rstd)
    scale = case.scale.detach().double().abs()[:, None, None]
    size = (1 + normalised.abs()) * scale + case.shift.detach().double().abs()[:, None, None]  # n may be near 0
    if case.shortcut is not None:
        size += case.shortcut.detach().double().abs()
    # Rounded once by the kernel; by the twin once before the shortcut is added, and once after.
    allowed = (2 * u + fp32) * size
    assert ((out.double() - exact).abs() <= allowed)[signs > 0].all()
    if what != "plain":
        assert (exact <= allowed)[out == 0].all()
        assert (out >= 0).all()

    pixels = (0, 2, 3)
    g = d_out * signs
    of_features = g.abs()
    if by_batch:
        of_features = of_features + g.abs().mean(pixels, keepdim=True)
        of_features = of_features + (1 + normalised.abs()) * (g * normalised).abs().mean(pixels, keepdim=True)
    # The sum of two gradients is rounded, and what is made of it once more.
    allowed = (2 * u + fp32) * scale * rstd * of_features
    assert ((gradients[0].double() - exact_gradients[0]).abs() <= allowed).all()
    fp32 = fp32.flatten()
    of_scale = ((g * normalised).abs() + g.abs()).sum(pixels)  # n is off by fp32, whatever its size
    assert ((gradients[1].double() - exact_gradients[1]).abs() <= (2 * u + fp32) * of_scale).all()
    assert ((gradients[2].double() - exact_gradients[2]).abs() <= (2 * u + fp32) * g.abs().sum(pixels)).all()
    if case.shortcut is not None:
        assert ((gradients[3].double() - exact_gradients[3]).abs() <= u * exact_gradients[3].abs()).all()


@pytest.mark.parametrize("which", [0, 1], ids=["convolution", "shortcut"])
def test_gradient_of_one_way_alone(which, backend, device):
    """The last block's result goes to no shortcut; and nobody's result has no gradient."""
    case = Case((2, 8, 4, 4), torch.float32, device, shortcut=True)
    ways = batch_norm_add(case.features, case.shortcut, case.norm())
    zero = torch.zeros_like(case.d_out)
    terms = [case.d_out, zero] if which == 0 else [zero, case.d_out]
    expected = torch.autograd.grad(ways, case.leaves(), terms, retain_graph=True)
    gradients = torch.autograd.grad(ways[which], case.leaves(), case.d_out)
    assert all(torch.equal(a, b) for a, b in zip(gradients, expected, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_running_statistics_are_torchs(shape, dtype, backend, device):
    """A batch moves them once, by a tenth; when it is normalised without them, and by running ones, not at all."""
    case = Case(shape, dtype, device)
    mean, var = case.running_mean.clone(), case.running_var.clone()
    before = mean.clone(), var.clone()
    batch_norm(case.features, case.norm())
    F.batch_norm(case.features.detach().double(), mean := mean.double(), var := var.double(), training=True)
    # The sum's roundings are those of features as large as the mean.
    assert ((case.running_mean - mean).abs() <= STEPS * FP32 * (mean.abs() + case.features.abs().mean())).all()
    assert ((case.running_var - var).abs() <= STEPS * FP32 * (var + case.features.double().square().mean())).all()
    assert not torch.equal(case.running_mean, before[0])
    now = case.running_mean.clone(), case.running_var.clone()
    batch_norm(case.features, case.norm()._replace(running_mean=None, running_var=None))
    batch_norm(case.features, case.norm(by_batch=False))
    assert torch.equal(case.running_mean, now[0])
    assert torch.equal(case.running_var, now[1])


def test_variance_of_features_far_from_zero(backend, device):
    """A sum of squares would have no digit left: 1e8 + 1, in fp32."""
    features = 1e4 + torch.randn(2, 8, 9, 70, generator=torch.Generator().manual_seed(0)).to(device)
    features = features.contiguous(memory_format=torch.channels_last)
    case = Case((1, 8, 1, 2), torch.float32, device)
    out = batch_norm(features, case.norm())
    wide = features.double()
    exact = (wide - wide.mean((0, 2, 3), keepdim=True)) / wide.var((0, 2, 3), unbiased=False, keepdim=True).sqrt()
    exact = exact * case.scale[:, None, None] + case.shift[:, None, None]
    # Each step of the mean is off by up to 2**-24 of 1e4, features being exact.
    assert (out - exact).abs().max() <= STEPS * FP32 * 1e4


def test_statistics_of_many_pixels(backend, device):
    """Their roundings are those of a stretch of 2,048, one after the other, at most: an error of sqrt(2048) * 2**-24 or
    2.7e-6 where they are as often up as down, and hardly ever three times that. All 131,072 in a row lose 2e-5."""
    case = Case((2, 8, 256, 256), torch.float32, device)
    mean, var = case.norm()._replace(running_mean=None, running_var=None).per_channel(case.features.detach())[:2]
    wide = case.features.detach().double()
    bound = 3 * 2048**0.5 * FP32
    assert ((mean - wide.mean((0, 2, 3))).abs() <= bound * wide.abs().mean((0, 2, 3))).all()
    exact = wide.var((0, 2, 3), unbiased=False)
    assert ((var - exact).abs() <= bound * exact).all()


@pytest.mark.parametrize("pool", [1, 2])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("by_batch", [True, False], ids=["batch", "running"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_convolution_of_what_is_not_kept(dtype, by_batch, kernel, pool, backend, device):
    """Bit by bit what the parts give, but for the weights' gradient, which a CPU adds up in another order."""
    case = Case((2, 16, 6, 8), dtype, device)
    weight = torch.randn(12, 16, kernel, kernel, generator=torch.Generator().manual_seed(1)) / 8
    weight = weight.to(device, dtype).requires_grad_()
    leaves = [case.features, case.scale, case.shift, weight]
    running = case.running_mean.clone(), case.running_var.clone()
    out = batch_norm_conv2d(case.features, case.norm(by_batch), weight, padding=kernel // 2, pool=pool)
    norm = case.norm(by_batch)._replace(running_mean=running[0], running_var=running[1])
    activation = batch_norm(case.features, norm, relu=True, pool=pool)
    parts = F.conv2d(activation, weight, padding=kernel // 2)
    assert torch.equal(out, parts)
    assert torch.equal(case.running_mean, running[0])
    d_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(device, dtype)
    *ours, d_weight = torch.autograd.grad(out, leaves, d_out)
    *theirs, d_weight_of_parts = torch.autograd.grad(parts, leaves, d_out)
    assert [torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)] == [True] * 3
    # Sums of as many terms as there are pixels, each order off by at most so many roundings of the sum of sizes.
    pixels = out.shape[0] * out.shape[2] * out.shape[3]
    size = torch.nn.grad.conv2d_weight(activation.abs().double(), weight.shape, d_out.abs().double(), 1, kernel // 2)
    u = torch.finfo(dtype).eps / 2
    assert ((d_weight - d_weight_of_parts).abs() <= (2 * pixels * FP32 + 2 * u) * size).all()


def kept(compute):
    """Bytes that autograd holds for the backward pass of what `compute` gives."""
    storages = {}

    def keep(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    with saved_tensors_hooks(keep, lambda nothing: nothing):
        compute()
    return sum(storages.values())


def test_only_features_are_kept(backend, device):
    case = Case((2, 16, 6, 8), torch.float32, device, shortcut=True)
    weight = torch.randn(16, 16, 3, 3, device=device, requires_grad=True)
    features, few = case.features.nbytes, weight.nbytes + 4 * 16 * 4  # mean, variance, scale, shift
    assert kept(lambda: batch_norm(case.features, case.norm(), relu=True, pool=2)) <= features + few
    assert kept(lambda: batch_norm_conv2d(case.features, case.norm(), weight, padding=1)) <= features + few
    # With a shortcut the result, too, which the next convolution keeps in any case.
    assert kept(lambda: batch_norm_add(case.features, case.shortcut, case.norm())) <= 2 * features + few


def test_gradients_of_gradcheck(monkeypatch):
    """In fp64, which the kernels don't take: the twin, and the graph around both."""
    case = Case((2, 3, 4, 4), torch.float64, shortcut=True)
    norm = case.norm()._replace(running_mean=None, running_var=None)
    weight = torch.randn(2, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def block(features, scale, shift, shortcut, weight):
        here = norm._replace(scale=scale, shift=shift)
        normalised = batch_norm(features, here, relu=True)
        out, again = batch_norm_add(normalised, shortcut, here)
        return batch_norm_conv2d(out, here, weight, padding=1, pool=2) + again.mean()

    assert torch.autograd.gradcheck(block, [*case.leaves(), weight])


def test_gradients_without_grad_are_none(backend, device):
    """A frozen scale, or images as features: what isn't needed isn't given, and nothing else changes."""
    case = Case((2, 8, 4, 4), torch.float32, device)
    expected = torch.autograd.grad(batch_norm(case.features, case.norm(), relu=True).sum(), case.shift)[0]
    case.features.requires_grad_(False)
    case.scale.requires_grad_(False)
    batch_norm(case.features, case.norm(), relu=True).sum().backward()
    assert case.features.grad is None
    assert case.scale.grad is None
    assert torch.equal(case.shift.grad, expected)


def test_same_inputs_same_bits(backend, device):
    case = Case((3, 40, 14, 16), torch.float32, device, shortcut=True)
    runs = []
    for _ in range(2):
        out, again = batch_norm_add(case.features, case.shortcut, case.norm())
        runs.append([out, *torch.autograd.grad([out, again], case.leaves(), [case.d_out, case.d_again])])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_nan_and_infinity_are_passed_on(backend, device):
    """Else an overflow in fp16 would go unnoticed behind a ReLU."""
    for bad in (float("nan"), float("inf")):
        case = Case((2, 8, 4, 4), torch.float32, device)
        with torch.no_grad():
            case.features[1, 3, 2, 1] = bad
        out = batch_norm(case.features, case.norm(), relu=True)
        assert out[:, 3].isnan().any()
        assert out[:, :3].isfinite().all()
        gradients = torch.autograd.grad(out.sum(), case.leaves())
        assert all(not gradient.isfinite().all() for gradient in gradients[:2])


def test_any_layout_is_taken(backend, device):
    case = Case((2, 8, 4, 6), torch.float32, device, shortcut=True)
    expected = batch_norm_add(case.features, case.shortcut, case.norm())
    planes = batch_norm_add(case.features.contiguous(), case.shortcut.contiguous(), case.norm())
    assert torch.equal(planes[0], expected[0])
    assert planes[0].is_contiguous(memory_format=torch.channels_last)
    terms = [case.d_out.contiguous(), case.d_again.contiguous()]
    gradients = (torch.autograd.grad(ways, case.leaves(), terms) for ways in (expected, planes))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_one_value_has_no_variance():
    case = Case((1, 8, 1, 1), torch.float32)
    with pytest.raises(ValueError, match=r"no variance: features of the shape \(1, 8, 1, 1\)"):
        batch_norm(case.features, case.norm())
    assert batch_norm(case.features, case.norm(by_batch=False)).shape == (1, 8, 1, 1)


def test_stretches_are_those_of_the_shape_alone():
    """So that sums are the same on every GPU; and no channel has more than 512 of them."""
    pytest.importorskip("triton", reason="Triton isn't installed")
    rows, channels, stretch, stretches = normalise._sizes(torch.empty(32, 32, 192, 320, device="meta"))
    assert (rows, channels, stretches) == (32 * 192 * 320, 32, 512)
    assert stretch * (stretches - 1) < rows <= stretch * stretches
    assert normalise._sizes(torch.empty(1, 2048, 12, 20, device="meta"))[2:] == (512, 1)
