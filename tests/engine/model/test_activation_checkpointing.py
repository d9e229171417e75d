import threading

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BertConfig

from engine.model.activations import activation_bytes, largest_block_bytes
from engine.model.clip_resnet import RECOMPUTATION, SHAPES, BatchNorm2d, Bottleneck, ClipResNet
from engine.model.encoder import CHECKPOINTED_STAGES, Layer, VisualShape
from engine.model.pretraining import ClipVilForPretraining


def make(dtype=torch.float32, dropout=0.3, **visual):
    """The tiny shape under two layers of BERT, its weights drawn so that every block counts."""
    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    torch.manual_seed(0)
    visual = {"sub_feat_num": 4, "pos_num": 3, **visual}
    model = ClipVilForPretraining(config, VisualShape(SHAPES["tiny"], **visual), num_answers=6).to(dtype)
    for norm in model.modules():
        if isinstance(norm, BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)  # those that start at 0 would hide what their block does
            statistics = torch.promote_types(dtype, torch.float32)  # as DeepSpeed leaves them
            norm.running_mean, norm.running_var = norm.running_mean.to(statistics), norm.running_var.to(statistics)
    return model.train()


def batch(images=2):
    """Two captions of 5 tokens, or the first of them, with images of 2 x 3 cells."""
    noise = torch.Generator().manual_seed(0)
    both = {
        "input_ids": torch.tensor([[2, 7, 8, 9, 3], [2, 10, 3, 0, 0]]),
        "token_type_ids": torch.zeros(2, 5, dtype=torch.int64),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "images": torch.randint(0, 256, (2, 3, 64, 96), generator=noise, dtype=torch.uint8),
        "masked_lm_labels": torch.tensor([[-1, 7, -1, 12, -1], [-1, -1, -1, -1, -1]]),
        "matched_label": torch.tensor([1, 0]),
        "ans": torch.tensor([5, -1]),
    }
    first = {name: value[:images] for name, value in both.items()}
    return {**first, "sampling_state": torch.tensor([9595, 0, 0])}


