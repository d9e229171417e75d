"""What a dry run concludes from what it measures."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.checkpoint.space import Files
from engine.progress import duration
from engine.tasks.pretraining import PretrainConfig
from engine.training.preflight import trial
from engine.training.preflight.plan import Plan
from engine.training.preflight.trial import folders_as_before, largest_measured

BASE, EACH = 1000, 10  # bytes of a training, and of each sample beside


@pytest.mark.parametrize("unit", [1, 4])
@pytest.mark.parametrize("limit", [1005, 1010, 1019, 1040, 1100, 1357, 3000, 10**6])
def test_the_largest_batch_is_found_without_one_too_large(
    limit: int, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []
    monkeypatch.setattr(trial, "forget_peak", lambda device: None)
    monkeypatch.setattr(trial, "batch_of", lambda batches, samples: SimpleNamespace(to=lambda device: samples))
    monkeypatch.setattr(trial, "micro_step", lambda engine, samples, at_boundary: tried.append(samples))
    monkeypatch.setattr(trial, "peak_bytes", lambda device: BASE + EACH * tried[-1])
    monkeypatch.setattr(trial, "of_all_ranks", lambda value: [value])
    batches: Any = SimpleNamespace(batch_sampler=SimpleNamespace(groups=range(512)))
    config = PretrainConfig(sentences_per_image=unit)
    engine: Any = SimpleNamespace(device=None)
    found = largest_measured(engine, batches, config, limit)
    fitting = min(512, (limit - BASE) // EACH) // unit * unit
    assert found == ((fitting, BASE + EACH * fitting) if fitting else None)
    assert max(tried) <= max(fitting, 2 * unit)  # none that should fail, but the two that tell how memory grows
    assert len(tried) < 14


def plan(**flags: Any) -> Plan:
    task: Any = SimpleNamespace(epoch_weights=True, best_and_last=False)
    return Plan.of(PretrainConfig(epochs=4, gradient_accumulation_steps=3, **flags), task, batches_per_epoch=31)


def test_a_plan_counts_steps_and_checkpoints() -> None:
    assert plan() == Plan(steps=40, epochs=4, saves=4, weights_files=4)
    assert plan(save_step=7) == Plan(steps=40, epochs=4, saves=9, weights_files=4)
    assert plan(max_steps=25, stop_after_epoch=3) == Plan(steps=25, epochs=3, saves=3, weights_files=3)


def test_checkpoints_that_go_take_no_room() -> None:
    files = Files(state=100, weights=10)
    assert plan(save_step=7).bytes_on_disk(files, keep=None) == 9 * 100 + 4 * 10
    assert plan(save_step=7).bytes_on_disk(files, keep=2) == 3 * 100 + 4 * 10  # the third is written before one goes


def test_folders_are_as_before(tmp_path: Path) -> None:
    with folders_as_before(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir(parents=True)
    assert list(tmp_path.iterdir()) == []
    with folders_as_before(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b").mkdir(parents=True)
        (tmp_path / "a" / "other").touch()  # somebody else's
    assert list((tmp_path / "a").iterdir()) == [tmp_path / "a" / "other"]


def test_durations_are_for_the_eye() -> None:
    assert [duration(seconds) for seconds in (3.4, 90, 600, 8000, 300_000)] == [
        "3 s",
        "90 s",
        "10 min",
        "2.2 h",
        "83.3 h",
    ]
