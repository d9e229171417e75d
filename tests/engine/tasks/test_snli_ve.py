"""Visual entailment on two small images: loss and scores by NumPy and by the original's formulas, and label orders."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine.checkpoint.formats.original import OriginalState, read_original, write_original
from engine.checkpoint.state import load_weights
from engine.configuration.parsing import parse
from engine.data.annotations.questions.file import Question
from engine.data.annotations.questions.snli_ve import LABELS
from engine.data.trained_on import TrainedOn
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.model.question_answering import ClipVilForQuestionAnswering
from engine.tasks.snli_ve import EntailmentConfig, VisualEntailment
from engine.training.program import RECIPES
from tests.engine.model.test_question_answering import inputs
from tests.engine.tasks.test_gqa import ROUNDINGS
from tests.engine.tasks.test_pretraining import tokenizer


@pytest.fixture
def data_root(tmp_path):
    images = tmp_path / "flickr30k" / "flickr30k_images"
    images.mkdir(parents=True)
    for name in ("1", "2"):
        Image.new("RGB", (96, 64), (9, 90, 200)).save(images / f"{name}.jpg")
    write(tmp_path, "train", [("1", "entailment"), ("1", "neutral"), ("1", "-")])
    write(tmp_path, "dev", [("2", "contradiction"), ("2", "entailment")])
    return tmp_path


def write(data_root, name, pairs):
    lines = [
        {"Flickr30K_ID": image, "pairID": f"{image}#{number}", "gold_label": label, "sentence2": "Word1 word2"}
        for number, (image, label) in enumerate(pairs)
    ]
    (data_root / "snli_ve").mkdir(exist_ok=True)
    path = data_root / "snli_ve" / f"snli_ve_{name}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def make(data_root, *flags):
    config, _ = parse(EntailmentConfig, ["--data_root", str(data_root), *flags], RECIPES)
    config.check(1)
    return VisualEntailment(config, tokenizer(), ALONE)


@pytest.fixture
def model(answering_model) -> ClipVilForQuestionAnswering:
    """With the task's loss, and a row for each label."""
    head = answering_model.answer_head.logit_fc
    head[3] = nn.Linear(head[3].in_features, len(LABELS))
    VisualEntailment.set_up(VisualEntailment.__new__(VisualEntailment), answering_model)
    return answering_model


def test_hypotheses_become_examples(data_root, capsys):
    task = make(data_root)
    task.read()
    assert task.answers == list(LABELS)
    assert "train: 2 sentences, 1 image; rows or texts left out: 1 labelled '-'" in capsys.readouterr().out
    examples = task.training.__getitems__([SimpleNamespace(index=n, position=n, epoch=0) for n in range(2)])
    assert [example["target"].tolist() for example in examples] == [[1, 0, 0], [0, 1, 0]]
    assert examples[0]["input_ids"][:4] == [2, 6, 7, 3]  # in lower case
    seen = replace(TrainedOn.of(task.validation.split), questions=np.empty(0, np.int64))
    with pytest.raises(UserError, match="0 of 2 questions and 1 of 1 images of dev were trained on"):
        task.check_start(seen)


def test_the_loss_is_the_cross_entropy_of_the_labels_that_count(model):
    """By NumPy, and by the original's CrossEntropyLoss(ignore_index=-1)."""
    labels = [2, -1, 0]
    target = np.eye(3, dtype=np.float32)[labels]
    is_labelled = torch.tensor([label >= 0 for label in labels])
    output = model(**inputs(target.tolist(), is_labelled))
    scores = output.answer_scores.detach().double().numpy()
    by_hand = np.mean([np.log(np.exp(scores[n]).sum()) - scores[n, labels[n]] for n in (0, 2)])
    originals = nn.CrossEntropyLoss(ignore_index=-1)(output.answer_scores, torch.tensor(labels))
    assert output.loss.item() == pytest.approx(by_hand, rel=ROUNDINGS)
    assert output.loss.item() == pytest.approx(originals.item(), rel=ROUNDINGS)
    right = sum(scores[n].argmax() == labels[n] for n in (0, 2))
    assert [total.item() for total in output.metrics.by_name()["qa_score"]] == [right, 2]


