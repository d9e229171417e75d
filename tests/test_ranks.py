"""What must not depend on how a run is spread or on its precision."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import fp16_flags, launch, read_metrics

Flags = Callable[..., list[str]]
# The tiny demo model with all three tasks. Batch norm by running statistics: batches per rank differ otherwise.
ALL_TASKS = ["--task_matched", "true", "--taskQA", "--batchSize", "4", "--epochs", "1"]
# One rank sums 4 micro-batches and two ranks 2 each, in another order: fp32 rounding of gradients of 1e-7 of their
# size, through AdamW's normalised steps of at most lr = 5e-4 each, stays two orders below this.
PARAMETERS = 5e-6
# bf16-like rounding of fp16 (2^-11) in every activation, averaged over a batch: well below 1% of the loss.
FP16_CURVE = 0.01


@pytest.mark.parametrize(
    "on",
    [
        pytest.param([], id="defaults"),
        pytest.param(["--compile", "--activation_checkpointing", "all"], id="everything on", marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one(on: list[str], flags: Flags, tmp_path: Path) -> None:
    """The same ten steps of 16 samples: 2 ranks x 4 samples x accumulation 2, and 1 x 4 x 4.

    With everything on, the two ranks stop in between and go on.
    """
    states, validations = [], []
    for ranks in (1, 2):
        output = tmp_path / f"{ranks}"
        more = [*ALL_TASKS, *on, "--global_batch_size", "16", "--freeze_batch_norm", "--lr", "5e-4"]
        more += ["--output", str(output)]
        for part in [["--max_steps", "5"], ["--resume", "auto"]] if on and ranks == 2 else [[]]:
            run = launch("launch/pretrain.py", flags(*more, *part), ranks=ranks, launcher="warm")
            assert run.code == 0, run.stderr[-3000:]
        assert read_metrics(output)[-1]["step"] == 10
        states.append(torch.load(output / "Epoch01_LXRT.pth", weights_only=True))
        validations.append(read_metrics(output, "valid")[-1])
    one, two = states
    assert set(one) == set(two)
    errors = {name: float((one[name].double() - two[name].double()).abs().max()) for name in one}
    worst = max(errors, key=lambda name: errors[name])
    assert errors[worst] <= PARAMETERS, (worst, errors[worst])
    # Validation counts every sample once on any number of ranks, so only the parameters' rounding is left.
    for name in ("mask_lm_loss", "matched_loss", "qa_loss"):
        assert abs(validations[0][name] - validations[1][name]) < 1e-4
    for name in ("mask_lm_accuracy", "matched_accuracy", "qa_accuracy"):
        assert validations[0][name] == validations[1][name]


def test_the_same_command_gives_the_same_run(flags: Flags, tmp_path: Path) -> None:
    """Bit for bit, with two ranks and two loading workers each."""
    runs = []
    for name in ("first", "second"):
        output = tmp_path / name
        more = [*ALL_TASKS, "--report_step", "1", "--max_steps", "5", "--num_workers", "2", "--output", str(output)]
        run = launch("launch/pretrain.py", flags(*more), launcher="warm")
        assert run.code == 0, run.stderr[-3000:]
        losses = [(record["loss"], record["grad_norm"]) for record in read_metrics(output)]
        runs.append((losses, torch.load(output / "Step000005_LXRT.pth", weights_only=True)))
    (one_losses, one), (two_losses, two) = runs
    assert len(one_losses) == 5
    assert one_losses == two_losses
    assert set(one) == set(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def half(tmp_path: Path) -> list[str]:
    return fp16_flags(tmp_path)


@pytest.mark.slow
def test_fp16_follows_fp32(flags: Flags, half: list[str], tmp_path: Path) -> None:
    """Two ranks, ten steps with a falling loss."""
    curves = {}
    for precision, precision_flags in (("false", []), ("true", half)):
        output = tmp_path / precision
        more = [*ALL_TASKS, *precision_flags, "--report_step", "1", "--max_steps", "10", "--output", str(output)]
        run = launch("tests/workers/fp16_pretrain.py", flags(*more, "--lr", "2e-3"), launcher="warm")
        assert run.code == 0, run.stderr[-3000:]
        records = read_metrics(output)
        assert records[-1]["skipped_steps"] == 0
        assert (records[0]["loss_scale"] > 1) == (precision == "true")
        curves[precision] = [record["loss"] for record in records]
    assert len(curves["true"]) == 10
    assert min(curves["false"][5:]) < 0.95 * curves["false"][0]  # a flat curve would prove nothing
    for half, full in zip(curves["true"], curves["false"], strict=True):
        assert abs(half - full) <= FP16_CURVE * full


def test_in_fp32_the_masters_are_the_model_s_weights(tmp_path: Path) -> None:
    """Not copies of them, on both ranks; and buckets that a parameter doesn't fit into give the same bits."""
    report = tmp_path / "report.json"
    run = launch("tests/workers/masters.py", [str(report)], launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    first, second = json.loads(report.read_text())
    assert first == second
    assert [first[name] for name in ("shared", "the model's", "the same in small buckets")] == [True] * 3


NO_NORM = {"compute_grad_norm": False}
OFFLOAD = {"offload_optimizer": {"device": "cpu"}}


@pytest.mark.parametrize(
    ("ranks", "own"),
    [
        (2, {}),
        (1, {}),
        pytest.param(1, NO_NORM, marks=pytest.mark.slow),
        pytest.param(1, OFFLOAD, marks=pytest.mark.slow),
        pytest.param(2, {"stage": 1}, marks=pytest.mark.slow),
    ],
)
def test_an_overflow_skips_both_optimisers_and_schedules(
    ranks: int, own: dict[str, Any], flags: Flags, half: list[str], tmp_path: Path
) -> None:
    """Though one rank's gradients alone aren't finite, and though someone's own configuration may ask for no norm."""
    if own:
        path = Path(half[-1])
        settings = json.loads(path.read_text())
        settings["zero_optimization"] |= own
        path.write_text(json.dumps(settings))
    if own == NO_NORM:
        half += ["--max_grad_norm", "0"]
    report = tmp_path / "report.json"
    more = [str(report), *flags(*ALL_TASKS, *half, "--lr", "2e-3")]
    run = launch("tests/workers/overflow.py", more, ranks=ranks, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    records = json.loads(report.read_text())
    assert [len(record) for record in records] == [ranks] * 4
    for step, everywhere in enumerate(records, start=1):
        for record in everywhere:
            # Whether a step is skipped is the host's to know, and the one thing of the device that it reads.
            waits = record.pop("waits")
            assert own or waits == {"engine/training/engine.py, scaled_global_norm: cpu": 1}
            if step == 3:
                assert record == {
                    **{"backbone": 0, "weights": 0, "state": 0, "rates_moved": False},
                    **{"scale_factor": 0.5, "skipped": 1},
                }
            else:
                assert record["backbone"] > 0
                assert record["state"] > 0
                assert record["rates_moved"]
                assert record["scale_factor"] == 1.0


@pytest.mark.parametrize(("precision", "ranks"), [("fp32", 1), ("fp16", 2)])
def test_a_training_waits_once_in_an_optimiser_step(
    precision: str, ranks: int, flags: Flags, half: list[str], tmp_path: Path
) -> None:
    """Six micro-batches in a row, from fetching each to the last observer, and three updates; no report among them."""
    report = tmp_path / "report.json"
    more = [*ALL_TASKS, *(half if precision == "fp16" else []), "--gradient_accumulation_steps", "2"]
    more += ["--max_steps", "5", "--report_step", "100"]
    run = launch("tests/workers/waiting_pretrain.py", [str(report), *flags(*more)], ranks=ranks, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    records = json.loads(report.read_text())
    assert records[2:8] == 3 * [{}, {"engine/training/engine.py, scaled_global_norm: cpu": 1}]
    assert sum(records[-1].values()) > 1  # the last step's report does wait, and is seen to
