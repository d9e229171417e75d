"""The derived tolerances of half precision: a right pass keeps them, one with a mistake of the model's size doesn't."""

import torch

from engine.benchmark.recorded import RecordedPass, read_passes
from tests.conftest import ROOT
from tests.rounding import RandomRounding, half_model, run, tolerances


def beyond(each: RecordedPass, allowed: dict[str, float], *, swap_tables: bool) -> list[str]:
    model = half_model(each, "cpu", torch.bfloat16)
    if swap_tables:
        tables = model.bert.encoder.visual_pos
        tables.x_position_embedding, tables.y_position_embedding = (
            tables.y_position_embedding,
            tables.x_position_embedding,
        )
    quantities = run(each, model, each.inputs())
    return [quantity.name for quantity in quantities if not quantity.error <= allowed[quantity.name]]


def test_bf16_keeps_its_tolerances_and_swapped_tables_do_not() -> None:
    each = read_passes(ROOT / "tests" / "golden" / "model_pretrain")[0]
    allowed = tolerances(each, "cpu", torch.bfloat16)
    assert beyond(each, allowed, swap_tables=False) == []
    assert f"{each.name} visn_output" in beyond(each, allowed, swap_tables=True)


def test_a_random_rounding_is_within_one_and_of_no_view_or_loss() -> None:
    exact = torch.linspace(1, 2, 1000)
    with RandomRounding(1e-3, "cpu", seed=0):
        doubled, view, loss = exact * 2, exact.view(10, 100), exact.sum()
    error = (doubled / (2 * exact) - 1).abs()
    assert 5e-4 < error.max() <= 1e-3 + 1e-6
    assert torch.equal(view.flatten(), exact)
    assert loss == exact.sum()
