"""The folder of a run, and when a run may go on from what is in it."""

import json
import multiprocessing
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import engine.training.run_folder
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig
from engine.training.run_folder import RunFolder
from engine.training.start import as_compared, check_same_data, check_same_run

CONFIG = PretrainConfig(batch_size=8, gradient_accumulation_steps=2, lr=1e-4)
SENTENCES = 160
ANSWERS = ["yes", "no"]
DIGESTS = {"texts": "a", "images": "b", "labels": "c", "groups": "d"}
EVENTS = "tensorboard/events.out.tfevents"
SHOWN = [".run_id", f"{EVENTS}.1.host.7.0", f"{EVENTS}.2.host.9.0", "csv/train_loss.csv", "csv/ours.txt"]


def of_run(
    config: PretrainConfig, world_size: int = 2, answers: list[str] | None = None, **more: Any
) -> SimpleNamespace:
    content = {"config": asdict(config), "samples": SENTENCES, "ranks": [{}] * world_size, **more}
    return SimpleNamespace(folder=Path("run/Epoch01"), content=content, answers=answers)


def test_paths_reports_and_ranks_may_change() -> None:
    now = replace(CONFIG, data_root="elsewhere", report_step=7, num_workers=1, resume="auto", max_steps=9, save_step=3)
    check_same_run(of_run(CONFIG), now, 2)
    check_same_run(of_run(CONFIG), replace(now, gradient_accumulation_steps=4), 1)
    check_same_run(of_run(CONFIG), replace(CONFIG, epochs=CONFIG.epochs + 1), 2)


