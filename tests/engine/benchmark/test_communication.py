"""Bytes that a training sends, and where its reductions lie in a step."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from engine.benchmark import communication
from engine.benchmark.communication import ring, shares
from engine.errors import UserError
from tests.conftest import fp16_flags, launch

ITEMSIZE = {"fp32": 4, "bf16": 2, "fp16": 2}
# Beside gradients and weights: a norm, the flags of the hosts, and padding of three groups to a multiple of the ranks.
FEW = 100


@pytest.mark.parametrize(
    ("precision", "accumulation"),
    [("fp32", 2), pytest.param("bf16", 1, marks=pytest.mark.slow), pytest.param("fp16", 2, marks=pytest.mark.slow)],
)
def test_a_training_sends_no_more_than_it_must(
    precision: str, accumulation: int, flags: Callable[..., list[str]], tmp_path: Path
) -> None:
    """The whole loop on two ranks: gradients once in each micro-batch, weights once in each step, and a few numbers."""
    report, more = tmp_path / "report.json", ["--gradient_accumulation_steps", str(accumulation), "--batchSize", "4"]
    more += {"fp32": [], "bf16": ["--bf16", "true"], "fp16": fp16_flags(tmp_path)}[precision]
    more += ["--max_steps", "4", "--report_step", "100"]
    run = launch("tests/workers/counting_pretrain.py", [str(report), *flags(*more)], launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    found = json.loads(report.read_text())
    size = found["values"] * ITEMSIZE[precision]
    steps = found["records"][accumulation : 3 * accumulation]  # neither the first nor the last, which is reported
    for number, messages in enumerate(steps, start=1):
        least = ring("reduce_scatter", size, 2) * (1 if number % accumulation else 2)
        sent = sum(ring(name, each, 2) for name, sizes in messages.items() for each in sizes)
        assert least <= sent <= least + FEW
        assert set(messages) == {"reduce"} if number % accumulation else {"reduce", "all_gather", "all_reduce"}
    assert len(steps) == 2 * accumulation


def test_where_reductions_lie() -> None:
    """By hand: two of 10 us; the first beside an operator for 4, the second behind the last operator for 5."""

    def event(name: str, begin: float, seconds: float) -> dict[str, Any]:
        return {"ph": "X", "name": name, "ts": begin, "dur": seconds}

    operator, hook = (
        f"autograd::engine::evaluate_function: {name}" for name in ("Mm", "torch::autograd::AccumulateGrad")
    )
    events = [
        *(event(operator, 0, 14), event(operator, 50, 5), event(hook, 14, 60), event("gloo:all_gather", 0, 50)),
        *(event("gloo:reduce", 10, 10), event("gloo:all_reduce", 50, 10), {"ph": "i", "name": "gloo:reduce"}),
    ]
    assert shares(events) == (15 / 20, 9 / 20)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ranks", "4", "1"], "--ranks 1: 2 or more is needed"),
        (["--accumulation", "0"], "--accumulation 0: 1 or more is needed"),
        (["--zero", "[1]"], '--zero [1]: an object is needed, such as {"stage": 1}'),
        (["--zero", '{"stage": 3}'], "--zero has zero_optimization.stage 3: 1 or 2 is needed"),
        (["--trace", "/proc/traces"], "--trace /proc/traces can't be made: No such file or directory"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    def note(error: UserError) -> NoReturn:
        told.append(str(error))
        raise SystemExit(2)

    monkeypatch.setattr("engine.distributed.leaving.exit_with", note)
    with pytest.raises(SystemExit):
        communication.main(flags)
    assert told[0].startswith(message)
