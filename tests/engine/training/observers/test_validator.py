"""Which model is kept as BEST."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.checkpoint.manifest import BEST
from engine.training.loop import TrainState
from engine.training.observers import validator
from engine.training.observers.validator import ModelKeeper


@pytest.mark.parametrize(
    ("scores", "best"), [([0.0, 0.0, 0.0], 3), ([1.0, 2.0, 1.5], 2), ([1.0, 2.0, 2.0, 1.0], 3)], ids=str
)
@pytest.mark.parametrize("goes_on", [False, True])
def test_the_latest_of_equal_scores_is_the_best(
    scores: list[float], best: int, goes_on: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run goes on before each validation, and knows of the best model from its folder alone."""
    kept: dict[str, Any] = {}

    def save(folder: Path, *arguments: Any, notes: dict[str, Any], **more: Any) -> None:
        folder.mkdir(exist_ok=True)
        kept.update(notes)

    monkeypatch.setattr(validator, "full_state", lambda engine: {})
    monkeypatch.setattr(validator, "save_pretrained", save)
    monkeypatch.setattr(validator, "read_manifest", lambda folder: kept)
    saver: Any = SimpleNamespace(engine=SimpleNamespace(global_rank=0), reporter=SimpleNamespace(say=lambda text: None))
    description: Any = None
    trained_on: Any = None
    keeper = ModelKeeper(saver, tmp_path, description, trained_on)
    for epoch, score in enumerate(scores, 1):
        keeper = ModelKeeper(saver, tmp_path, description, trained_on) if goes_on else keeper
        keeper.after_validation(TrainState(step=10 * epoch), "score", score, epoch)
    assert (kept["epoch"], kept["step"], kept["score"]) == (best, 10 * best, max(scores))
    assert (tmp_path / BEST).is_dir()
