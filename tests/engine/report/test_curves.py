"""metrics.jsonl as curves, and curves of fewer points."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from engine.report.curves import Curve, read_curves, thinned
from tests.engine.report.conftest import RECORDS, train


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines))
    return path


def test_curves_have_the_steps_at_which_a_figure_was_told(tmp_path: Path) -> None:
    curves = read_curves(write(tmp_path / "metrics.jsonl", *map(json.dumps, RECORDS)))
    assert curves.kinds["train"]["loss"].steps.tolist() == [10, 20, 30, 40]
    assert curves.kinds["train"]["loss"].values.tolist() == [3.0, 2.0, 1.5, 1.25]
    assert curves.kinds["valid"]["score"].values.tolist() == [0.25, 0.5]
    assert "score" not in curves.kinds["train"]
    assert "answer_type" not in curves.kinds["valid"]  # a table is no figure
    assert curves.results.best["step"] == 40
    assert curves.reports == 4
    assert curves.damaged == []


def test_what_can_not_be_read_is_left_out_and_noted(tmp_path: Path) -> None:
    warning = {"kind": "warning", "step": 20, "rank": None, "text": "the loss is not finite"}
    odd = [
        "[1]",
        '{"kind": "train"}',
        '{"kind": "train", "step": "x"}',
        "\xff\xfe",
        '{"kind": []}',
        "[" * 100_000,
        "",
        "null",
    ]
    huge = '{"kind": "train", "step": 25, "loss": 1' + "0" * 400 + ', "lr": "fast", "grad_norm": NaN}'
    lines = [
        json.dumps(train(10, 2.0)),
        *odd,
        json.dumps(warning),
        huge,
        json.dumps(train(30, math.inf)),
        '{"kind": "tr',
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    curves = read_curves(path)
    assert curves.damaged == [2, 3, 4, 5, 6, 7, 8, 9, 13]
    assert curves.warnings == [warning]
    assert curves.kinds["train"]["loss"].steps.tolist() == [10, 30]
    assert curves.kinds["train"]["loss"].finite.tolist() == [True, False]
    assert np.isnan(curves.kinds["train"]["grad_norm"].values[1])
    assert curves.kinds["train"]["lr"].steps.tolist() == [10, 30]


def test_no_file_has_no_curves(tmp_path: Path) -> None:
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert (curves.kinds, curves.reports) == ({"train": {}, "valid": {}}, 0)


@pytest.mark.parametrize("reports", [1, 499, 500])
def test_few_reports_are_drawn_as_they_are(reports: int) -> None:
    values = np.sin(np.arange(reports, dtype=np.float64))
    line = thinned(Curve(np.arange(reports), values))
    assert line.reports == 1
    for drawn in (line.means, line.lowest, line.highest):
        np.testing.assert_array_equal(drawn, values)
    np.testing.assert_array_equal(line.steps, np.arange(reports))


@pytest.mark.parametrize("reports", [501, 1000, 1234, 200_000])
def test_many_reports_become_means_and_no_spike_is_lost(reports: int) -> None:
    values = np.ones(reports)
    values[reports // 3], values[-1] = 100.0, -50.0
    line = thinned(Curve(np.arange(reports) * 10, values))
    assert len(line.means) <= 500
    assert line.reports == math.ceil(reports / 500)
    assert (line.highest.max(), line.lowest.min()) == (100.0, -50.0)
    at = int(line.highest.argmax())
    assert line.means[at] == pytest.approx((100 + line.reports - 1) / line.reports)
    assert abs(line.steps[at] - reports // 3 * 10) <= 10 * line.reports


def test_reports_that_are_not_finite_count_for_nothing() -> None:
    values = np.array([1.0, math.nan, 3.0, math.inf, -math.inf, math.nan, 5.0])
    line = thinned(Curve(np.arange(7), values), most=3)  # three in a row
    assert line.means[0] == 2.0
    assert np.isnan([line.means[1], line.lowest[1], line.highest[1]]).all()
    assert (line.means[2], line.lowest[2], line.highest[2]) == (5.0, 5.0, 5.0)
    assert line.steps.tolist() == [1.0, 4.0, 6.0]