@pytest.mark.parametrize(
    ("now", "world_size", "words"),
    [
        (replace(CONFIG, lr=5e-5), 2, r"--lr was 0\.0001 and is 5e-05; .* --load run/Epoch01"),
        (replace(CONFIG, batch_size=4), 2, "--batch_size was 8 and is 4"),
        (replace(CONFIG, fp16=True), 2, "--fp16 was False and is True"),
        (
            replace(CONFIG, epochs=7),
            2,
            "of 20 epochs, and --epochs 7 is fewer; give 20 or more, and --stop_after_epoch to",
        ),
        (replace(CONFIG, epochs=7, lr=5e-5), 2, "of a run with other flags: --lr was"),  # it may be of another program
        (replace(CONFIG, do_lower_case=False), 2, "--do_lower_case was None and is False"),
        (CONFIG, 1, "with 32 samples per step, now there are 16; add --global_batch_size 32"),
        (
            CONFIG,
            3,
            "with 32 samples per step, now there are 48; 3 ranks can't share 32 in micro-batches of 8, which have to "
            "stay: go on with 1 or 2 or 4, or start another run",
        ),
    ],
)
def test_another_run_is_told_from_a_resumed_one(now: PretrainConfig, world_size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_same_run(of_run(CONFIG), now, world_size)


@pytest.mark.parametrize(
    ("sentences", "answers", "changed", "words"),
    [
        (161, ANSWERS, {}, r"the number of sentences \(160, now 161\)"),
        (160, ANSWERS, {"texts": "x"}, "the annotations' texts"),
        (160, ["no", "yes"], {"labels": "x"}, "the annotations' answers, the answer table"),
        (160, ANSWERS, {"images": "x", "groups": "x"}, "the annotations' images, the batches that .*"),
    ],
)
def test_other_data_are_told(sentences: int, answers: list[str], changed: dict[str, str], words: str) -> None:
    checkpoint = of_run(CONFIG, answers=ANSWERS, digests=DIGESTS)
    with pytest.raises(
        UserError, match=f"^run/Epoch01 is of a run on other data, which differ in {words}; restore .*--load run/"
    ):
        check_same_data(checkpoint, sentences, answers, DIGESTS | changed)


def test_the_same_data_go_on_as_far_as_a_checkpoint_tells() -> None:
    check_same_data(of_run(CONFIG, answers=ANSWERS, digests=DIGESTS), SENTENCES, ANSWERS, DIGESTS)
    check_same_data(of_run(CONFIG), SENTENCES, None, DIGESTS)  # of an earlier version
    without_answers = of_run(CONFIG, digests=DIGESTS)
    check_same_data(without_answers, SENTENCES, None, DIGESTS | {"labels": "what nobody learns"})


def add_checkpoint(folder: Path) -> None:
    (folder / "Epoch01").mkdir(parents=True)
    (folder / "Epoch01" / "manifest.json").write_text(json.dumps({"step": 1, "world_size": 1, "files": {}}))


def test_checkpoints_are_not_overwritten_by_a_run_that_does_not_resume(tmp_path: Path) -> None:
    RunFolder(tmp_path / "new").check(resume=False)
    add_checkpoint(tmp_path / "run")
    RunFolder(tmp_path / "run").check(resume=True)
    with pytest.raises(UserError, match="holds a run, up to Epoch01; add --resume auto"):
        RunFolder(tmp_path / "run").check(resume=False)


def test_a_claim_starts_metrics_anew_only_where_nothing_was_saved(tmp_path: Path) -> None:
    for name, resume in (("fresh", None), ("resumed", "auto")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text("{}\n")
        (tmp_path / name / ".Step000001.unfinished").mkdir()
        for path in SHOWN:
            (tmp_path / name / path).parent.mkdir(exist_ok=True)
            (tmp_path / name / path).write_text("from before")
        (tmp_path / name / "SAVE").touch()  # it asked the run before
        if resume:
            add_checkpoint(tmp_path / name)
        folder = RunFolder(tmp_path / name)
        folder.claim(replace(CONFIG, resume=resume))
        assert not (tmp_path / name / "config.yaml").exists()  # the flags may yet be refused
        folder.write_config(CONFIG)
        assert (tmp_path / name / "metrics.jsonl").exists() == (resume is not None)
        left = [path for path in SHOWN if (tmp_path / name / path).exists() and (tmp_path / name / path).stat().st_size]
        assert left == (SHOWN if resume else ["csv/ours.txt"])
        assert not (tmp_path / name / ".Step000001.unfinished").exists()
        assert not (tmp_path / name / "SAVE").exists()
        assert "batch_size: 8" in (tmp_path / name / "config.yaml").read_text()


def test_a_run_that_began_meanwhile_keeps_its_files(tmp_path: Path) -> None:
    """Two are started at once on a fresh folder. Both see that it holds no run; then one of them trains and ends."""
    second = RunFolder(tmp_path)
    second.check(resume=False)
    add_checkpoint(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="holds a run, up to Epoch01; add --resume auto"):
        second.claim(CONFIG)
    assert (tmp_path / "metrics.jsonl").read_text() == "{}\n"


def hold(path: Path, claimed: object, seconds: float) -> None:
    folder = RunFolder(path)
    folder.claim(CONFIG)
    claimed.set()
    time.sleep(seconds)


def test_a_run_waits_for_the_one_before_and_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A run whose launcher was killed still saves while the next one starts.

    Only who goes on from its checkpoint waits: for others it leaves no place.
    """
    going_on = replace(CONFIG, resume="auto")
    context = multiprocessing.get_context("spawn")
    claimed = context.Event()
    other = context.Process(target=hold, args=(tmp_path, claimed, 60))
    other.start()
    try:
        assert claimed.wait(60)
        monkeypatch.setattr(engine.training.run_folder, "GRACE", -9.5)
        with pytest.raises(UserError, match="is in use by another process"):
            RunFolder(tmp_path).claim(going_on)
        assert f"waiting for another run to leave {tmp_path}" in capfd.readouterr().err
        monkeypatch.undo()
        with pytest.raises(UserError, match="is in use by another process"):
            RunFolder(tmp_path).claim(CONFIG)
        assert capfd.readouterr().err == ""
        threading.Timer(0.5, other.kill).start()
        RunFolder(tmp_path).claim(going_on)
        assert f"waiting for another run to leave {tmp_path}" in capfd.readouterr().err
    finally:
        other.kill()
        other.join()


def test_who_leaves_lets_others_in_at_once(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.claim(CONFIG)
    first.leave()
    assert first.lock is not None
    assert first.lock.closed
    started = time.monotonic()
    second.claim(CONFIG)
    assert time.monotonic() - started < 1
    second.leave()


def test_tables_may_be_moved_between_starts() -> None:
    there, here = "/old/own/a.jsonl:0.5,mscoco_train", "/new/b/a.jsonl:0.5,mscoco_train"
    assert as_compared("train", there) == as_compared("train", here)
    for other in ("/new/a.jsonl,mscoco_train", "/new/c.jsonl:0.5,mscoco_train", "mscoco_train,/new/a.jsonl:0.5"):
        assert as_compared("train", there) != as_compared("train", other)
    shards = as_compared("train", "/old/own/*.tar")
    assert shards == as_compared("train", "/new/own/*.tar")
    assert shards != as_compared("train", "/new/other/*.tar")  # another name, which draws follow
