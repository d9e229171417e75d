"""run.json, over the starts of a run and its ends."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import UserError
from engine.provenance.history import RUNNING, read_starts
from engine.provenance.record import RunRecord


def train(folder: Path, steps: int, *, resumed: bool = False, error: BaseException | None = None, rank: int = 0) -> Any:
    with RunRecord(folder, rank) as record:
        record.begin({"seeds": {"seed": steps}}, resumed=resumed)
        if rank == 0:
            assert read_starts(folder / "run.json")[-1]["exit"] == RUNNING
        record.state = SimpleNamespace(step=steps)
        record.results.add({"kind": "train", "step": steps, "loss": 1.0 / steps, "table": {"a": 1}})
        if error is not None:
            raise error
        record.end("finished")


def ends(folder: Path) -> list[tuple[str, int]]:
    return [(start["exit"], start["step"]) for start in read_starts(folder / "run.json")]


def test_each_start_has_its_entry_and_its_end(tmp_path: Path) -> None:
    train(tmp_path, 4)
    train(tmp_path, 8, resumed=True)
    with pytest.raises(UserError, match="the disk is full"):
        train(tmp_path, 9, resumed=True, error=UserError("the disk is full"))
    with pytest.raises(RuntimeError):
        train(tmp_path, 10, resumed=True, error=RuntimeError("two\nlines"))
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, 11, resumed=True, error=KeyboardInterrupt())
    expected = [("finished", 4), ("finished", 8), ("the disk is full", 9)]
    assert ends(tmp_path) == [*expected, ("RuntimeError: two", 10), ("KeyboardInterrupt", 11)]
    [first, *_] = read_starts(tmp_path / "run.json")
    assert first["results"]["train"] == {"step": 4, "loss": 0.25}
    assert first["seeds"] == {"seed": 4}
    assert first["start"] <= first["end"]
    train(tmp_path, 5)  # without checkpoints to go on from
    assert ends(tmp_path) == [("finished", 5)]


def test_a_start_that_is_killed_stays_without_an_end(tmp_path: Path) -> None:
    RunRecord(tmp_path, 0).begin({}, resumed=False)  # and never leaves
    train(tmp_path, 8, resumed=True)
    assert ends(tmp_path) == [(RUNNING, None), ("finished", 8)]


def test_other_ranks_and_refused_starts_write_nothing(tmp_path: Path) -> None:
    train(tmp_path, 4, rank=1)
    with pytest.raises(UserError), RunRecord(tmp_path, 0):
        raise UserError("a flag is wrong")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["", '{"starts": [', "[]", '{"starts": []}', '{"starts": [1]}', "\xff"])
def test_a_damaged_file_is_moved_aside(content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run.json").write_text(content, encoding="latin-1")
    train(tmp_path, 8, resumed=True)
    assert ends(tmp_path) == [("finished", 8)]
    assert (tmp_path / "run.json.damaged").read_text(encoding="latin-1") == content
    [warning] = capsys.readouterr().out.splitlines()
    assert warning.startswith("warning: ")
    assert "is moved to run.json.damaged" in warning


def test_a_folder_of_an_earlier_version_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, 8, resumed=True)
    assert ends(tmp_path) == [("finished", 8)]
    assert capsys.readouterr().out == ""


def test_an_end_that_cannot_be_written_does_not_hide_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    record = RunRecord(folder, 0)
    record.begin({}, resumed=False)
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.raises(UserError, match="the real one"), record:
        raise UserError("the real one")
    assert "warning: the end of this run is not recorded: " in capsys.readouterr().err


def test_it_is_json_for_everyone(tmp_path: Path) -> None:
    train(tmp_path, 4)
    assert list(json.loads((tmp_path / "run.json").read_text())) == ["starts"]
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
