"""What keeps a training from running is told in one list, before anything is read."""

import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.configuration.bert import read_bert
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.parsing import parse
from engine.data import shared_memory
from engine.data.annotations.answers import AnswerTable
from engine.data.trained_on import TrainedOn
from engine.distributed.ranks import ALONE, Ranks
from engine.errors import UserError
from engine.provenance import known_draws, tested
from engine.tasks.pretraining import PretrainConfig, Pretraining
from engine.training.model import describe_model
from engine.training.preflight import checks
from engine.training.preflight.checks import Problems, find_problems
from engine.training.prepared import prepare
from engine.training.program import RECIPES
from tests.conftest import free_port, small_tmpfs

Flags = Callable[..., list[str]]

WEIGHTS_ALONE = ["--not_load_adam_optimizer", "--not_load_scheduler"]  # which a folder of safetensors has


def configured(flags: list[str]) -> PretrainConfig:
    config, _ = parse(PretrainConfig, flags, RECIPES)
    config.check(1)
    return config


def problems_of(flags: list[str], *, thorough: bool = True) -> Problems:
    config = configured(flags)
    settings = deepspeed_settings(config, 1)
    return find_problems(config, Pretraining, ALONE, settings, torch.device("cpu"), thorough=thorough)


def model_with_answers(flags: list[str], answers: list[str], folder: Path) -> Path:
    """A whole model, of the shape that the flags say, whose head has these answers."""
    config = configured(flags)
    bert, tokenizer = read_bert(config.bert)
    task = Pretraining(config, tokenizer, ALONE)
    task.answers = answers
    description: ModelDescription = describe_model(config, bert, task)
    seen = TrainedOn.from_tensors({})
    save_pretrained(folder, description.build().state_dict(), {}, description, "a test", trained_on=seen)
    return folder


