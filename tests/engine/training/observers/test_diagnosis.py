import pytest
import torch
from torch import nn

from engine.training.observers.diagnosis import first_non_finite


class Power(nn.Module):
    """2 ** (exponent * x), with a companion of whole numbers."""

    def __init__(self, exponent):
        super().__init__()
        self.exponent = exponent

    def forward(self, x):
        return torch.arange(3), [torch.exp2(self.exponent * x)]


class Model(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.first, self.second = Power(first), Power(second)

    def forward(self, x, y):
        hidden = self.linear(x).abs() + y
        return {"scores": self.second(self.first(hidden)[1][0].clamp(max=1))}


INPUTS = {"x": torch.ones(1, 2), "y": torch.ones(1, 2)}


@pytest.mark.parametrize(
    ("exponents", "name"),
    [((1e4, 1e4), "first"), ((1, 1e4), "second")],
    ids=["the_first_of_two", "inside_a_tuple_and_a_list"],
)
def test_first_module_with_an_infinite_output_is_named(exponents, name):
    assert first_non_finite(Model(*exponents), INPUTS) == f"the first output that is not finite is that of {name}"


def test_inner_module_is_named_before_the_outer():
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Identity()))
    found = first_non_finite(model, {"input": torch.full((1, 2), torch.inf)})
    assert found == "the first output that is not finite is that of 0.0"


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
def test_parameter_is_named_before_any_output(value):
    model = Model(1e4, 1)
    model.linear.bias.data[1] = value
    assert first_non_finite(model, INPUTS) == "the parameter linear.bias is not finite"


def test_finite_outputs_point_to_the_gradients():
    assert first_non_finite(Model(1, 1), INPUTS) == "the outputs are finite, the gradients are not"


def test_nothing_is_left_on_the_model_even_after_a_failure():
    model = Model(1, 1)
    with pytest.raises(TypeError):
        first_non_finite(model, {})
    first_non_finite(model, INPUTS)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
