"""What the encoder's operators keep, copy and compute, beside the plain ones that they stand for."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from engine.model.activations import activation_bytes
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import (
    ALIGNMENT,
    CLIP_MEAN,
    CLIP_STD,
    Encoder,
    GeluLinear,
    Layer,
    VisualShape,
    normalise_images,
)

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])


def small(**changed):
    sizes = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, **changed}
    return BertConfig(vocab_size=30, attn_implementation="sdpa", **sizes)


@DTYPES
def test_every_pixel_is_normalised_as_one_operator_at_a_time_would(dtype):
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    normalised = normalise_images(pixels, dtype)
    assert torch.equal(normalised, ((pixels.float() / 255 - mean) / std).to(dtype))
    assert normalised.is_contiguous(memory_format=torch.channels_last)


def test_the_bias_of_attention_is_made_once_and_taken_as_it_is():
    """By what PyTorch asks of a bias that it doesn't copy: all strides but the last a multiple of 8."""

    class Names(TorchDispatchMode):
        def __init__(self):
            super().__init__()
            self.seen = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.seen.append(function._schema.name.split("::")[-1])
            return function(*args, **(kwargs or {}))

    encoder = Encoder(small(), VisualShape(SHAPES["tiny"])).eval()
    words, cells = torch.rand(2, 5, 16), torch.rand(2, 6, 16)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    bias = encoder.attention_bias(mask, cells)
    infinity = float("inf")
    assert bias[:, 0, 0].tolist() == [[0.0] * 11, [0.0] * 3 + [-infinity] * 2 + [0.0] * 6]
    assert bias.shape == (2, 1, 1, 11)
    assert bias.stride(-1) == 1
    assert not any(stride % ALIGNMENT for stride in bias.stride()[:-1])
    assert encoder.attention_bias(mask, cells.half()).dtype == torch.float16

    with Names() as names:
        encoder(words, cells, mask)
    fills = [name for name in names.seen if name in ("masked_fill_", "masked_fill", "where", "logical_not", "eq")]
    assert fills == ["eq", "masked_fill_"]


@DTYPES
def test_gelu_is_computed_again_with_the_same_bits(dtype):
    torch.manual_seed(0)
    x, gradient = torch.randn(3, 7, 64).to(dtype), torch.randn(3, 7, 16).to(dtype)
    linear = nn.Linear(64, 16).to(dtype)

    def numbers(function):
        inputs = (x.clone().requires_grad_(), linear.weight, linear.bias)
        result = function(*inputs)
        return [result, *torch.autograd.grad(result, inputs, gradient)]

    plain = numbers(lambda x, weight, bias: F.linear(F.gelu(x), weight, bias))
    assert all(torch.equal(*pair) for pair in zip(numbers(GeluLinear.apply), plain, strict=True))


def test_a_layer_keeps_one_activation_less_and_has_the_numbers_of_transformers():
    config, hidden = small(), torch.rand(2, 5, 16)
    torch.manual_seed(0)
    ours, theirs = Layer(config), BertLayer(config)
    ours.load_state_dict(theirs.state_dict())
    kept = activation_bytes(theirs, {"hidden_states": hidden}) - activation_bytes(ours, {"hidden_states": hidden})
    assert kept == 2 * 5 * 64 * 4  # what comes out of GELU, fp32

    results = []
    for layer in (ours, theirs):
        torch.manual_seed(1)  # for dropout
        result = layer(hidden)
        result.square().sum().backward()
        results.append([result, *(p.grad for p in layer.parameters())])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_another_activation_than_gelu_is_left_to_transformers():
    config = small(hidden_act="relu")
    ours, theirs = Layer(config).eval(), BertLayer(config).eval()
    ours.load_state_dict(theirs.state_dict())
    hidden = torch.rand(2, 5, 16)
    assert torch.equal(ours(hidden), theirs(hidden))
