"""OUTPUT/SAVE, and what the saver does when it is asked for a checkpoint."""

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.training.loop import TrainState
from engine.training.observers import save_file
from engine.training.observers.save_file import SaveFile
from engine.training.observers.saver import Saver


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SaveFile:
    monkeypatch.setattr(save_file, "INTERVAL", 0.0)
    return SaveFile(tmp_path)


def test_a_file_asks_once_and_is_removed(asked: SaveFile) -> None:
    assert not asked.asks()
    asked.path.touch()
    assert asked.asks()
    assert not asked.asks()
    assert asked.remove() == ""
    assert not asked.path.exists()
    asked.path.touch()
    assert asked.asks()  # another one


def test_a_file_that_is_touched_again_asks_again_and_stays_until_that_is_saved(asked: SaveFile) -> None:
    asked.path.touch()
    assert asked.asks()
    os.utime(asked.path, ns=(1, 1))
    assert asked.remove() == ""
    assert asked.path.exists()
    assert asked.asks()


def test_what_cannot_be_removed_asks_once(asked: SaveFile) -> None:
    asked.path.mkdir()
    assert asked.asks()
    assert "can't be removed" in asked.remove()
    assert not asked.asks()
    assert asked.remove() == ""  # and is told once
    asked.discard()


def test_the_folder_is_looked_at_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(save_file.time, "monotonic", lambda: now[0])
    file = SaveFile(tmp_path)
    assert not file.asks()
    file.path.touch()
    now[0] += 0.9
    assert not file.asks()
    now[0] += 0.2
    assert file.asks()


class Checkpoints:
    """Writes at once, and publishes when asked to finish."""

    is_busy = False

    def __init__(self, folder: Path) -> None:
        self.folder, self.names, self.pending = folder, [], None  # type: ignore[var-annotated]

    def save(self, name: str, step: int, content: Any, *, weights_file: bool) -> None:
        self.names.append(name)
        self.pending = name

    def finish(self) -> str | None:
        name, self.pending = self.pending, None
        return name


def one_rank(folder: Path, monkeypatch: pytest.MonkeyPatch, *, steps: int) -> tuple[Any, Checkpoints]:
    """A saver of one rank, in an epoch of some steps, that writes nothing."""
    saver: Any = object.__new__(Saver)
    checkpoints = Checkpoints(folder)
    saver.engine = SimpleNamespace(global_rank=0, module=SimpleNamespace(buffers=list), frozen_weights={})
    saver.config = SimpleNamespace(gradient_accumulation_steps=1, max_steps=None)
    saver.sampler = SimpleNamespace(batches_left=lambda done: steps - done, groups=[])
    saver.preemption = SimpleNamespace(received=None, save_asked=threading.Event())
    saver.reporter, saver.checkpoints = SimpleNamespace(say=lambda text: None), checkpoints
    saver.hosts, saver.save_step, saver.last_step_of_epoch, saver.weights_files = None, 100, None, True
    saver.save_requested, saver.save_file = False, SaveFile(folder)
    saver.saved, saver.saved_weights, saver.digests = "", False, {}
    monkeypatch.setattr(saver, "_position", lambda state: {})
    saver.description, saver.trained_on = (SimpleNamespace(to_dict=dict, to_tensors=dict) for _ in range(2))
    module = "engine.training.observers.saver"
    monkeypatch.setattr(f"{module}.asdict", lambda config: {})
    monkeypatch.setattr(f"{module}.dist", SimpleNamespace(get_world_size=lambda: 1, all_gather_object=lambda *_: None))
    return saver, checkpoints


@pytest.mark.parametrize("by", ["signal", "file"])
@pytest.mark.parametrize(("at", "names"), [(2, ["Step000002", "Epoch01"]), (4, ["Epoch01"])], ids=["within", "at end"])
def test_who_asks_gets_one_checkpoint(
    by: str, at: int, names: list[str], asked: SaveFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the step in which it was asked for; at the end of an epoch, its own will do."""
    saver, checkpoints = one_rank(asked.path.parent, monkeypatch, steps=4)
    state = TrainState()
    for step in range(1, 5):
        if step == at:
            asked.path.touch() if by == "file" else saver.preemption.save_asked.set()
        state.batches = state.step = step
        saver.after_micro_step(state, None, at_boundary=True)
        assert asked.path.exists() == (by == "file" and step == at)
    saver.after_epoch(state)
    assert checkpoints.names == names
    assert not asked.path.exists()
    assert not saver.preemption.save_asked.is_set()
    state = TrainState(epoch=1, batches=1, step=5)
    saver.after_micro_step(state, None, at_boundary=True)
    assert checkpoints.names == names


def test_a_file_that_comes_at_the_very_end_does_not_stay(asked: SaveFile, monkeypatch: pytest.MonkeyPatch) -> None:
    saver, checkpoints = one_rank(asked.path.parent, monkeypatch, steps=4)
    asked.path.touch()
    saver.after_training(TrainState(epoch=1, batches=0, step=4))
    assert checkpoints.names == []
    assert not asked.path.exists()
