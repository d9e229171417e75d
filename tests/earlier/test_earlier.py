"""Files that an earlier version wrote still serve: its annotation stores, its checkpoints, its models.

    data/            a drawn data set, with the stores of its annotations in cache/
    run/             a pre-training of it that stopped after 6 of 12 steps, and whole/metrics.jsonl of one that didn't
    vqa/BEST         a model that was fine-tuned on it, and predicted/ what that version answered with it

All of it by commit e5e10b7, on one CPU rank:

    F="--data_root data --bert data/bert --num_workers 0 --batchSize 4 --epochs 1"
    python launch/pretrain.py --recipe demo_stage_one $F --report_step 1 --save_step 6 --task_matched true --output run
    python launch/finetune_vqa.py --recipe demo_vqa $F --load_lxmert_qa '' --load_lxmert run/Step000006 --output vqa
    python launch/predict_vqa.py --load vqa/BEST --test minival --data_root data --top_k 3 --output predicted
"""

import json
import shutil
from pathlib import Path

import pytest

from engine.checkpoint import load_pretrained
from engine.checkpoint.state import Checkpoint
from engine.provenance.history import read_starts
from tests.conftest import launch, read_metrics
from tests.kill.training import read_curve
from tests.parity import TRAJECTORY_LOSS

EARLIER = Path(__file__).parent
# Sigmoids of answer scores, which differ between CPUs by rounding (2e-5 in tests/parity.py); they have 6 decimals.
PROBABILITY = 2e-5 / 4 + 1e-6


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER / "data", tmp_path / "data"))


def test_a_run_goes_on_from_its_checkpoint_with_its_stores(data: Path, tmp_path: Path) -> None:
    """What it saves has digests of the data from then on, so it doesn't go on with a caption that has changed."""
    output = Path(shutil.copytree(EARLIER / "run", tmp_path / "run"))
    stores = {path.name: path.stat().st_mtime_ns for path in (data / "cache").iterdir()}
    before = (output / "metrics.jsonl").read_text()
    flags = ["--recipe", str(output / "config.yaml"), "--data_root", str(data), "--bert", str(data / "bert")]
    flags += ["--output", str(output), "--resume", "auto", "--max_steps", "12"]
    run = launch("launch/pretrain.py", flags, ranks=1, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert f"going on from {output / 'Step000006'}, after step 6" in run.stdout
    assert {path.name: path.stat().st_mtime_ns for path in (data / "cache").iterdir()} == stores
    assert (output / "metrics.jsonl").read_text().startswith(before)
    assert [start["exit"] for start in read_starts(output / "run.json")] == ["finished"]  # there was none

    ours, theirs = read_curve(output), read_curve(EARLIER / "whole")
    assert len(read_metrics(output)) == 12
    assert [record.keys() for record in ours] == [record.keys() for record in theirs]
    for name in ("lr", "sgd_lr", "step", "epoch"):
        assert [record.get(name) for record in ours] == [record.get(name) for record in theirs]
    assert [record["loss"] for record in ours] == pytest.approx(
        [record["loss"] for record in theirs], rel=TRAJECTORY_LOSS
    )

    saved = output / "Epoch01"
    assert ["digests" in Checkpoint(path).content for path in (output / "Step000006", saved)] == [False, True]
    captions = data / "lxmert" / "mscoco_train.json"
    captions.write_text(captions.read_text().replace("a small blue ring at", "a large blue ring at", 1))
    run = launch("launch/pretrain.py", flags, ranks=1, launcher="warm")
    assert run.code == 2
    assert run.errors == [
        f"pretrain.py: error: {saved} is of a run on other data, which differ in the annotations' texts; restore them, "
        f"or start another run with --load {saved} and a new --output"
    ]


def test_a_model_gives_the_same_answers(data: Path, tmp_path: Path) -> None:
    best = EARLIER / "vqa" / "BEST"
    assert load_pretrained(best).training is False
    where = ["--load", str(best), "--data_root", str(data), "--num_workers", "0", "--output", str(tmp_path)]
    run = launch("launch/predict_vqa.py", [*where, "--test", "minival", "--top_k", "3"], ranks=1, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    names = ("minival_predict.json", "minival_score.json", "minival_top_k.json")
    ours, theirs = (
        [json.loads((place / name).read_text()) for name in names] for place in (tmp_path, EARLIER / "predicted")
    )
    assert ours[:2] == theirs[:2]
    assert len(theirs[2]) == 8
    for one, other in zip(ours[2], theirs[2], strict=True):
        assert [a["answer"] for a in one["answers"]] == [a["answer"] for a in other["answers"]]
        probabilities = [a["probability"] for a in other["answers"]]
        assert [a["probability"] for a in one["answers"]] == pytest.approx(probabilities, abs=PROBABILITY)