def test_a_healthy_training_has_no_problems(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_PORT", free_port())
    assert problems_of(flags()) == []


def test_more_workers_than_cores_are_told_once(flags: Flags, capsys: pytest.CaptureFixture[str]) -> None:
    cores = len(os.sched_getaffinity(0))
    two = [Ranks(rank=rank, world_size=2, local_rank=rank, local_world_size=2) for rank in (0, 1)]
    for workers in (cores, cores + 1):
        for ranks in two:
            checks.check_workers(configured(flags("--num_workers", str(workers))), ranks)
    assert capsys.readouterr().out == (
        f"note: each rank has {cores + 1} loading workers (--num_workers), and this machine {cores} cores; "
        f"--num_workers {max(1, cores // 2)} gives each worker one of its own\n"
    )


def test_what_is_odd_about_libraries_and_words_is_told_once(
    flags: Flags, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By rank 0, and it keeps no training from running."""
    monkeypatch.setattr(tested, "TESTED", {"numpy": ("0.1", "0.2")})
    config = configured(flags("--do_lower_case", "false"))
    for rank in (0, 1):
        ranks = Ranks(rank=rank, world_size=2, local_rank=0, local_world_size=1)
        settings = deepspeed_settings(config, 2)
        assert find_problems(config, Pretraining, ranks, settings, torch.device("cpu"), thorough=False) == []
    libraries, words = capsys.readouterr().out.splitlines()
    assert libraries == f"warning: numpy {np.__version__} is newer than 0.2, the newest that was tested"
    assert words.startswith("warning: no piece of the vocabulary has a capital letter, so words with one are unknown; ")


@pytest.mark.parametrize("draws", [True, False])
def test_other_cells_keep_a_training_from_running_that_draws_some(
    draws: bool, flags: Flags, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_draws, "sample_cells", lambda *_: (torch.arange(8)[None], None))
    found = problems_of(flags("--sub_sampling", str(draws).lower()), thorough=False)
    assert ["the drawn cells of 240" in problem for problem in found] == [True] * draws


def test_only_who_learns_answers_needs_a_table(flags: Flags, damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, or with one of other answers, LXMERT's files train by name and path, with questions or without."""
    monkeypatch.setenv("MASTER_PORT", free_port())
    table, file = damaged / "lxmert" / "all_ans.json", damaged / "lxmert" / "mscoco_train.json"
    begin = flags("--data_root", str(damaged), "--valid", "")
    table.unlink()
    assert problems_of(begin) == []
    (told,) = problems_of([*begin, "--task_qa", "true", "--question_column", "a b"], thorough=False)
    assert told.startswith(f"--taskQA needs an answer table, and {table} is missing; `")
    assert f" answers --data_root {damaged} --train mscoco_train --question_column 'a b'` makes one" in told
    own = ["--train", "my own/questions.csv:0.5,other/more.csv", "--task_qa", "true"]
    (told,) = problems_of([*begin, *own], thorough=False)
    assert " --output 'my own/answers.json'` makes one of the questions in these files, and " in told
    assert told.endswith("--answers 'my own/answers.json' reads it")
    items = json.loads(file.read_text())
    for item in items:
        del item["sentf"]["vqa"], item["labelf"]
    file.write_text(json.dumps(items))
    assert problems_of([*begin, "--train", str(file)]) == []


def test_questions_to_learn_that_are_not_there_are_told(
    flags: Flags, damaged: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = damaged / "lxmert" / "mscoco_train.json"
    begin = flags("--data_root", str(damaged), "--valid", "", "--task_qa", "true", "--train", "mscoco_train")
    told = []
    for left_out in ((), ("vqa",)):
        items = json.loads(file.read_text())
        for item in items:
            for source in left_out:
                del item["sentf"][source], item["labelf"]
        file.write_text(json.dumps(items))
        Pretraining(configured(begin), read_bert(f"{damaged}/bert")[1], ALONE).read_training()
        told.append("so --taskQA learns nothing" in capsys.readouterr().out)
    assert told == [False, True]


def test_a_table_of_other_answers_matters_to_who_learns_answers_alone(
    flags: Flags, damaged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_PORT", free_port())
    (damaged / "lxmert" / "all_ans.json").write_text('["zebra"]')
    begin = flags("--data_root", str(damaged), "--valid", "")
    assert problems_of(begin) == []
    assert any("the table belongs to other data" in told for told in problems_of([*begin, "--task_qa", "true"]))
    with pytest.raises(
        UserError, match=r"--answers .*mine\.json is missing; `.* answers --train FILES --output .*mine"
    ):
        Pretraining(configured([*begin, "--answers", "mine.json"]), read_bert(f"{damaged}/bert")[1], ALONE)


def test_all_problems_are_told_in_one_go(
    flags: Flags, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one machine; tests/launch/test_nodes.py has those of two."""
    stage_two = ["--data_root", str(damaged), "--task_qa", "true", "--task_matched", "true"]
    other = model_with_answers(flags(*stage_two), ["zebra", "gnu"], tmp_path / "other")
    (damaged / "mscoco" / "train2014").rename(damaged / "elsewhere")
    with small_tmpfs(tmp_path / "disk", "1m"), small_tmpfs(tmp_path / "shm", "64k"), socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        monkeypatch.setattr(shared_memory, "SHARED_MEMORY", tmp_path / "shm")
        more = ["--load", str(other), *WEIGHTS_ALONE, "--from_scratch", "false"]
        more += ["--memory_limit", "0.02", "--num_workers", "2"]
        output = tmp_path / "disk" / "deep" / "run"
        config = configured(flags(*stage_two, *more, "--output", str(output)))
        with pytest.raises(UserError) as caught:
            prepare(config, Pretraining, ALONE, deepspeed_settings(config, 1), dry_run=True)
        assert os.listdir(tmp_path / "disk") == []
    first, *listed = str(caught.value).splitlines()
    assert first == "6 things keep this training from running:"
    parts = [
        rf"1\. port {os.environ['MASTER_PORT']}, .* is taken .*--master_port",
        r"2\. .*/shm has 0 MB free, but 2 workers .* --num_workers",
        r"3\. the image folder .*train2014 can't be read .*--data_root",
        r"4\. .*/other has learnt 2 answers, such as 'zebra', and none .* restore the table",
        r"5\. --batch_size 32 takes .* GB at its peak, by count, and the device has 0.02 GB.*lower it to \d+ or fewer",
        r"6\. --output .*/run needs .* GB .* free",
    ]
    for line, part in zip(listed, parts, strict=True):
        assert re.match(rf"  {part}", line), line


def no_vocabulary(root: Path) -> list[str]:
    (root / "bert" / "vocab.txt").unlink()
    (root / "lxmert" / "mscoco_minival.json").unlink()
    return ["--bert", str(root / "bert")]


def broken_items(root: Path) -> list[str]:
    for name, change in {"mscoco_train": "img_id", "mscoco_minival": "sentf"}.items():
        path = root / "lxmert" / f"{name}.json"
        items = json.loads(path.read_text())
        del items[0][change]
        path.write_text(json.dumps(items))
    return []


def foreign_images(root: Path) -> list[str]:
    """All image ids of one file are others'."""
    path = root / "lxmert" / "mscoco_minival.json"
    path.write_text(path.read_text().replace("COCO_val2014_", "COCO_val2014_9"))
    return ["--clip_weights", str(root / "none.pt"), "--from_scratch", "false"]


QUICK: list[tuple[Callable[[Path], list[str]], list[str]]] = [
    (no_vocabulary, ["no BERT at", "mscoco_minival.json is missing"]),
    (broken_items, ["mscoco_train.json, item 0: .*'img_id'", "mscoco_minival.json, item 0: .*'sentf'"]),
    (foreign_images, ["none of the first images of .*mscoco_minival.json", "none.pt is missing; download OpenAI's"]),
]


@pytest.mark.parametrize(("damage", "parts"), QUICK, ids=["no_vocabulary", "broken_items", "foreign_images"])
def test_every_start_looks_quickly(damage: Any, parts: list[str], flags: Flags, damaged: Path) -> None:
    found = problems_of(flags("--data_root", str(damaged), *damage(damaged)), thorough=False)
    assert len(found) == len(parts)
    for problem, part in zip(found, parts, strict=True):
        assert re.search(part, problem), problem


def test_quick_checks_build_nothing(flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the annotation store nor --output, and no image is decoded."""
    monkeypatch.setattr(checks, "look_closely", None)
    assert problems_of(flags("--cache_dir", str(tmp_path / "cache")), thorough=False) == []
    assert not (tmp_path / "cache").exists()
    assert not (tmp_path / "run").exists()


def test_images_that_cannot_be_decoded_are_found_by_a_sample(flags: Flags, damaged: Path) -> None:
    for path in sorted((damaged / "mscoco" / "train2014").glob("*.jpg"))[:20]:
        path.write_bytes(path.read_bytes()[:100])
    [problem] = problems_of(flags("--data_root", str(damaged), "--max_unreadable_images", "3"))
    assert re.match(r"20 of 40 images that were tried can't be read, such as .*\.jpg: .*verify", problem), problem


def test_a_checkpoint_with_some_of_the_answers_fits(flags: Flags, damaged: Path, tmp_path: Path) -> None:
    """Its rows are matched by name."""
    table = AnswerTable.read(damaged / "lxmert" / "all_ans.json")
    base = flags("--data_root", str(damaged), "--task_qa", "true", "--from_scratch", "false")
    some = model_with_answers(base, [table.answers[0], "gnu"], tmp_path / "some")
    assert problems_of([*base, "--load", str(some), *WEIGHTS_ALONE], thorough=False) == []


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            lambda folder: (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}'),
            ["was trained with do_lower_case True", "--bert has do_lower_case False"],
        ),
        (
            lambda folder: (folder / "vocab.txt").write_text(
                (folder / "vocab.txt").read_text().replace("##s\n", "##z\n")
            ),
            ["has learnt '##s' as number", "which is '##z' in that of --bert"],
        ),
    ],
    ids=["cased", "another_piece"],
)
def test_another_berts_words_are_refused(
    change: Any, problem: list[str], flags: Flags, damaged: Path, tmp_path: Path
) -> None:
    own = ["--data_root", str(damaged), "--bert", str(damaged / "bert")]
    saved = model_with_answers(flags(*own), ["yes"], tmp_path / "saved")
    base = flags(*own, "--from_scratch", "false", "--load", str(saved), *WEIGHTS_ALONE)
    assert problems_of(base, thorough=False) == []
    change(damaged / "bert")
    (found,) = problems_of(base, thorough=False)
    for part in problem:
        assert part in found


def test_sentences_that_share_a_pass_are_counted_so(flags: Flags) -> None:
    """The micro-batch of test_all_problems_are_told_in_one_go fits if four sentences share each image."""
    assert problems_of(flags("--memory_limit", "0.02", "--sentences_per_image", "4")) == []


def test_every_file_of_a_split_is_looked_at(flags: Flags, damaged: Path) -> None:
    """Of a set of shards, which may be thousands, the first and the last."""
    for name in ("one", "two", "three"):
        (damaged / f"{name}.jsonl").write_text("none\n")
    found = problems_of(flags("--train", ",".join(f"{damaged}/{name}.jsonl" for name in ("one", "two", "three"))))
    for name in ("one", "two", "three"):
        assert sum(f"{name}.jsonl, line 1, column 1: not valid JSON" in line for line in found) == 1
    for number in range(4):
        (damaged / f"shard-{number}.tar").write_bytes(b"none")
    found = problems_of(flags("--train", f"{damaged}/shard-{{0..3}}.tar"), thorough=False)
    assert [line.partition(".tar")[0][-1] for line in found] == ["0", "3"]
