"""launch/report.py, as a user starts it."""

from pathlib import Path

import pytest

from tests.conftest import launch
from tests.engine.report.conftest import train, write_run


def test_the_program_writes_the_page_and_its_pictures(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [train(10, 1.0)])
    ended = launch("launch/report.py", [str(run)], ranks=1, launcher="warm")
    assert ended.code == 0, ended.stderr
    page = run / "report" / "report.html"
    [line] = ended.stdout.splitlines()
    pictures = list(page.parent.glob("*.png"))
    assert line.startswith(
        f"wrote {page} ({page.stat().st_size / 1e6:.2f} MB) and {len(pictures)} pictures beside it in "
    )
    assert {path.name for path in page.parent.iterdir()} == {"report.html", *(path.name for path in pictures)}
    assert page.read_text().rstrip().endswith("</html>")
    assert "There are no pictures from held-out data" in page.read_text()  # since there is no model


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "the following arguments are required: runs"),
        (["nothing"], "nothing is no folder"),
        (["x", "--question", "3"], "unknown flag --question; did you mean --questions?"),
        (["x", "--questions", "0"], "--questions 0: at least 1 is needed"),
        (["x", "--batch_size", "two"], "argument --batch_size/--batch-size: invalid int value: 'two'"),
    ],
)
def test_what_can_not_be_done_is_one_line(flags: list[str], words: str) -> None:
    ended = launch("launch/report.py", flags, ranks=1, launcher="warm")
    assert ended.code == 2
    [line] = [line for line in ended.stderr.splitlines() if line]
    assert line.startswith(f"report.py: error: {words}")
