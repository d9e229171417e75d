"""What differs between two runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from engine.errors import UserError
from engine.provenance.compare import compare, read_run
from engine.provenance.results import Results
from tests.conftest import launch


def write(folder: Path, lr: float, commit: str, last: dict[str, Any]) -> Path:
    folder.mkdir()
    start = {
        "start": "2026-01-01T00:00:00+00:00",
        "configuration": {"lr": lr, "epochs": 2},
        "deepspeed": {"zero_optimization": {"stage": 2}},
        "code": {"commit": commit, "clean": True},
        "versions": {"torch": "2.8"},
        "seeds": {"seed": 1},
    }
    earlier = {**start, "exit": "running", "configuration": {"lr": 9.0}, "seconds": None}
    (folder / "run.json").write_text(json.dumps({"starts": [earlier, {**start, **last}]}))
    return folder


FINISHED = {"exit": "finished", "step": 20, "seconds": 7.5, "results": {"train": {"loss": 0.5}, "valid": {}}}


def rows(table: str) -> dict[str, list[str]]:
    return {line.split()[0]: line.split()[1:] for line in table.splitlines() if line.startswith("  ")}


def test_the_table_has_what_differs_and_all_results(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", 1e-4, "abc", FINISHED), write(tmp_path / "b", 5e-5, "abc", FINISHED)
    table = compare(read_run(one), read_run(two / "run.json"))
    found = rows(table)
    assert found["lr"] == ["0.0001", "5e-05"]
    assert found["step"] == ["20", "20"]
    assert found["starts"] == ["2", "2"]
    assert found["train.loss"] == ["0.5", "0.5"]
    assert "epochs" not in found
    lines = table.splitlines()
    assert "no difference in DeepSpeed settings, versions, code, seeds" in lines
    assert "not recorded in both: data, hosts" in lines
    [rate] = [line for line in lines if line.startswith("  lr ")]
    assert rate.index("5e-05") == lines[0].index(str(two))  # aligned


def test_a_run_without_an_end_is_told_and_read_up_to_now(tmp_path: Path) -> None:
    killed = write(tmp_path / "a", 1e-4, "abc", {"exit": "running", "step": None, "seconds": None, "results": None})
    other = write(tmp_path / "b", 1e-4, "abd", FINISHED)
    records = [
        {"kind": "train", "step": 1, "loss": 3.0, "time": "2026-01-31T12:00:00+00:00", "seconds": 7.25},
        {"kind": "valid", "step": 2, "loss": 1.0},
        {"kind": "valid", "step": 4, "loss": 2.0},
    ]
    (killed / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"kind": "tr')
    table = compare(read_run(killed), read_run(other))
    assert "no end was written: it still runs, or was killed" in table
    found = rows(table)
    assert (found["valid.loss"], found["best.loss"], found["best.step"]) == (["2", "-"], ["1", "-"], ["2", "-"])
    assert found["commit"] == ["abc", "abd"]
    assert not {"train.time", "train.seconds"} & found.keys()  # when a line was written is no result


def test_folders_of_earlier_versions_have_flags_and_metrics(tmp_path: Path) -> None:
    for name, lr in (("a", 1e-4), ("b", 1e-5)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"lr: {lr}\nvalid: ''\n")
        (tmp_path / name / "metrics.jsonl").write_text('{"kind": "train", "step": 3, "loss": 0.25}\n')
    table = compare(read_run(tmp_path / "a"), read_run(tmp_path / "b"))
    found = rows(table)
    assert found["lr"] == ["0.0001", "1e-05"]
    assert found["train.step"] == ["3", "3"]
    assert "not recorded in both: DeepSpeed settings, versions, " in table


@pytest.mark.parametrize(
    ("records", "best"),
    [
        ([{"loss": 2.0}, {"loss": 1.0}, {"loss": 3.0}], 1),
        ([{"loss": float("nan")}, {"loss": 1.0}, {"loss": float("nan")}], 1),
        ([{"loss": 1.0, "score": 0.2}, {"loss": 9.0, "score": 0.4}, {"loss": 0.5, "score": 0.3}], 1),
        ([{"loss": 1.0, "score": 0.0}, {"loss": 2.0, "score": 0.0}, {"loss": 3.0, "score": 0.0}], 2),
        ([{"loss": 2.0}, {"loss": 1.0}, {"loss": 1.0}], 2),
    ],
)
def test_the_best_validation(records: list[dict[str, float]], best: int) -> None:
    results = Results({"kind": "valid", "epoch": number, **record} for number, record in enumerate(records))
    assert results.best["epoch"] == best
    assert results.valid["epoch"] == 2


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("run.json", "{", r"run\.json is damaged"),
        ("config.yaml", "- a", "is no configuration"),
        ("config.yaml", "a: [", r"config\.yaml can't be read"),
        ("notes", "", r"holds neither run\.json nor config\.yaml"),
    ],
)
def test_what_is_no_run_is_refused(file: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError, match=words):
        read_run(tmp_path)
    with pytest.raises(UserError, match="there is no such file"):
        read_run(tmp_path / "nothing")


def test_the_program_prints_the_table_or_one_line(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a", 1e-4, "abc", FINISHED), write(tmp_path / "b", 5e-5, "abc", FINISHED)
    run = launch("launch/compare.py", [str(one), str(two)], ranks=1, launcher="python")
    assert (run.code, rows(run.stdout)["lr"]) == (0, ["0.0001", "5e-05"]), run.stderr
    run = launch("launch/compare.py", [str(one), str(tmp_path / "nothing")], ranks=1, launcher="python")
    assert run.code == 2
    [error] = run.stderr.strip().splitlines()
    assert error.startswith("compare.py: error: ")