def test_scores_are_accuracies_and_a_confusion_matrix():
    generator = np.random.default_rng(0)
    gold, chosen = generator.integers(0, 3, 50), generator.integers(0, 3, 50)
    asked = [Question(str(n), "a", "", {LABELS[g]: 1.0}, answer_type=LABELS[g]) for n, g in enumerate(gold)]
    scorer = VisualEntailment.scorer(None, asked, [])
    score = scorer.score({str(n): LABELS[c] for n, c in enumerate(chosen)})
    assert score["score"] == pytest.approx((gold == chosen).mean())  # the original's: right ones through all
    assert score["questions"] == 50
    for g, label in enumerate(LABELS):
        assert score["label"][label]["score"] == pytest.approx((chosen[gold == g] == g).mean())
        assert list(score["confusion"][label].values()) == np.bincount(chosen[gold == g], minlength=3).tolist()
    rows = [line.split() for line in scorer.table(score).splitlines()]
    assert rows[0] == ["pairs", "accuracy", *LABELS]
    assert rows[1] == ["all", "50", f"{100 * score['score']:.2f}"]
    assert rows[2][0] == "entailment"
    assert rows[2][3:] == [str(n) for n in score["confusion"]["entailment"].values()]


def test_a_row_of_the_predictions():
    assert VisualEntailment.result("1.jpg#2r1n", "neutral") == {"pairID": "1.jpg#2r1n", "prediction": "neutral"}


# --- the original's labels, whose order its file doesn't tell


@pytest.fixture
def original(model, tmp_path: Path) -> OriginalState:
    write_original(tmp_path / "BEST.pth", model.state_dict(), architecture="question_answering")
    return read_original(tmp_path / "BEST.pth")


def test_a_head_of_the_originals_needs_its_label_order(data_root, original, model):
    with pytest.raises(UserError, match=r"BEST\.pth doesn't say which labels its 3 rows are for; .*--label_order"):
        make(data_root, "--load", "BEST.pth").check_answers(original)
    task = make(data_root, "--load", "BEST.pth", "--label_order", "contradiction,entailment,neutral")
    task.check_answers(original)
    ours = deepcopy(model)
    load_weights(ours, original, task.answers)
    rows = [model.answer_head.logit_fc[3].weight[place] for place in (1, 2, 0)]  # where its file has our labels
    assert torch.equal(ours.answer_head.logit_fc[3].weight, torch.stack(rows))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--label_order", "yes,no,maybe"),
            "yes,no,maybe: entailment, neutral, contradiction are needed",
        ),
        (("--label_order", "neutral,neutral,entailment"), "each once"),
        (("--label_order", ",".join(LABELS)), "add --load, or leave it out"),
        (("--load_lxmert_qa", "x"), "--load_lxmert_qa takes rows for answers.*use --load_lxmert x"),
    ],
)
def test_bad_flags(data_root, flags, message):
    with pytest.raises(UserError, match=message):
        make(data_root, *flags)


def test_a_head_for_other_answers_and_an_order_without_need_are_refused(data_root, original):
    original.state["answer_head.logit_fc.3.bias"] = torch.zeros(15)
    with pytest.raises(UserError, match="a head of 15 rows, and visual entailment has 3 labels"):
        make(data_root, "--load", "BEST.pth").check_answers(original)
    ours = SimpleNamespace(source="snap/BEST", answers=list(LABELS))
    make(data_root, "--load", "snap/BEST").check_answers(ours)
    task = make(data_root, "--load", "snap/BEST", "--label_order", ",".join(LABELS))
    with pytest.raises(UserError, match="--label_order is for --load of the original's model"):
        task.check_answers(ours)
    flags = ("--load", "BEST.pth", "--label_order", ",".join(LABELS), "--resume", "auto")
    make(data_root, *flags).check_answers(ours)  # as it is said again when the run goes on from its own checkpoint
