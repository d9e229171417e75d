"""python -m engine.benchmark.run.report: the long run that it draws, and bad flags."""

from pathlib import Path

import pytest

from engine.benchmark.run import report
from engine.report.curves import read_curves


def test_the_long_run_has_its_lines_and_validations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "LINES_PER_EPOCH", 50)
    report.write_run(tmp_path, 120)
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert len(curves.kinds["train"]["qa_loss"].steps) == 118
    assert curves.kinds["valid"]["epoch"].values.tolist() == [1, 2]
    assert curves.damaged == []


def test_a_bad_flag_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr("engine.distributed.leaving.exit_with", lambda error: told.append(str(error)))
    report.main(["--lines", "0"])
    assert told == ["--lines 0: at least 1 is needed"]
