"""Questions as examples, and what a model was trained on, on two small images."""

import hashlib
import json
import os
import shutil
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from engine.data.annotations.answers import ExactAnswers
from engine.data.annotations.questions.file import Question
from engine.data.annotations.questions.vqa import VqaFile
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import ImageShape
from engine.data.images.places import image_path
from engine.data.loading import evaluation_loader
from engine.data.sampler import Sample
from engine.data.splits import open_images, read_split
from engine.data.trained_on import TrainedOn
from engine.errors import UserError
from engine.tasks.answering.dataset import QuestionDataset, QuestionOptions
from engine.tasks.answering.prediction import write_results
from engine.tasks.answering.scoring import Predictions, Scorer
from engine.tasks.vqa import Vqa
from tests.engine.tasks.test_pretraining import tokenizer

ANSWERS = ["yes", "no", "The red"]
QUESTIONS = [
    {"question_id": 70, "img_id": "one", "sent": "word1 word2", "label": {"yes": 1, "The red": 0.3}},
    {"question_id": 50, "img_id": "two", "sent": "word3", "label": {"the red": 1}},  # not as the list writes it
    {"question_id": 60, "img_id": "one", "sent": "word4", "label": {}},
    {"question_id": 80, "img_id": "two", "sent": " ".join(f"word{n}" for n in range(9)), "label": {"no": 0.9}},
]


@pytest.fixture
def data_root(tmp_path):
    for img_id, size in {"one": (20, 12), "two": (12, 20)}.items():
        path = tmp_path / image_path(img_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (9, 90, 200)).save(path)
    (tmp_path / "vqa").mkdir()
    write(tmp_path, "train", QUESTIONS)
    write(tmp_path, "trainval_label2ans", ANSWERS)
    return tmp_path


def write(data_root, name, content):
    (data_root / "vqa" / f"{name}.json").write_text(json.dumps(content))


def read(data_root, names="train", **options):
    parts = VqaFile.parts(names, data_root)
    table = ExactAnswers.of_task(data_root / "vqa")
    source = AnnotationSource(parts, TextEncoder(tokenizer()), table)
    images = open_images(data_root, None, ImageShape(12, 20), "pillow")
    return read_split(source, images, data_root / "cache", **options)


def make(data_root, **options):
    images = open_images(data_root, None, ImageShape(12, 20), "pillow")
    options = QuestionOptions(8, 12, 20, 0, num_answers=len(ANSWERS))
    return QuestionDataset(read(data_root), images, TextEncoder(tokenizer()).vocabulary, options)


def test_targets_are_the_scores_of_exactly_these_answers(data_root):
    examples = make(data_root).__getitems__([Sample(n, n, 0) for n in range(4)])
    targets = np.array([example["target"] for example in examples])
    assert targets.dtype == np.float32
    assert np.allclose(targets, [[1, 0, 0.3], [0, 0, 0], [0, 0, 0], [0, 0.9, 0]])
    assert [example["is_labelled"] for example in examples] == [True] * 4  # an empty label counts, as in the original
    assert examples[0]["input_ids"] == [2, 6, 7, 3, 0, 0, 0, 0]
    assert len(examples[3]["input_ids"]) == 8
    assert examples[3]["attention_mask"] == [1] * 8


def test_every_question_comes_once_in_batches_that_the_model_takes(data_root):
    batches = list(evaluation_loader(make(data_root), 3, num_workers=0, rank=0, world_size=1))
    assert sorted(number for batch in batches for number in batch.numbers) == [0, 1, 2, 3]
    inputs = batches[0].inputs
    assert inputs["target"].dtype == torch.float32
    assert inputs["is_labelled"].dtype == torch.bool
    assert inputs["input_ids"].dtype == torch.int64
    assert inputs["images"].shape[1:] == (3, 20, 12) or inputs["images"].shape[1:] == (3, 12, 20)


