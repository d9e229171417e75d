"""The page: what is on it, what is escaped, and what a browser makes of it."""

import fcntl
import io
import os
import re
import signal
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.errors import UserError
from engine.report import drawing
from engine.report.charts import chart_sections
from engine.report.curves import Curve
from engine.report.drawing import DARK, DPI, LIGHT, TOP, Chart, Series, draw
from engine.report.flags import ReportConfig
from engine.report.page import PAGE, gather, render, write, write_report
from engine.report.runs import read_runs
from engine.report.sections import Card, Picture, Section, Table
from engine.report.tables import head
from tests.browser import browser_page
from tests.conftest import small_tmpfs
from tests.engine.report.conftest import RECORDS, train, valid, write_run

WARNING = {"kind": "warning", "step": 30, "rank": 1, "text": "rank 1 <b>holds up</b> the others"}


def config(*runs: Path, output: Path | None = None) -> ReportConfig:
    made = ReportConfig(output=None if output is None else str(output), pictures=False)
    made.runs = list(map(str, runs))
    return made


def page_of(*runs: Path) -> str:
    return render("runs", gather(read_runs(list(map(str, runs))), config(*runs)))


def rows_of(section: Section) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for part in section.parts if isinstance(part, Table) for row in part.rows}


def small_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each chart is a small picture: most tests are about what is said, and drawing takes a tenth of a second."""
    monkeypatch.setattr(drawing, "_png", lambda *_: small_png())


@pytest.mark.usefixtures("undrawn")
def test_the_head_and_the_results_of_a_run(tmp_path: Path) -> None:
    runs = read_runs([str(write_run(tmp_path / "run"))])
    told, results = (rows_of(section) for section in gather(runs, config())[:2])
    assert told["Task"] == ["fine-tuning on gqa"]
    assert told["How it ended"] == ["finished"]
    assert told["Came to step"] == ["40; epoch 2 of 2"]
    assert told["Best validation"] == ["score 0.5, after epoch 2 (step 40)"]
    assert told["Machines"] == ["2 ranks on 1 machine (a CPU)"]
    assert results["Score"][:3] == ["0.5", "best and last validation", "testdev"]
    assert results["Loss"][:3] == ["1.25", "last report of the training", "train"]
    assert "Answers: loss" not in results  # it is the loss


@pytest.mark.usefixtures("undrawn")
def test_a_prediction_beside_the_run_is_a_result(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [])
    (run / "test_score.json").write_text('{"score": 0.75, "questions": 4}')
    (run / "other_score.json").write_text("{")
    assert rows_of(gather(read_runs([str(run)]), config())[1])["Score"][:3] == ["0.75", "prediction", "test"]


@pytest.mark.parametrize(
    ("start", "told"),
    [
        ({"configuration": {"load_lxmert_qa": "two/Epoch11"}, "came_from": None}, "two/Epoch11"),
        ({"configuration": {"load_lxmert": "two/Epoch11"}, "came_from": "run/Epoch01"}, "run/Epoch01"),  # resumed
    ],
)
def test_the_head_says_whose_weights_a_fine_tuning_took(start: dict[str, object], told: str, tmp_path: Path) -> None:
    assert rows_of(head(read_runs([str(write_run(tmp_path / "run", **start))])))["Went on from"] == [told]


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("loss_scale", False), ("images_per_second", False), ("samples_per_second", True), ("sgd_lr", True)],
)
@pytest.mark.usefixtures("undrawn")
def test_charts_that_would_say_nothing_are_left_out(name: str, drawn: bool, tmp_path: Path) -> None:
    sections = chart_sections(read_runs([str(write_run(tmp_path / "run"))]))
    names = [part.name for section in sections for part in section.parts if isinstance(part, Picture)]
    assert (name in names) is drawn
    assert len(names) == len(set(names))


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("runs", "loss", "rate"),
    [
        (["a"], "training from 3 to 1.25; validation from 0.75 to 0.5", "training from 0.0001 to 0.0001"),
        (
            ["a", "b"],
            "1: a, training from 3 to 1.25; 1: a, validation from 0.75 to 0.5; "
            "2: b, training from 3 to 1.25; 2: b, validation from 0.75 to 0.5",
            "1: a from 0.0001 to 0.0001; 2: b from 0.0001 to 0.0001",
        ),
    ],
    ids=["one", "several"],
)
def test_charts_have_the_curves_of_all_runs(runs: list[str], loss: str, rate: str, tmp_path: Path) -> None:
    sections = chart_sections(read_runs([str(write_run(tmp_path / name)) for name in runs]))
    told = {part.name: part.alt for section in sections for part in section.parts if isinstance(part, Picture)}
    assert told["loss"] == f"Loss by optimiser step: {loss}"
    assert told["lr"] == f"Learning rate of AdamW by optimiser step: {rate}"


@pytest.mark.usefixtures("undrawn")
def test_several_runs_have_what_differs_and_one_colour_each(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name / "run", code={"commit": name, "clean": True}) for name in ("one", "two")]
    page = page_of(*folders, write_run(tmp_path / "third", [train(5, 9.0)], configuration={"lr": 1.0}))
    assert '<th scope="col">1: one/run</th>' in page
    assert "<h2>What differs</h2>" in page
    assert re.search(r">lr</th>\s*<td>0.0001</td>\s*<td>0.0001</td>\s*<td>1</td>", page)
    assert re.search(r">commit</th>\s*<td>one</td>\s*<td>two</td>\s*<td>0123456789abcdef</td>", page)
    assert "There is no difference in DeepSpeed settings, hosts." in page


@pytest.mark.usefixtures("undrawn")
def test_names_and_texts_are_escaped(tmp_path: Path) -> None:
    name = "Füße <script>alert('1')<"
    folder = write_run(tmp_path / name, [*RECORDS, WARNING, train(50, 1.0)], configuration={"train": "<script>$x_$"})
    (folder / "x&y_score.json").write_text('{"score": 1}')
    page = page_of(folder, write_run(tmp_path / "$\\frac{1}$ _日本"))
    assert "<script" not in page
    assert "Füße &lt;script&gt;alert(&#39;1&#39;)&lt;" in page
    assert "rank 1 &lt;b&gt;holds up&lt;/b&gt; the others" in page
    assert "x&amp;y" in page


@pytest.mark.parametrize(
    ("records", "words"),
    [
        ([], "No report has been written yet."),
        (["{", '{"kind": "tr'], "Lines 1, 2 of metrics.jsonl"),
        ([train(1, 2.0)], "from 2 to 2"),
        ([train(1, 2.0), train(2, float("nan")), train(3, float("inf"))], "Crosses at the top are 2 reports"),
        ([train(step, 1.0 if step != 7 else 1e4) for step in range(1, 40)], "The scale is logarithmic."),
        ([train(step, 1.0) for step in range(1, 1001)], "A point stands for up to 2 reports"),
        ([train(1, 1.0, loss_scale=2.0**16), train(2, 1.0, loss_scale=2.0**15)], "Of fp16"),
        ([valid(20, 0.5)], "Score by epoch"),
        ([train(10, 1.0), WARNING], "Triangles at the foot are warnings"),
    ],
    ids=["none", "damaged", "one", "not finite", "spike", "many", "fp16", "validations only", "warning"],
)
@pytest.mark.usefixtures("undrawn")
def test_odd_metrics_make_a_page(records: list[object], words: str, tmp_path: Path) -> None:
    assert words in page_of(write_run(tmp_path / "run", records))


@pytest.mark.usefixtures("undrawn")
def test_files_of_earlier_versions_make_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "run.json").unlink()
    assert "not recorded" in page_of(run)
    (run / "config.yaml").write_text("train: mscoco_train\nepochs: 3\ntask_mask_lm: true\n")
    assert "pre-training: masked words" in page_of(run)
    (run / "metrics.jsonl").unlink()
    assert "No report has been written yet." in page_of(run)


@pytest.mark.usefixtures("undrawn")
def test_entries_of_another_kind_are_left_out(tmp_path: Path) -> None:
    odd = {"hosts": {"one": 3}, "seconds": "long", "results": [1], "code": "abc", "deepspeed": 7, "start": {}}
    runs = read_runs([str(write_run(tmp_path / "run", **odd)), str(write_run(tmp_path / "other"))])
    sections = gather(runs, config())
    head = rows_of(sections[0])
    assert (head["Machines"], head["Started"]) == (["-", "2 ranks on 1 machine (a CPU)"], ["-", "2026-01-01 10:00 UTC"])
    assert "Not all of the runs have recorded: DeepSpeed settings, versions, code, data, seeds." in sections[-1].parts


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [("run.json", "{", "is damaged"), ("notes", "", "holds neither run.json, config.yaml nor metrics.jsonl")],
)
def test_a_broken_run_is_refused(file: str, content: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / file).write_text(content)
    with pytest.raises(UserError, match=words):
        read_runs([str(write_run(tmp_path / "run")), str(tmp_path / "broken")])
    with pytest.raises(UserError, match="is no folder"):
        read_runs([str(tmp_path / "nothing")])


def test_a_run_that_was_killed_is_told_from_one_that_runs(tmp_path: Path) -> None:
    here = {"host": socket.gethostname(), "pid": 1}
    run = write_run(tmp_path / "run", exit="running", end=None, seconds=None, rank_0=here)
    assert read_runs([str(run)])[0].end.startswith("it was killed")
    with (run / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert read_runs([str(run)])[0].end == "it is running"
    elsewhere = write_run(tmp_path / "other", exit="running", rank_0={"host": "elsewhere", "pid": 1})
    assert read_runs([str(elsewhere)])[0].end == "no end was written: it still runs, or was killed"


def test_a_chart_has_the_curves_in_the_colours_of_its_theme() -> None:
    curves = [Curve(np.arange(50), np.full(50, float(height))) for height in (1, 2)]
    chart = Chart(
        "c", "A chart", "About it.", [Series(str(number), curve, number) for number, curve in enumerate(curves)]
    )
    picture = draw(chart)
    assert picture.dark is not None
    for png, theme in ((picture.png, LIGHT), (picture.dark, DARK)):
        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).reshape(-1, 3).astype(int)
        for colour in (theme.page, *theme.curves[:2]):
            wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
            # The palette has 64 colours for smooth edges as well, so a colour may move by some of 256 levels.
            assert np.abs(pixels - wanted).max(1).min() <= 8
    assert picture.alt == "A chart by optimiser step: 0 from 1 to 1; 1 from 2 to 2"


def test_a_curve_far_from_zero_does_not_lie_on_the_edge_of_an_axis_from_zero() -> None:
    curve = Curve(np.arange(2), np.array([100.0, 101.0]))
    picture = draw(Chart("c", "A chart", "About it.", [Series("training", curve, 0)], from_zero=True))
    pixels = np.asarray(Image.open(io.BytesIO(picture.png)).convert("RGB")).astype(int)
    is_blue = pixels[..., 2] - pixels[..., 0] > 100  # the first curve's colour, and its smooth edges
    # A twentieth of the largest value is 18 pixels of the axis; half of that is left for the line's breadth.
    assert np.flatnonzero(is_blue.any(1))[0] > TOP * DPI + 9


@pytest.mark.parametrize("values", [[2.0, 1e308, -1e308], [1.0, 1e308], [float("nan")] * 2, [0.0], [1e-320]])
def test_any_values_can_be_drawn(values: list[float]) -> None:
    curve = Curve(np.arange(len(values)), np.array(values))
    for powers_of_two in (False, True):
        chart = Chart(
            "c", "$\\frac{1}$", "About it.", [Series("_日本 $x_$", curve, 7)] * 2, powers_of_two=powers_of_two
        )
        assert Image.open(io.BytesIO(draw(chart).png)).width == 960


@pytest.mark.usefixtures("undrawn")
def test_an_older_report_is_replaced_and_nothing_else_is_touched(tmp_path: Path) -> None:
    run, output = write_run(tmp_path / "run"), tmp_path / "made" / "here"
    write_report(config(run, output=output))
    (output / "mine.png").write_bytes(b"a picture")
    (output / PAGE).write_text((output / PAGE).read_text() + '<figure data-file="../run/run.json">')
    before = {path.name for path in output.iterdir()}
    assert "valid_score.png" in before
    (run / "metrics.jsonl").write_text("")
    write_report(config(run, output=output))
    assert {path.name for path in output.iterdir()} == {PAGE, "mine.png"}
    assert (run / "run.json").exists()


def test_a_full_disk_leaves_the_old_report(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk", "64k"):
        output = tmp_path / "disk"
        write(output, b"old", {"a.png": b"old"})
        with pytest.raises(UserError, match=r"report\.html can't be written \(No space left on device\)"):
            write(output, b"new", {"a.png": b"new", "b.png": bytes(100_000)})
        assert {path.name: path.read_bytes() for path in output.iterdir()} == {PAGE: b"old", "a.png": b"old"}


def test_a_process_that_is_killed_while_it_writes_leaves_the_old_report(tmp_path: Path) -> None:
    write(tmp_path, b"old", {"a.png": b"old"})
    if (child := os.fork()) == 0:
        os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)  # all is written, and nothing in its place
        write(tmp_path, b"new", {"a.png": b"new"})
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert [(tmp_path / name).read_bytes() for name in (PAGE, "a.png")] == [b"old", b"old"]
    write(tmp_path, b"newer", {"a.png": b"newer"})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {PAGE: b"newer", "a.png": b"newer"}


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.importing.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs matplotlib and jinja2; run `pip install matplotlib jinja2`"):
        write_report(config(tmp_path))


def test_a_folder_that_can_not_be_made_is_told_before_anything_is_drawn(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"can't be made \((File exists|Not a directory)\); choose another --output"):
        write_report(config(run, output=tmp_path / "file"))


def test_a_browser_shows_the_page(tmp_path: Path) -> None:
    photo = Picture("photo", small_png(), "a red thing", "A photo.")
    cards = [Card(photo, "What colour is it?", ["red 0.9"], good) for good in (True, False, None)]
    run = write_run(tmp_path / "run", [*RECORDS, WARNING])
    sections = [*gather(read_runs([str(run)]), config(run)), Section("Pictures", ["A sentence.", cards, photo])]
    page = tmp_path / PAGE
    page.write_text(render("A run", sections))
    with browser_page(color_scheme="light", viewport={"width": 1200, "height": 900}) as visit:
        visit.page.goto(page.as_uri())
        for words in ("What was trained", "fine-tuning on gqa", "Norm of the gradients", "What colour is it?"):
            assert visit.page.get_by_text(words).count() or visit.page.get_by_alt_text(words).count(), words
        images = visit.page.eval_on_selector_all("img", "all => all.map(one => [one.naturalWidth, one.alt !== ''])")
        assert len(images) == len(re.findall("<img", page.read_text())) > 10
        assert all(width > 0 and has_alt for width, has_alt in images)
        light = visit.page.eval_on_selector("img", "one => one.currentSrc")
        visit.page.emulate_media(color_scheme="dark")
        visit.page.wait_for_function("was => document.querySelector('img').currentSrc !== was", arg=light)
        dark = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(22, 27, 34)"  # DARK.page, so that a chart has no edge
        visit.page.emulate_media(media="print")
        visit.page.wait_for_function("was => document.querySelector('img').currentSrc === was", arg=light)
        visit.page.emulate_media(media="screen")
        visit.page.set_viewport_size({"width": 360, "height": 700})
        widths = visit.page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
        assert widths[0] <= widths[1]  # only tables are scrolled sideways
        assert visit.errors == []
        assert visit.requests == [page.as_uri()]
