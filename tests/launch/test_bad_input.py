"""What a user can get wrong before training starts: each is one line that names the place and the remedy.

Run in this process up to the error; how a process ends with one is tested in test_pretrain.py.
"""

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.parsing import parse
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig, Pretraining
from engine.training.program import RECIPES
from engine.training.run import run
from tests.engine.distributed.test_schedulers import MPICH, STEP

Flags = Callable[..., list[str]]
Damage = Callable[[Path], list[str]]  # changes a data root, gives more flags


def error_of(flags: list[str]) -> str:
    # Its other rank is on another machine: one on this would be waited for, to share the data with.
    ranks = Ranks(rank=0, world_size=2, local_rank=0, local_world_size=1)

    def start() -> None:
        config, _ = parse(PretrainConfig, flags, RECIPES)
        config.check(ranks.world_size)
        run(config, Pretraining, ranks, deepspeed_settings(config, ranks.world_size))

    with patch("engine.training.prepared.Meeting"), pytest.raises(UserError) as caught:
        start()
    return str(caught.value)


def annotations(root: Path) -> Path:
    return root / "lxmert" / "mscoco_train.json"


def no_annotations(root: Path) -> list[str]:
    annotations(root).unlink()
    return []


def broken_json(root: Path) -> list[str]:
    text = annotations(root).read_text().replace("}, {", "},\n{")
    lines = text.split("\n")
    lines[4] = lines[4].replace(":", "", 1)
    annotations(root).write_text("\n".join(lines))
    return []


def truncated_json(root: Path) -> list[str]:
    text = annotations(root).read_text()
    annotations(root).write_text(text[: text.index('"sentf"')])  # 43 characters in front of it in any drawn set
    return []


def lacking_field(root: Path) -> list[str]:
    items = json.loads(annotations(root).read_text())
    del items[3]["img_id"]
    annotations(root).write_text(json.dumps(items))
    return []


def no_image_folder(root: Path) -> list[str]:
    (root / "mscoco" / "train2014").rename(root / "elsewhere")
    return []


def no_image_file(root: Path) -> list[str]:
    (root / "mscoco" / "train2014" / "COCO_train2014_000000000007.jpg").unlink()
    return []


def no_answer_table(root: Path) -> list[str]:
    (root / "lxmert" / "all_ans.json").unlink()
    return ["--taskQA", "true"]


def foreign_answers(root: Path) -> list[str]:
    (root / "lxmert" / "all_ans.json").write_text(json.dumps([{"ans": "zebra", "dsets": ["vqa"]}]))
    return ["--taskQA", "true"]


def other_checkpoint(root: Path) -> list[str]:
    torch.save({"bert.pooler.dense.bias": torch.zeros(7)}, root / "Epoch01_LXRT.pth")
    return ["--from_scratch", "false", "--load", str(root / "Epoch01")]


def truncated_checkpoint(root: Path) -> list[str]:
    torch.save({"bert.pooler.dense.bias": torch.zeros(70000)}, root / "Epoch01_LXRT.pth")
    path = root / "Epoch01_LXRT.pth"
    path.write_bytes(path.read_bytes()[:5000])
    return ["--from_scratch", "false", "--load", str(root / "Epoch01")]


def output_is_a_file(root: Path) -> list[str]:
    (root / "taken").write_text("")
    return ["--output", str(root / "taken")]


CASES: list[tuple[Damage, list[str]]] = [
    (no_annotations, ["mscoco_train.json is missing", "README"]),
    (broken_json, ["mscoco_train.json, line 5", "not valid JSON"]),
    (truncated_json, ["mscoco_train.json, line 1, column 44", "download the file again"]),
    (lacking_field, ["mscoco_train.json, item 3", "'img_id' is missing"]),
    (no_image_folder, ["train2014", "--data_root"]),
    (
        no_image_file,
        [
            "1 of 40 images of mscoco_train",
            "not in the image folders of",
            "first is COCO_train2014_000000000007 (looked for",
            "; the nearest names there are COCO_train2014_",
            "--allow_missing_images",
        ],
    ),
    (no_answer_table, ["all_ans.json is missing", " answers --data_root", "--train mscoco_train --valid"]),
    (foreign_answers, ["none of the", "all_ans.json"]),
    (other_checkpoint, ["bert.pooler.dense.bias", "(7,)", "(32,)", "another size"]),
    (truncated_checkpoint, ["Epoch01_LXRT.pth", "copy or download it again"]),
    (output_is_a_file, ["--output", "choose another folder"]),
    (lambda root: ["--sub_feat_num", "9"], ["--sub_feat_num 9", "2 x 3 = 6 cells"]),
    (lambda root: ["--batch_size", "100"], ["160 sentences", "lower --batchSize"]),
    (
        lambda root: ["--load", "nowhere/Epoch09", "--from_scratch", "false"],
        ["no folder nowhere/Epoch09 with", "neither Epoch09_LXRT.pth nor Epoch09.pth"],
    ),
    (lambda root: ["--bert", str(root / "lxmert")], ["no BERT at", "config.json"]),
    (lambda root: ["--from_scratch", "false", "--clip_weights", "no.pt"], ["no.pt is missing", "--fromScratch"]),
    (lambda root: ["--valid", "nothing"], ["nothing.json is missing"]),
    (lambda root: ["--image_store", str(root / "none")], ["image store", "/none can't be read", "prepare.py images"]),
    (lambda root: ["--cache_dir", str(annotations(root))], ["mscoco_train.json can't be used", "--cache_dir"]),
]


@pytest.mark.parametrize(("damage", "parts"), CASES, ids=[" ".join(parts)[:40] for _, parts in CASES])
def test_error_names_place_and_remedy(damage: Damage, parts: list[str], flags: Flags, damaged: Path) -> None:
    message = error_of(flags("--data_root", str(damaged), *damage(damaged)))
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("choice", "part"), [("triton", "KERNELS_BACKEND=triton, but"), ("cuda", "KERNELS_BACKEND=cuda is none of")]
)
def test_kernels_that_cannot_run_are_refused(
    choice: str, part: str, flags: Flags, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELS_BACKEND", choice)
    assert part in error_of(flags("--data_root", str(damaged)))


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        (STEP, "5 processes of this program were started, which would all do the same work; start one: `python`"),
        (MPICH, "2 processes of this program were started"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "lacks some of RANK, LOCAL_RANK"),
    ],
    ids=["srun", "mpirun", "a rank of no launcher"],
)
@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("app", ["--load", "nowhere"]),
        ("compare", ["nowhere", "nowhere"]),
        ("convert", ["--from", "safetensors", "nowhere", "--to", "hub", "elsewhere"]),
        ("demo", []),
        ("demo_own", []),
        ("prepare", ["sizes", "--data_root", "nowhere"]),
        ("report", ["nowhere"]),
    ],
)
def test_a_program_that_works_alone_refuses_to_be_several(
    program: str,
    flags: list[str],
    environment: dict[str, str],
    part: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def leave(error: UserError) -> None:
        print(error, file=sys.stderr)
        raise SystemExit(2)

    module = importlib.import_module(f"launch.{program}")
    monkeypatch.setattr("engine.distributed.leaving.exit_with", leave)
    monkeypatch.setattr(sys, "argv", [f"{program}.py", *flags])
    monkeypatch.chdir(tmp_path)
    with patch.dict(os.environ, environment), pytest.raises(SystemExit, match="2"):
        sys.exit(module.main())
    assert part in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