def train(model, backward=torch.Tensor.backward, steps=2, images=2):
    """All numbers of a few steps: losses, each step's gradients, and the parameters and buffers in the end."""
    torch.manual_seed(1)  # for dropout
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    numbers = {}
    for step in range(steps):
        loss = model(**batch(images)).loss
        backward(loss)
        numbers[f"loss {step}"] = loss.detach()
        numbers |= {f"gradient {step} of {name}": p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        optimizer.zero_grad()
    return numbers | model.state_dict() | {"the next random number": torch.rand(1)}


def assert_identical(numbers, expected):
    assert numbers.keys() == expected.keys()
    assert [name for name, value in expected.items() if not torch.equal(numbers[name], value)] == []


def checkpointed(model, part="all"):
    model.bert.encoder.activation_checkpointing = part
    return model


@pytest.fixture
def block_runs(monkeypatch):
    """The stem (as its ResNet), blocks and layers, each time that one of them runs."""
    runs = []

    def record(original):
        def run(self, *inputs):
            runs.append(self)
            return original(self, *inputs)

        return run

    for kind, name in ((ClipResNet, "stem"), (Bottleneck, "forward"), (Layer, "forward")):
        monkeypatch.setattr(kind, name, record(getattr(kind, name)))
    return runs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
@pytest.mark.parametrize("part", [part for part in CHECKPOINTED_STAGES if part != "none"])
def test_numbers_are_exactly_those_without(dtype, frozen, part):
    numbers = train(checkpointed(make(dtype, freeze_batch_norm=frozen), part))
    expected = train(make(dtype, freeze_batch_norm=frozen))
    assert_identical(numbers, expected)
    tracked = [value.item() for name, value in numbers.items() if name.endswith("num_batches_tracked")]
    assert set(tracked) == ({0} if frozen else {2})
    assert all(value.isfinite().all() for value in numbers.values())


@pytest.mark.parametrize("frozen", [False, True], ids=["free", "frozen"])
@pytest.mark.parametrize(("part", "again"), [("none", 0), ("early", 1 + 1), ("backbone", 1 + 4), ("all", 1 + 4 + 2)])
def test_stem_blocks_and_layers_run_again_for_the_backward_pass(block_runs, frozen, part, again):
    loss = checkpointed(make(freeze_batch_norm=frozen), part)(**batch()).loss
    first = list(block_runs)
    assert len(first) == 1 + 4 + 2
    block_runs.clear()
    loss.backward()
    assert block_runs == first[:again][::-1]


@pytest.mark.parametrize("grad", [True, False], ids=["evaluation", "no_grad"])
def test_nothing_is_checkpointed_outside_of_training(grad, monkeypatch):
    model = checkpointed(make()).train(not grad)
    calls = []
    monkeypatch.setattr("engine.model.clip_resnet.checkpoint", lambda block, *inputs, **_: calls.append(block))
    with torch.set_grad_enabled(grad):
        assert model(**batch()).loss.isfinite()
    assert calls == []


def test_backward_pass_in_another_thread():
    """As on a GPU, where autograd has threads of its own."""

    def backward(loss):
        thread = threading.Thread(target=loss.backward)
        thread.start()
        thread.join()

    assert_identical(train(checkpointed(make()), backward), train(make()))


def test_graph_can_be_walked_twice():
    def backward(loss):
        loss.backward(retain_graph=True)
        loss.backward()

    assert_identical(train(checkpointed(make()), backward), train(make(), backward))


def test_recomputation_is_that_threads_alone():
    norm = BatchNorm2d(3)
    seen = []
    with RECOMPUTATION:
        thread = threading.Thread(target=lambda: seen.append(norm(torch.ones(2, 3, 4, 4))))
        thread.start()
        thread.join()
        assert len(seen) == 1
        assert torch.equal(norm.running_mean, torch.full((3,), 0.1))
        norm(torch.ones(2, 3, 4, 4))
    assert torch.equal(norm.running_mean, torch.full((3,), 0.1))
    norm(torch.ones(2, 3, 4, 4))
    assert torch.equal(norm.running_mean, torch.full((3,), 0.1) + 0.1 * (1 - torch.full((3,), 0.1)))


def test_recomputation_normalises_by_the_batch():
    x = torch.rand(2, 3, 4, 4)
    norm = BatchNorm2d(3)
    first = norm(x)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    with RECOMPUTATION:
        assert torch.equal(norm(x), first)
        assert not torch.equal(norm.eval()(x), first)
    assert_identical(dict(norm.named_buffers()), before)


def test_all_cells_in_evaluation():
    model, everything = make().eval(), make(sub_feat_num=None).eval()
    assert model(**batch()).vision.shape == (2, 4, 16)  # by default as in training
    model.bert.encoder.sub_sampling_in_evaluation = False
    for inputs in (batch(), {**batch(), "sampling_state": None}):
        output, expected = model(**inputs), everything(**inputs)
        assert output.vision.shape == (2, 6, 16)
        for name in ("loss", "language", "vision", "pooled"):
            assert torch.equal(getattr(output, name), getattr(expected, name)), name


def test_all_cells_in_evaluation_leaves_training_alone():
    model = make()
    model.bert.encoder.sub_sampling_in_evaluation = False
    assert_identical(train(model), train(make()))


def test_kept_bytes_of_a_resnet_are_counted():
    """By hand: of a 3 x 3 convolution, a norm and a ReLU, autograd keeps each one's input or output once."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), BatchNorm2d(4), nn.ReLU())
    statistics = 2 * 4 * 4  # mean and standard deviation of 4 channels
    image = torch.rand(2, 3, 8, 8)
    assert activation_bytes(model, {"input": image}) == 2 * (2 * 4 * 8 * 8 * 4) + statistics


def test_checkpointing_keeps_less_than_half_and_the_meta_device_counts_the_same():
    counts = []
    for device in ("cpu", "meta"):
        # The meta device has this attention alone; a CPU prefers another, but not with dropout.
        with torch.device(device), sdpa_kernel(SDPBackend.MATH):
            model = make().to(device)
            inputs = {name: value.to(device) for name, value in batch().items() if name != "sampling_state"}
            inputs["positions"] = torch.zeros(2, 4, dtype=torch.int32)
            everything = activation_bytes(model, inputs)
            block = largest_block_bytes(model, inputs, (ClipResNet,))
            counts.append((everything, activation_bytes(checkpointed(model), inputs), block))
    assert counts[0] == counts[1]
    everything, only_inputs, block = counts[0]
    assert only_inputs < everything / 2
    assert everything / 2 < block < everything  # on images of this size the ResNet's share
