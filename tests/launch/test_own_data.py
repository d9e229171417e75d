"""One's own images and texts, trained on as a user does: the losses of LXMERT's JSON, whatever form the data have."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.data.images.places import image_path
from engine.synthetic import tables
from tests.conftest import launch, read_metrics
from tests.engine.data.images.test_odd_images import LACKING, READABLE, REFUSED, build
from tests.kill.training import read_curve

Flags = Callable[..., list[str]]
NAMES = {
    "lxmert": ("mscoco_train", "mscoco_minival"),
    "jsonl": ("{}/mscoco_train.jsonl", "{}/mscoco_minival.jsonl"),
    "parquet": ("{}/mscoco_train.parquet", "{}/mscoco_minival.parquet"),
    "tar": ("{}/mscoco_train-{{00000..00005}}.tar", "{}/mscoco_minival-{{00000..00002}}.tar"),
}
# 20 steps of 2 x 2 micro-batches of 4: an epoch has 160 sentences, so the checkpoint at step 8 is in its midst.
STEPS = ["--batchSize", "4", "--global_batch_size", "16", "--report_step", "1", "--epochs", "2", "--max_steps", "20"]
STEPS += ["--task_matched", "true", "--taskQA", "true", "--save_step", "8", "--num_workers", "1"]


@pytest.fixture(scope="session")
def forms(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small scenes in all forms; tables lie elsewhere than the images, which --image_root names."""
    folder = tmp_path_factory.mktemp("own") / "tables"
    folder.mkdir()
    for name in ("mscoco_train", "mscoco_minival"):
        items = json.loads((scenes / "lxmert" / f"{name}.json").read_text())
        rows = list(tables.rows_of(items, path_of=lambda img_id: image_path(img_id).as_posix()))
        tables.write_jsonl(folder / f"{name}.jsonl", rows)
        tables.write_parquet(folder / f"{name}.parquet", rows)
        tables.write_shards(folder / name, rows, scenes, 7)
    return folder


def train(form: str, flags: Flags, forms: Path, scenes: Path, output: Path, *more: str, ranks: int = 2) -> list[dict]:
    """All reports and validations of a training, without times."""
    train, valid = (name.format(forms) for name in NAMES[form])
    own = ["--train", train, "--valid", valid, "--image_root", str(scenes)]
    run = launch(
        "launch/pretrain.py",
        [*flags(*STEPS, *own, "--output", str(output)), *more],
        ranks=ranks,
        launcher="warm",
    )
    assert run.code == 0, run.stderr[-3000:]
    assert "mscoco_train: 160 sentences, 40 images" in run.stdout
    return read_curve(output)


@pytest.fixture(scope="session")
def expected() -> dict[int, list[dict]]:
    """Curves of LXMERT's JSON, by ranks."""
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("form", ["jsonl", "parquet", "tar"])
def test_every_form_trains_and_resumes_as_lxmerts_json(
    flags: Flags, forms: Path, scenes: Path, tmp_path: Path, expected: dict[int, list[dict]], form: str, ranks: int
) -> None:
    """The same reports over 20 steps, also where a run ends at step 13, and goes on from step 8, inside an epoch.

    CI has the case with most that is new. The batches of all forms are compared in test_tables.py.
    """
    if (form, ranks) != ("tar", 2) and not os.environ.get("CLIPVIL_ALL_FORMS"):
        pytest.skip("minutes; set CLIPVIL_ALL_FORMS=1 for each form on one and on two ranks")
    if ranks not in expected:
        expected[ranks] = train("lxmert", flags, forms, scenes, tmp_path / "lxmert", ranks=ranks)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    assert train(form, flags, forms, scenes, whole, ranks=ranks) == expected[ranks]
    train(form, flags, forms, scenes, halves, "--max_steps", "13", ranks=ranks)
    shutil.rmtree(halves / "Step000013")
    assert (halves / "Step000008").is_dir()
    assert train(form, flags, forms, scenes, halves, "--resume", "auto", ranks=ranks) == expected[ranks]


def test_a_folder_without_lxmerts_files_is_enough(flags: Flags, forms: Path, scenes: Path, tmp_path: Path) -> None:
    """One JSONL file with a column for splits; images beside it; no answer table, and none is asked for."""
    own = tmp_path / "my photos"
    shutil.copytree(scenes / "mscoco", own / "mscoco")
    rows = [
        {**row, "split": "val" if name == "mscoco_minival" else "train"}
        for name in ("mscoco_train", "mscoco_minival")
        for row in map(json.loads, (forms / f"{name}.jsonl").open())
    ]
    rows.append({"image": rows[0]["image"], "caption": " ", "split": "train"})
    (own / "captions.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    table = str(own / "captions.jsonl")
    run = launch(
        "launch/pretrain.py",
        flags(
            *("--data_root", str(tmp_path / "empty"), "--train", table, "--valid", table, "--max_steps", "2"),
            *("--batchSize", "4", "--report_step", "1"),
        ),
        ranks=1,
        launcher="warm",
    )
    assert run.code == 0, run.stderr[-3000:]
    left_out = "rows or texts left out: 60 of another split, 1 without words"
    assert f"captions: 160 sentences, 40 images; {left_out}" in run.stdout
    assert "captions: 60 sentences, 15 images" in run.stdout


@pytest.mark.slow
def test_every_odd_image_is_trained_on_or_named(flags: Flags, scenes: Path, tmp_path: Path) -> None:
    """One folder of all kinds, each once in the epoch: the unreadable ones are named with their causes, and no more."""
    folder = tmp_path / "odd images"
    folder.mkdir()
    names = [name for name in [*READABLE, *REFUSED] if not name.startswith(LACKING)]
    for name in names:
        (folder / name).write_bytes(build(name))
    rows = ({"image": name, "caption": "a small red ring"} for name in names)
    (folder / "odd.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    run = launch(
        "launch/pretrain.py",
        flags(
            *("--train", str(folder / "odd.jsonl"), "--valid", "", "--epochs", "1", "--batchSize", "1"),
            *("--report_step", "1", "--max_unreadable_images", str(len(REFUSED))),
        ),
        ranks=1,
        launcher="warm",
    )
    assert run.code == 0, run.stderr[-3000:]
    told = [line for line in (run.stdout + run.stderr).splitlines() if "skipped an unreadable image" in line]
    for name, (_, cause, _) in REFUSED.items():
        [line] = [line for line in told if f"{folder / name}: " in line]
        assert cause.removesuffix(" for 24") in line
    assert len(told) == len(REFUSED)
    assert read_metrics(tmp_path / "run")[-1]["unreadable_images"] == len(REFUSED)
