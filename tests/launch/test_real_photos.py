"""Full-size RN50 on real photos, from random weights, and VQA's questions about them.

Needs a folder in the original's layout, which the repository doesn't hold; a handful of photos with captions and
questions is enough:

    CLIPVIL_REAL_DATA=/path/to/data python -m pytest tests/launch/test_real_photos.py
"""

import json
import math
import os
from pathlib import Path

import pytest
from tokenizers import BertWordPieceTokenizer

from engine.synthetic.demo import BERT_CONFIG
from tests.conftest import launch, read_metrics

DATA = os.environ.get("CLIPVIL_REAL_DATA")


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    """A small BERT whose vocabulary is made of the captions and questions."""
    items = json.loads(Path(str(DATA), "lxmert", "mscoco_train.json").read_text())
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator(text for item in items for texts in item["sentf"].values() for text in texts)
    tokenizer.save_model(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({**BERT_CONFIG, "vocab_size": tokenizer.get_vocab_size()}))
    return tmp_path


@pytest.mark.skipif(DATA is None, reason="CLIPVIL_REAL_DATA names no folder of real photos")
def test_rn50_from_scratch_learns_on_two_ranks(bert: Path, tmp_path: Path) -> None:
    """384 x 640 pixels and 100 of 240 cells, as in the real recipe, for 24 steps of 4 samples; the last third of them
    against the first."""
    flags = ["--recipe", "rn50_stage_one", "--taskQA", "--fp16", "false", "--fromScratch", "--bert", str(bert)]
    flags += ["--data_root", str(DATA), "--train", "mscoco_train,mscoco_nominival", "--output", str(tmp_path / "run")]
    flags += ["--cache_dir", str(tmp_path / "cache")]
    flags += ["--batchSize", "2", "--gradient_accumulation_steps", "1", "--lr", "1e-3", "--sgd_lr", "0.01"]
    flags += ["--warmup_ratio", "0", "--num_workers", "1", "--report_step", "8", "--max_steps", "24"]
    run = launch("launch/pretrain.py", flags, timeout=600)
    assert run.code == 0, run.stderr[-3000:]
    records = read_metrics(tmp_path / "run")
    assert records[-1]["step"] == 24
    for task in ("mask_lm_loss", "matched_loss", "qa_loss"):
        assert all(math.isfinite(record[task]) for record in records)
    assert records[-1]["loss"] < records[0]["loss"]


@pytest.mark.skipif(DATA is None, reason="CLIPVIL_REAL_DATA names no folder of real photos")
def test_fine_tuning_overfits_the_questions_of_the_photos(bert: Path, tmp_path: Path) -> None:
    """All questions, trained on and scored: a model that sees them all and learns has each right.

    A small backbone on small images, so that it takes a minute; the way from files to score is that of the real recipe.
    """
    files = ["--train", "train,nominival,minival", "--valid", "", "--data_root", str(DATA), "--bert", str(bert)]
    files += ["--cache_dir", str(tmp_path / "cache")]
    flags = [*files, "--recipe", "demo_vqa", "--load_lxmert_qa", "", "--fromScratch", "--output", str(tmp_path / "run")]
    flags += ["--image_size_min", "96", "--image_size_max", "160", "--pos_num", "5", "--max_seq_length", "20"]
    flags += ["--batch_size", "4", "--epochs", "80", "--schedule", "80", "--num_workers", "1", "--report_step", "100"]
    run = launch("launch/finetune_vqa.py", flags, launcher="torchrun", timeout=600)
    assert run.code == 0, run.stderr[-3000:]
    where = ["--load", str(tmp_path / "run" / "LAST"), "--data_root", str(DATA), "--num_workers", "1"]
    where += ["--cache_dir", str(tmp_path / "cache")]
    scored = ["--test", "train,nominival,minival", "--allow_trained_on"]
    run = launch("launch/predict_vqa.py", [*where, *scored], launcher="python")
    assert run.code == 0, run.stderr[-3000:]
    score = json.loads((tmp_path / "run" / "train,nominival,minival_score.json").read_text())
    assert (score["score"], score["questions"]) == (1.0, 23)
