"""Problems of several machines in one list."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.distributed.ranks import Ranks
from engine.training.preflight import machines
from engine.training.preflight.machines import problems_of_all


class TwoMachines:
    """A meeting of rank 0 with a rank on another machine, which says what `answer` makes of rank 0's words."""

    alone = False
    problem = ""

    def __init__(self, answer: Callable[[dict[str, Any]], dict[str, Any]], *, shared: bool = True) -> None:
        self.answer, self.shared = answer, shared

    def exchange(self, word: str, value: str) -> list[str]:
        if word == "sees":
            assert value == "yes"  # rank 0 sees its own file
            return [value, "yes" if self.shared else "no"]
        return [value, json.dumps(self.answer(json.loads(value)))]


def found_by(meeting: TwoMachines, here: list[str], output: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(machines.socket, "gethostname", lambda: "node1")
    ranks = Ranks(rank=0, world_size=2, local_rank=0, local_world_size=1)
    return problems_of_all(meeting, ranks, here, output)  # type: ignore[arg-type]


def test_machines_without_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = TwoMachines(lambda said: {**said, "host": "node2"})
    assert found_by(meeting, [], tmp_path / "deep" / "run", monkeypatch) == []
    assert list(tmp_path.iterdir()) == []


def test_each_problem_is_told_once_with_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meeting = TwoMachines(lambda said: {**said, "host": "node2", "problems": ["no data", "no room"]})
    assert found_by(meeting, ["no data", "no BERT"], tmp_path, monkeypatch) == [
        "no data",
        "on node1: no BERT",
        "on node2: no room",
    ]


def test_a_disk_that_is_not_shared_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second machine has a folder of the same name on a disk of its own."""
    meeting = TwoMachines(lambda said: {**said, "host": "node2"}, shared=False)
    [problem] = found_by(meeting, [], tmp_path / "run", monkeypatch)
    assert problem.startswith("rank 1 on node2 doesn't see what rank 0 on node1 writes to --output")
    assert "(1 of 2 ranks don't)" in problem


def test_an_output_that_cannot_be_written_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    meeting = TwoMachines(lambda said: {**said, "host": "node2", "problems": []}, shared=False)
    meeting.exchange = lambda word, value: [value, value]  # type: ignore[method-assign]
    assert found_by(meeting, ["it is a file"], tmp_path / "file", monkeypatch) == ["it is a file"]


def test_versions_that_differ_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def older(said: dict[str, Any]) -> dict[str, Any]:
        return {**said, "host": "node2", "versions": {**said["versions"], "torch": "2.8.0"}}

    monkeypatch.setattr(machines, "versions", lambda: {"torch": "2.13.0", "lmdb": "1.6", "driver": "575.1"})
    [problem] = found_by(TwoMachines(older), [], tmp_path, monkeypatch)
    assert problem.startswith("the machines have different versions of torch (2.13.0 on node1, 2.8.0 on node2)")
    assert "driver" not in machines.compared()
