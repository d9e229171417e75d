"""--compile: the recorded numbers, the same draws for the same seed, and what happens where there is no compiler.

A compilation takes ten to thirty seconds, so there is one for the recorded sizes and one for all other tests.
"""

import pytest
import torch
from torch._dynamo.utils import counters

from engine.benchmark.step.measuring import check
from engine.benchmark.step.ours import turn_over
from engine.model.compilation import compile_layers
from engine.training.loop import evaluate
from tests.conftest import ROOT
from tests.engine.model.test_activation_checkpointing import assert_identical, batch, checkpointed, make, train

TOKENS = 5 + 4  # of a sequence of `batch`: words and cells


def compiled(part="none"):
    """The small model with dropout, compiled, and what was said of it."""
    model = checkpointed(make(), part)
    return model, compile_layers(model.bert.encoder, 2, TOKENS)


def test_the_recorded_numbers_stay() -> None:
    def change(model):
        turn_over(model, ["compiled_layers"])

    graphs = counters["stats"]["unique_graphs"]
    assert check("compiled layers", change, ROOT / "tests" / "golden" / "model_pretrain", "cpu", passes=1) > 10
    assert counters["stats"]["unique_graphs"] > graphs


@pytest.mark.slow
def test_a_seed_gives_one_run_whatever_is_checkpointed_and_evaluated() -> None:
    model, said = compiled()
    assert said.startswith("BERT's layers compiled ")
    assert set(model.state_dict()) == set(make().state_dict())
    graphs = counters["stats"]["unique_graphs"]
    expected = train(model)
    assert [name for name, value in train(make()).items() if not torch.equal(expected[name], value)]  # other draws
    for part in ("none", "all"):
        model, _ = compiled(part)
        assert_identical(train(model), expected)

    smaller = batch(images=1)
    eager = make()
    eager.load_state_dict(model.state_dict())
    for each in (model, eager):
        each.eval()
    with torch.no_grad():
        plain = eager(**smaller).loss
    losses = []
    evaluate(model, [Inputs(smaller)], lambda _, output: losses.append(output.loss))
    assert torch.equal(losses[0], plain)
    assert counters["stats"]["unique_graphs"] == graphs  # one for all layers, models and passes


class Inputs:
    """A batch, as far as `evaluate` looks at it."""

    def __init__(self, inputs):
        self.inputs = inputs

    def to(self, device):
        return self


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [False, True])
def test_one_image_gives_what_it_gives_without_compiler_and_checkpoints(frozen: bool) -> None:
    """In fp64: a sum in another order differs by 1e-16 of its largest term, and terms are of order 1 here, though sums
    such as the gradients of keys' biases may be zero but for rounding. Two steps magnify that, but not 10,000 times."""
    compiled_model, eager = (make(torch.float64, dropout=0.0, freeze_batch_norm=frozen) for _ in range(2))
    checkpointed(compiled_model)
    assert compile_layers(compiled_model.bert.encoder, 1, TOKENS).startswith("BERT's layers compiled ")
    numbers, expected = train(compiled_model, images=1), train(eager, images=1)
    assert numbers.keys() == expected.keys()
    assert max(float((numbers[name] - value).abs().max()) for name, value in expected.items()) <= 1e-12


@pytest.mark.slow
def test_draws_go_on_where_a_run_was_left() -> None:
    """As a checkpoint keeps it: weights, and the state of the default generator."""
    model, _ = compiled()
    torch.manual_seed(1)
    losses = [model(**batch()).loss for _ in range(2)]
    torch.manual_seed(1)
    model(**batch())
    state = torch.get_rng_state()
    torch.manual_seed(2)
    torch.set_rng_state(state)
    assert torch.equal(model(**batch()).loss, losses[1])
    assert not torch.equal(losses[0], losses[1])


def test_without_a_compiler_training_goes_on_as_without_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_fx(*_, **__):
        raise RuntimeError("there is no compiler\nand a long story")

    torch._dynamo.reset()
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", compile_fx)
    model, said = compiled()
    expected = "warning: BERT's layers can't be compiled here, so they run as without --compile "
    assert said == expected + "(RuntimeError: there is no compiler)"
    assert_identical(train(model), train(make()))
