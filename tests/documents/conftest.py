"""What the commands of the documents find in the folder where they are run."""

import fcntl
import json
import os
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertForPreTraining

from engine.data.images.places import image_path
from engine.model.clip_resnet import SHAPES, ClipResNet
from engine.synthetic import tables
from tests.conftest import ROOT, write_question_files
from tests.documents.commands import Shell

# Where the documents take checkpoints and models to be.
RUNS = ("a", "b", "NAME", "my_run", "clip_rn50_stage_one", "clip_rn50x4_stage_two")
EPOCHS = ("Epoch09", "Epoch11", "Epoch20")
TASKS = {"vqa": "--load_lxmert_qa", "gqa": "--load_lxmert_qa", "snli_ve": "--load_lxmert"}


@pytest.fixture(scope="session")
def start_folder(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small scenes under the names of the real data, photos with captions, and checkpoints of small models.

    The first of several processes that test makes it for all.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = base / "start_of_documents"
    with (base / "start_of_documents.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "snap").exists():
            write_data(folder, scenes)
            write_photos(folder)
            write_weights(folder)
            write_runs(folder)
    return folder


def write_data(folder: Path, scenes: Path) -> None:
    data = Path(shutil.copytree(scenes, folder / "data", ignore=shutil.ignore_patterns("cache")))
    items = json.loads((data / "lxmert" / "mscoco_train.json").read_text())
    for name, part in {"mscoco_train": items[:30], "mscoco_nominival": items[30:35], "vgnococo": items[35:]}.items():
        (data / "lxmert" / f"{name}.json").write_text(json.dumps(part))
    write_question_files(data)
    (data / "demo").symlink_to(".")
    (folder / "ds_configs").symlink_to(ROOT / "ds_configs")
    (folder / "tests").symlink_to(ROOT / "tests")


def write_photos(folder: Path) -> None:
    photos = folder / "photos"
    photos.mkdir()
    (photos / "mscoco").symlink_to("../data/mscoco")
    for table, name in {"captions": "mscoco_train", "held_out": "mscoco_minival"}.items():
        items = json.loads((folder / "data" / "lxmert" / f"{name}.json").read_text())
        rows = tables.rows_of(items, path_of=lambda img_id: image_path(img_id).as_posix())
        tables.write_jsonl(photos / f"{table}.jsonl", rows)
    (folder / "own").symlink_to("photos")
    shutil.copy(next((folder / "data" / "mscoco" / "val2014").iterdir()), folder / "photo.jpg")
    with Image.open(folder / "photo.jpg") as image:  # one is a landscape, the other a portrait
        image.transpose(Image.Transpose.ROTATE_90).save(folder / "cat.jpg")


def write_weights(folder: Path) -> None:
    """Random ones, under the names of CLIP's and BERT's."""
    visual = ClipResNet(SHAPES["tiny"]).state_dict()
    torch.save({f"visual.{name}": tensor for name, tensor in visual.items()}, folder / "RN50.pt")
    bert = Path(shutil.copytree(folder / "data" / "bert", folder / "bert-base-uncased"))
    BertForPreTraining(BertConfig.from_pretrained(bert)).save_pretrained(bert)


def write_runs(folder: Path) -> None:
    """A pre-training of one epoch, and a model of each task, under all names."""
    shell = Shell(folder)
    small = "--data_root data --bert data/bert --num_workers 0 --epochs 1"
    flags = f"--recipe demo_stage_one --taskQA --taskMatched {small} --output runs/pretrain"
    shell.start(["launch/pretrain.py", *shlex.split(flags)], 1)
    for task, flag in TASKS.items():
        flags = f"--task {task} --recipe demo_{task} {flag} runs/pretrain/Epoch01 {small} --output runs/{task}"
        shell.start(["launch/finetune.py", *shlex.split(flags), "--train", "train"], 1)
        (folder / "snap" / task).mkdir(parents=True)
        for model in ("NAME", "my_run", "my_vqa", f"{task}_clip_rn50x4"):
            (folder / "snap" / task / model).symlink_to(f"../../runs/{task}")
    for run in RUNS:
        output = folder / "snap" / "pretrain" / run
        output.mkdir(parents=True)
        for name in ("config.yaml", "metrics.jsonl", "run.json"):
            (output / name).symlink_to(f"../../../runs/pretrain/{name}")
        for epoch in EPOCHS:
            (output / epoch).symlink_to("../../../runs/pretrain/Epoch01")
            (output / f"{epoch}_LXRT.pth").symlink_to("../../../runs/pretrain/Epoch01_LXRT.pth")
    (folder / "snap" / "demo").mkdir()
    for name, run in {"stage_one": "pretrain", "stage_two": "pretrain", "vqa": "vqa"}.items():
        (folder / "snap" / "demo" / name).symlink_to(f"../../runs/{run}")
    (folder / "Epoch09_LXRT.pth").symlink_to("runs/pretrain/Epoch01_LXRT.pth")
    shell.start(shlex.split("launch/convert.py --from safetensors runs/vqa/BEST --to lxrt BEST.pth"), 1)
