"""GQA on two small images: what is trained on, the losses by NumPy and by the original's formulas, and the files."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from engine.configuration.parsing import parse
from engine.data.annotations.questions.file import Question
from engine.data.trained_on import TrainedOn
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.model.question_answering import ClipVilForQuestionAnswering
from engine.tasks.gqa import Gqa, GqaConfig
from engine.training.program import RECIPES
from tests.engine.model.test_question_answering import inputs
from tests.engine.tasks.test_pretraining import tokenizer

# A mean of up to 15 fp32 terms, none below 0: 15 additions round by 2^-24 of the sum each, a term by 5 times that.
ROUNDINGS = 20 * 2**-24
ANSWERS = ["yes", "no", "red", "left", "cup"]


def item(question_id, img_id, answer, sent="word1 word2"):
    return {"question_id": question_id, "img_id": img_id, "sent": sent, "label": {answer: 1.0}}


@pytest.fixture
def model(answering_model):
    return answering_model


@pytest.fixture
def data_root(tmp_path):
    images = tmp_path / "gqa_raw_images" / "images"
    images.mkdir(parents=True)
    for name in ("2370799", "2370800", "n161313"):
        Image.new("RGB", (96, 64), (9, 90, 200)).save(images / f"{name}.jpg")
    write(
        tmp_path,
        "train",
        [item("007", "2370799", "yes"), item("008", "2370799", "a zebra"), item("9", "2370800", "no")],
    )
    write(tmp_path, "valid", [item("10", "2370800", "red")])
    write(tmp_path, "testdev", [item("11", "n161313", "red"), item("12", "n161313", "a zebra")])
    write(tmp_path, "trainval_label2ans", ANSWERS)
    return tmp_path


def write(data_root, name, content):
    (data_root / "gqa").mkdir(exist_ok=True)
    (data_root / "gqa" / f"{name}.json").write_text(json.dumps(content))


def make(data_root, *flags):
    config, _ = parse(GqaConfig, ["--data_root", str(data_root), *flags], RECIPES)
    config.check(1)
    return Gqa(config, tokenizer(), ALONE)


def test_an_answer_that_the_table_lacks_is_left_out_of_training_and_counts_in_a_score(data_root, capsys):
    task = make(data_root)
    task.read()
    assert len(task.training) == 3
    assert [question.question_id for question in task.judged.questions] == ["11", "12"]
    told = "1 question whose answers are not in the table (such as 'a zebra') left out\n"
    assert f"train,valid: 3 sentences, 2 images, {told}" in capsys.readouterr().out
    score = task.judged.score({"11": "red", "12": "red"})
    assert score["score"] == 0.5
    assert "50.00" in task.judged.table(score)


def test_images_that_pre_training_has_seen_are_told_and_not_refused(data_root, capsys):
    """Visual Genome's have their numbers in GQA, too."""
    task = make(data_root, "--train", "train", "--valid", "valid")
    task.read()
    seen_images = SimpleNamespace(image_ids=["2370800", "17"], images=np.array([0, 1]), columns={})
    pretrained = TrainedOn.of(SimpleNamespace(sentences=seen_images))
    capsys.readouterr()
    task.check_start(pretrained)
    assert "note: 1 of 1 images of valid were trained on, with other texts" in capsys.readouterr().out
    task.check_start(TrainedOn.of(task.training.split))
    assert "note: 1 of 1 images" in capsys.readouterr().out
    again = make(data_root, "--train", "valid", "--valid", "valid")
    again.read()
    with pytest.raises(UserError, match="1 of 1 questions and 1 of 1 images of valid were trained on"):
        again.check_start(TrainedOn.of(again.training.split))
    again.config.allow_trained_on = True
    again.check_start(TrainedOn.of(again.training.split))


def answering(flags, model):
    """The task's loss set up in a model."""
    task = Gqa.__new__(Gqa)
    task.config, task.table = parse(GqaConfig, flags, RECIPES)[0], ANSWERS
    task.set_up(model)
    return model


LABELS = [2, 0, 4]
TARGET = np.eye(5, dtype=np.float32)[LABELS].tolist()


@pytest.mark.parametrize(
    ("flags", "scale"), [((), 5), (("--loss_scale", "500"), 500), (("--loss_scale", "1"), 5)], ids=["", "500", "1"]
)
def test_the_loss_is_the_mean_binary_cross_entropy_times_a_factor(flags, scale, model: ClipVilForQuestionAnswering):
    """By NumPy, and by the original's BCEWithLogitsLoss."""
    output = answering(flags, model)(**inputs(TARGET))
    scores, target = output.answer_scores.detach().double().numpy(), np.array(TARGET)
    by_hand = np.mean(np.log1p(np.exp(scores)) - target * scores) * scale
    originals = nn.BCEWithLogitsLoss()(output.answer_scores, torch.tensor(TARGET)) * scale
    assert output.loss.item() == pytest.approx(by_hand, rel=ROUNDINGS)
    assert output.loss.item() == pytest.approx(originals.item(), rel=ROUNDINGS)


def test_the_best_answer_alone_may_count(model: ClipVilForQuestionAnswering):
    output = answering(["--mceLoss"], model)(**inputs(TARGET))
    scores = output.answer_scores.detach().double().numpy()
    by_hand = np.mean(np.log(np.exp(scores).sum(1)) - scores[range(3), LABELS]) * 5
    originals = nn.CrossEntropyLoss(ignore_index=-1)(output.answer_scores, torch.tensor(TARGET).max(1)[1]) * 5
    assert output.loss.item() == pytest.approx(by_hand, rel=ROUNDINGS)
    assert output.loss.item() == pytest.approx(originals.item(), rel=ROUNDINGS)


def test_the_head_is_two_layers_on_the_pooled_vector(model: ClipVilForQuestionAnswering):
    """Linear, GELU, layer norm, linear, in fp64; fp32 sums of 32 and of 64 products between them."""
    pooled = []
    model.answer_head.register_forward_pre_hook(lambda module, arguments: pooled.append(arguments[0]))
    scores = model.eval()(**inputs(TARGET)).answer_scores.detach().numpy()
    first, _, norm, second = (
        {name: tensor.detach().double().numpy() for name, tensor in layer.named_parameters()}
        for layer in model.answer_head.logit_fc
    )
    hidden = pooled[0].detach().double().numpy() @ first["weight"].T + first["bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / np.sqrt(2)))
    hidden = (hidden - hidden.mean(1, keepdims=True)) / np.sqrt(hidden.var(1, keepdims=True) + 1e-12)
    expected = (hidden * norm["weight"] + norm["bias"]) @ second["weight"].T + second["bias"]
    size = np.abs(hidden).max() * np.abs(second["weight"]).sum(1).max()
    assert np.abs(scores - expected).max() < (32 + 64) * 2**-24 * size


def test_the_score_is_the_originals_mean_of_label_scores():
    labels = {"1": {"red": 1.0}, "2": {"no": 1.0}, "3": {"yes": 1.0}}
    asked = [Question(number, "a", "", label) for number, label in labels.items()]
    chosen = {"1": "red", "2": "yes", "3": "yes"}
    original = sum(labels[number].get(answer, 0) for number, answer in chosen.items()) / len(chosen)
    scorer = Gqa.scorer(GqaConfig(), asked, [])
    assert scorer.score(chosen)["score"] == pytest.approx(original) == pytest.approx(2 / 3)


def test_a_row_of_the_leaderboards_file_is_what_gqas_evaluation_reads():
    assert Gqa.result("05515938", "red") == {"questionId": "05515938", "prediction": "red"}
