"""SNLI-VE's files: an object in each line, and pairs without an agreed label."""

import json

import pytest

from engine.data.annotations.questions.file import read_questions
from engine.data.annotations.questions.snli_ve import EntailmentFile
from engine.data.images.places import image_path
from engine.errors import UserError

PAIR = {
    "Flickr30K_ID": "4705552913",
    "pairID": "4705552913.jpg#2r1n",
    "gold_label": "neutral",
    "sentence1": "Two people meet.",
    "sentence2": "Two Sisters meet.",
}


def write(folder, *changes):
    path = folder / "snli_ve_dev.jsonl"
    path.write_text("".join(json.dumps({**PAIR, **change}) + "\n" for change in changes))
    return EntailmentFile(path)


def test_a_line_becomes_a_hypothesis_about_its_image(tmp_path):
    file = write(tmp_path, {})
    [question] = read_questions([file])
    assert question.question_id == PAIR["pairID"]
    assert question.label == {"neutral": 1.0}
    assert str(image_path(question.img_id)) == "flickr30k/flickr30k_images/4705552913.jpg"
    [texts] = file.texts()
    assert texts.texts == ["two sisters meet."]  # as the original reads it
    assert texts.labels == [{"neutral": 1.0}]


def test_pairs_without_an_agreed_label_are_left_out_and_counted(tmp_path):
    file = write(tmp_path, {}, {"gold_label": "-"}, {"gold_label": "contradiction", "pairID": "x"}, {"gold_label": "-"})
    for _ in range(2):  # each reading counts anew
        assert [texts.labels for texts in file.texts()] == [[{"neutral": 1.0}], [{"contradiction": 1.0}]]
        assert file.dropped == {"labelled '-'": 2}
    assert file.was(file.digest())


def test_names_are_those_of_the_splits(tmp_path):
    (tmp_path / "snli_ve").mkdir()
    write(tmp_path / "snli_ve", {})
    [part] = EntailmentFile.parts("dev", tmp_path)
    assert part.name == "dev"
    with pytest.raises(
        UserError, match=r"snli_ve_train\.jsonl is missing; .*snli_ve holds dev\..*; files of your own go there, too"
    ):
        EntailmentFile.parts("dev,train", tmp_path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (json.dumps({**PAIR, "gold_label": "entails"}), "line 2: the gold_label 'entails' is none of entailment, neut"),
        (json.dumps({**PAIR, "gold_label": ["neutral"]}), r"line 2: the gold_label \['neutral'\] is none of"),
        (json.dumps({**PAIR, "pairID": 3}), "line 2: the field 'pairID' is int, not str"),
        (json.dumps({**PAIR, "Flickr30K_ID": 3}), "line 2: the field 'Flickr30K_ID' is int, not str"),
        (json.dumps({name: PAIR[name] for name in ("pairID", "gold_label", "Flickr30K_ID")}), "line 2: .*'sentence2'"),
        (json.dumps(PAIR)[:40], "line 2, column .*: not valid JSON"),
        ("[1]", "line 2: an object in each line was expected, found list"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    file = write(tmp_path, {})
    file.path.write_text(file.path.read_text() + line + "\n")
    with pytest.raises(UserError, match=rf"snli_ve_dev\.jsonl, {message}"):
        read_questions([file])
