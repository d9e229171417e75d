"""predict.py --features: the numbers of engine.load_pretrained, in a file, of a task's questions and of one's own
pairs."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors import safe_open

import engine
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.data.images.places import image_path
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.inference.feature_file import FeatureFile
from engine.inference.features import NAMES, Column
from engine.tasks.answering import prediction
from engine.tasks.answering.features import publish
from engine.tasks.answering.flags import PredictConfig
from engine.tasks.named import TASKS, picked_task
from tests.conftest import launch
from tests.engine.inference.test_pretrained import write_model

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    """What a prediction sets up in this process for its ranks is gone again, also where an error ends it."""
    with patch.dict(os.environ):
        yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def stage_one(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of pre-training without answers, which no task can ask."""
    model = engine.load_pretrained(write_model(scenes, tmp_path_factory.mktemp("features") / "all"), device="cpu")
    state = {name: tensor for name, tensor in model.network.state_dict().items() if not name.startswith("answer_head")}
    model.description.__dict__["answers"] = None
    folder = tmp_path_factory.mktemp("features") / "stage_one"
    save_pretrained(folder, state, {}, model.description, "a test")
    return folder


def write_features(task: str = "vqa", **values: Any) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """The file's tensors, and its rows."""
    config = PredictConfig(**{"num_workers": 0, **values})
    config.check()
    prediction.run(TASKS[task], config, ALONE)
    assert config.features is not None
    with safe_open(config.features, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, json.loads(Path(config.features.replace(".safetensors", ".rows.json")).read_text())


@pytest.mark.parametrize("batch_size", [1, 64])
@pytest.mark.parametrize("sub_sampling", [True, False])
def test_features_of_a_split_are_those_of_a_script(
    stage_one: Path, scenes: Path, tmp_path: Path, batch_size: int, sub_sampling: bool
) -> None:
    """Bit for bit where the batches are the same: one pair each, or all landscapes and all portraits."""
    options = {"seed": 3, "sub_sampling_in_evaluation": sub_sampling, "batch_size": batch_size}
    place = {"load": str(stage_one), "data_root": str(scenes), "features": str(tmp_path / "f.safetensors")}
    tensors, rows = write_features(test="minival", **place, **options)
    asked = json.loads((scenes / "vqa" / "minival.json").read_text())
    assert rows == [{"question_id": q["question_id"], "image": q["img_id"], "sentence": q["sent"]} for q in asked]
    model = engine.load_pretrained(stage_one, device="cpu", seed=3, sub_sampling=sub_sampling)
    images = [scenes / image_path(row["image"]) for row in rows]
    features = model.features(images, [row["sentence"] for row in rows], batch_size=batch_size)
    assert tensors.keys() == set(NAMES)
    for name, tensor in features.tensors().items():
        assert torch.equal(tensors[name], tensor), name
    assert len({tuple(shape) for shape in tensors["grid_shape"].tolist()}) == 2


def test_two_ranks_write_what_one_writes(stage_one: Path, scenes: Path, tmp_path: Path) -> None:
    place = {"load": str(stage_one), "data_root": str(scenes), "test": "minival", "batch_size": 1}
    write_features(**place, features=str(tmp_path / "one.safetensors"))
    flags = ["--task", "vqa", "--features", str(tmp_path / "two.safetensors"), "--num_workers", "0"]
    flags += [word for name, value in place.items() for word in (f"--{name}", str(value))]
    run = launch("launch/predict.py", flags, ranks=2, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert (tmp_path / "one.safetensors").read_bytes() == (tmp_path / "two.safetensors").read_bytes()
    assert f"wrote {tmp_path}/two.safetensors, 30 rows, and {tmp_path}/two.rows.json" in run.stdout
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.fixture
def table(scenes: Path, tmp_path: Path) -> Path:
    """Photos of one's own, two of which come twice and one of which lies on its side, and a column for splits."""
    photos = sorted((scenes / "mscoco" / "val2014").glob("*.jpg"))[:3]
    folder = tmp_path / "own"
    folder.mkdir()
    for number, path in enumerate(photos):
        shutil.copy(path, folder / f"{number}.jpg")
    with Image.open(photos[0]) as image:
        image.transpose(Image.Transpose.ROTATE_90).save(folder / "0.jpg")
    rows = [
        {"image": "0.jpg", "caption": "a red ring", "split": "train"},
        {"image": "1.jpg", "caption": ["a blue cross", ""], "split": "test"},
        {"image": "0.jpg", "caption": "two rings", "split": "val"},
        {"image": "2.jpg", "question": "what is it ?", "answer": "ring", "split": "val"},
        {"image": "1.jpg", "caption": "a ring", "split": "val"},
    ]
    path = folder / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_pairs_of_ones_own_come_in_the_order_of_the_table(stage_one: Path, table: Path, tmp_path: Path) -> None:
    """All rows, whatever a column for splits says, with a model that can't answer."""
    place = {"load": str(stage_one), "pairs": str(table), "data_root": str(tmp_path), "batch_size": 1}
    file = str(table.with_suffix(".safetensors"))  # beside the table, which stays as it is
    before = table.read_text()
    tensors, rows = write_features(**place, features=file, feature_parts="pooled,grid")
    assert rows == [
        {"image": "own/0.jpg", "sentence": "a red ring"},
        {"image": "own/1.jpg", "sentence": "a blue cross"},
        {"image": "own/0.jpg", "sentence": "two rings"},
        {"image": "own/2.jpg", "sentence": "what is it ?"},
        {"image": "own/1.jpg", "sentence": "a ring"},
    ]
    assert set(NAMES) - tensors.keys() == {"language", "vision"}
    images = [table.parent.parent / row["image"] for row in rows]
    model = engine.load_pretrained(stage_one, device="cpu")
    features = model.features(images, [row["sentence"] for row in rows], batch_size=1)
    assert torch.equal(tensors["pooled"], features.pooled)
    assert torch.equal(tensors["grid"], features.grid)
    assert table.read_text() == before


def test_pairs_need_no_task() -> None:
    flags = ["--load", "x", "--pairs=own.jsonl"]
    assert picked_task(flags, "", of_no_task="--pairs") == (TASKS["vqa"], flags)
    with pytest.raises(UserError, match="which task"):
        picked_task(["--load", "x"], "", of_no_task="--pairs")


def test_one_question_has_features_too(
    stage_one: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, question = str(table.parent / "0.jpg"), "is the ring " * 10
    place = {"load": str(stage_one), "features": str(tmp_path / "one.safetensors")}
    tensors, rows = write_features(**place, question=question, image=image)
    assert rows == [{"image": image, "sentence": question}]
    features = engine.load_pretrained(stage_one, device="cpu").read(image, question)[0]
    assert tensors["cells"][0].tolist() == features.cells.tolist()
    assert "note: only the first 12 of 30 word pieces were read ('is the ring" in capsys.readouterr().out


def test_answers_come_with_a_note_of_what_was_not_read(
    scenes: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_model(scenes, tmp_path / "model", "question_answering", "vqa"))
    for question, told in (("zebra# #", "unknown to the model's vocabulary, so that only the image"), ("a ring", None)):
        config = PredictConfig(load=folder, question=question, image=str(table.parent / "0.jpg"))
        prediction.run(TASKS["vqa"], config, ALONE)
        first, *_ = lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 5 + (told is not None)
        assert first.startswith("note: all ") == (told is not None)
        assert told is None or told in first


def test_a_model_of_pre_training_leads_to_features(stage_one: Path, scenes: Path) -> None:
    config = PredictConfig(load=str(stage_one), test="minival", data_root=str(scenes))
    with pytest.raises(UserError, match=r"fine-tune it first, with .*, or ask for its features, with --features NAME"):
        prediction.open_model(TASKS["vqa"], config, ALONE)


def test_annotations_that_change_meanwhile_are_told(tmp_path: Path) -> None:
    path = tmp_path / "f.safetensors"
    (tmp_path / "f.rows.json").write_text("of an older file")
    with FeatureFile(path, {"pooled": Column(torch.float32, (1,))}, 2, {}) as file:
        file.create()
        with pytest.raises(UserError, match=r"has 1 pairs, and .*f.safetensors 2: the annotations changed in between"):
            publish(file, [{"image": "0.jpg", "sentence": "a ring"}])
    assert path.exists()
    assert len(json.loads((tmp_path / "f.rows.json").read_text())) == 1


def test_a_damaged_photo_ends_it_and_leaves_no_file(stage_one: Path, table: Path, tmp_path: Path) -> None:
    (table.parent / "2.jpg").write_bytes((table.parent / "2.jpg").read_bytes()[:500])
    place = {"load": str(stage_one), "pairs": str(table), "data_root": str(tmp_path)}
    place["features"] = str(tmp_path / "out" / "f.safetensors")
    with pytest.raises(
        UserError, match=r"1 unreadable image \(.*2.jpg.* be taken as black with --max_unreadable_images 1"
    ):
        write_features(**place)
    assert list((tmp_path / "out").iterdir()) == []
    tensors, rows = write_features(**place, max_unreadable_images=1)
    assert len(rows) == len(tensors["pooled"]) == 5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"test": None, "pairs": "x.jsonl", "features": None},
            "--pairs has no questions of a task to answer; add --fe",
        ),
        ({"pairs": "x.jsonl"}, "or --pairs FILE for --features"),
        ({"features": "x.pt"}, "--features x.pt: a name that ends in .safetensors is needed"),
        ({"feature_parts": "pooled,words"}, "--feature_parts pooled,words: some of language, vision, pooled, grid"),
        ({"feature_parts": ""}, "--feature_parts : some of"),
        ({"top_k": 3}, "--top_k is about answers, and --features writes none"),
        ({"output": "x"}, "--output is about answers"),
    ],
)
def test_flags_that_contradict_each_other(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictConfig(**{"load": "x", "test": "minival", "features": "x.safetensors", **values}).check()