def test_an_unreadable_image_is_black_and_does_not_count(data_root):
    (data_root / image_path("one")).write_bytes(b"no image")
    example = make(data_root)[Sample(0, 0, 0)]
    assert not example["is_labelled"]
    assert not example["image"].any()
    assert "one.jpg" in example["unreadable"]


def test_torch_says_nothing_of_workers(data_root, recwarn):
    dataset = make(data_root)
    evaluation_loader(dataset, 1, num_workers=1 + len(os.sched_getaffinity(0)), rank=0, world_size=1)
    assert [str(warning.message) for warning in recwarn if "worker" in str(warning.message)] == []


def test_a_selection_keeps_its_question_ids(data_root):
    (data_root / image_path("two")).unlink()
    split = read(data_root, allow_missing_images=True)
    assert split.sentences.question_ids.tolist() == [70, 60]
    assert len(split.sentences) == 2
    with pytest.raises(UserError, match=r"1 of 2 images of train are not in .*, the first is two"):
        read(data_root)


def test_another_kind_of_file_or_answers_has_another_store(data_root):
    read(data_root)
    write(data_root, "trainval_label2ans", ["no", "yes", "The red"])
    read(data_root)
    assert len(list((data_root / "cache").glob("*.store"))) == 2


def test_labels_of_other_data_are_refused(data_root):
    write(data_root, "trainval_label2ans", ["maybe"])
    with pytest.raises(UserError, match=r"has an answer in .*trainval_label2ans.json \(the first answer is 'yes'\)"):
        read(data_root)


def test_a_split_name_typed_wrong_lists_those_that_are_there(data_root):
    with pytest.raises(
        UserError, match=r"tarin\.json is missing; .*vqa holds train, trainval_.*; did you mean train\? "
    ):
        read(data_root, "train,tarin")


def test_a_data_root_or_a_folder_of_a_task_that_is_not_there_is_told_as_such(data_root, tmp_path):
    for root in (tmp_path / "mien", tmp_path):
        absent = root if root != tmp_path else tmp_path / "vqa"
        shutil.rmtree(absent, ignore_errors=True)
        with pytest.raises(UserError, match=rf"^there is no folder {absent}; name with --data_root the folder"):
            VqaFile.answers(root)
        with pytest.raises(UserError, match=rf"vqa/trian\.json is missing; there is no folder {absent}\. See"):
            VqaFile.parts("trian", root)


def test_a_target_counts_in_shared_memory():
    more = QuestionOptions(num_answers=3129).sample_bytes() - QuestionOptions().sample_bytes()
    assert more == 4 * 3129


def test_predictions_have_the_ids_as_they_came(tmp_path):
    questions = [Question(question_id, "one", "word1") for question_id in ("b", 7, "12", 12)]
    predictions = Predictions(np.array([[0], [1], [0], [1]]), np.ones((4, 1)))
    results = {"predict": tmp_path / "predict.json", "score": tmp_path / "score.json"}
    write_results(Vqa, results, Scorer(questions), predictions, ["no", "yes"], top_k=False)
    written = json.loads(results["predict"].read_text())
    assert [(item["question_id"], item["answer"]) for item in written] == [
        *((7, "yes"), (12, "yes"), ("12", "no"), ("b", "no")),
    ]


# --- what was trained on


def test_questions_and_images_that_were_trained_on_are_refused(data_root):
    seen = TrainedOn.of(read(data_root))
    write(data_root, "val", [{**QUESTIONS[0], "question_id": 70}, {**QUESTIONS[1], "question_id": 71}])
    message = "1 of 2 questions and 2 of 2 images of val were trained on.*--allow_trained_on"
    with pytest.raises(UserError, match=message):
        seen.check_unseen(read(data_root, "val"))


def test_other_questions_on_other_images_are_fine(data_root):
    write(data_root, "one", QUESTIONS[:1])
    write(data_root, "other", QUESTIONS[3:])
    seen = TrainedOn.of(read(data_root, "one"))
    seen.check_unseen(read(data_root, "other"))
    again = TrainedOn.from_tensors(seen.to_tensors())
    again.check_unseen(read(data_root, "other"))
    both = again | TrainedOn.of(read(data_root, "other"))
    assert len(both.questions) == 2 * 2
    with pytest.raises(UserError, match="1 of 1 questions and 1 of 1 images of other"):
        both.check_unseen(read(data_root, "other"))
    assert (again | None) is again
    assert TrainedOn.from_tensors(None) is None


@pytest.mark.parametrize(
    ("change", "count"),
    [
        ({"img_id": "two", "sent": "word9"}, 0),
        ({"img_id": "two"}, 1),
        ({"sent": "word9"}, 1),
        ({"question_id": 71}, 0),
        ({"label": {"no": 1}}, 1),
        ({"sent": "word9", "img_id": "one.JPG"}, 1),
    ],
    ids=[
        "the id alone",
        "with its text",
        "with its image",
        "another id",
        "another answer",
        "its image spelt otherwise",
    ],
)
def test_an_id_counts_together_with_its_text_or_its_image(data_root, change, count):
    write(data_root, "one", QUESTIONS[:1])
    write(data_root, "own", [{**QUESTIONS[0], **change}])
    seen, own = TrainedOn.of(read(data_root, "one")), read(data_root, "own")
    with pytest.raises(UserError, match=f"^{count} of 1 questions and") if count else nullcontext():
        told = seen.check_unseen(own, images_too=False)
        assert told == (
            "1 of 1 images of own were trained on, with other texts; a score on unseen images may be lower"
            if change.get("img_id") != "two"
            else ""
        )


def test_an_image_is_known_with_and_without_its_suffix_and_as_earlier_versions_spelt_it(data_root):
    (data_root / "images" / "trip").mkdir(parents=True)
    Image.new("RGB", (20, 12)).save(data_root / "images" / "trip" / "four.png")
    for name, img_id in (("one", "trip/four.png"), ("own", "trip/four")):
        write(data_root, name, [{**QUESTIONS[0], "question_id": len(img_id), "img_id": img_id}])
    seen = TrainedOn.of(read(data_root, "one"))
    assert seen.check_unseen(read(data_root, "own"), images_too=False).startswith(
        "1 of 1 images of own were trained on"
    )
    digest = hashlib.blake2b(b"trip/four.png", digest_size=8).digest()
    earlier = TrainedOn.from_tensors({"images": torch.from_numpy(np.frombuffer(digest, np.int64).copy())})
    assert earlier.check_unseen(read(data_root, "one"), images_too=False).startswith(
        "1 of 1 images of one were trained"
    )


def test_without_a_score_nothing_is_refused(data_root):
    seen = TrainedOn.of(read(data_root))
    write(data_root, "test", [{**QUESTIONS[0], "question_id": number} for number in (70, 71)])
    told = seen.check_unseen(read(data_root, "test"), scored=False)
    assert told == "1 of 2 questions and 1 of 1 images of test were trained on"
    write(data_root, "test", [{**QUESTIONS[0], "question_id": 71}])
    told = seen.check_unseen(read(data_root, "test"), scored=False)
    assert told == "1 of 1 images of test were trained on, with other texts"


def test_an_earlier_version_s_ids_count_alone(data_root):
    """It kept nothing else; a training that begins with its checkpoint keeps both."""
    before = {"question_ids": torch.tensor([50, 60]), "images": torch.tensor([], dtype=torch.int64)}
    write(data_root, "one", QUESTIONS[:1])
    seen = TrainedOn.of(read(data_root, "one")) | TrainedOn.from_tensors(before)
    write(data_root, "own", [{**QUESTIONS[3], "question_id": number, "sent": "word9"} for number in (50, 70)])
    with pytest.raises(UserError, match=r"^1 of 2 questions and 0 of 1 images of own were trained on, so a score"):
        TrainedOn.from_tensors(seen.to_tensors()).check_unseen(read(data_root, "own"))
