"""What a training says at its end."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import commands
from engine.distributed.ranks import ALONE, Ranks
from engine.provenance.results import Results
from engine.tasks.pretraining import PretrainConfig, Pretraining
from engine.tasks.vqa import Vqa, VqaConfig
from engine.training.loop import TrainState
from engine.training.observers.conclusion import Conclusion, not_learnt, with_resume

TWO = Ranks(rank=0, world_size=2, local_rank=0, local_world_size=2)
REASON = "--epochs 3 ends it"
TRAIN = {
    "kind": "train",
    "epoch": 2.5,
    "step": 10,
    "loss": 2.5,
    "mask_lm_loss": 2.0,
    "matched_loss": 0.5,
    "mask_lm_accuracy": 0.3,
}


def task_of(task_class: Any, config: Any, ranks: Ranks = TWO) -> Any:
    """Without its data."""
    task = task_class.__new__(task_class)
    task.config, task.ranks, task.data_root = config, ranks, Path(config.data_root)
    return task


def lines(task: Any, folder: Path, *, saved: str, stopped: bool = False, metric: str | None = None) -> list[str]:
    results = Results()
    for epoch, loss, score in ((1, 1.5, 40.0), (2, 1.25, 50.0), (3, 1.75, 45.0)):
        validation = {"kind": "valid", "epoch": epoch, "loss": loss}
        results.add({**validation, "score": score} if metric else validation)
        results.add(TRAIN)
    saver: Any = SimpleNamespace(saved=saved, stop_requested=stopped, checkpoints=SimpleNamespace(folder=folder))
    return Conclusion(task, saver, results, REASON).lines(TrainState(step=10))


def test_stage_one_leads_to_stage_two(tmp_path: Path) -> None:
    for name in ("Epoch03", "Epoch03_LXRT.pth"):
        (tmp_path / name).mkdir()
    config = PretrainConfig(clip_model_name="RN50", data_root="/my data", task_qa=False)
    assert lines(task_of(Pretraining, config), tmp_path, saved="Epoch03") == [
        "done after step 10: --epochs 3 ends it",
        "last report: loss 2.5, mask_lm_loss 2, matched_loss 0.5, after epoch 2.5",
        "best validation: loss 1.25, after epoch 2",
        "last validation: loss 1.75, after epoch 3",
        f"in {tmp_path}: Epoch03, Epoch03_LXRT.pth, metrics.jsonl, config.yaml, run.json",
        "next: deepspeed --num_gpus 2 launch/pretrain.py --recipe rn50_stage_two "
        f"--load {tmp_path}/Epoch03 --data_root '/my data'",
    ]


@pytest.mark.parametrize(
    ("model", "task_qa", "expected"),
    [
        ("RN50x4", True, ["finetune", "--task", "vqa", "--recipe", "vqa_rn50x4", "--load_lxmert_qa", "run/Epoch03"]),
        ("RN101", True, ["finetune", "--task", "vqa", "--clip_model_name", "RN101", "--load_lxmert_qa", "run/Epoch03"]),
        ("RN101", False, ["pretrain", "--clip_model_name", "RN101", "--taskQA", "--load", "run/Epoch03"]),
    ],
)
def test_what_comes_next(model: Any, task_qa: bool, expected: list[str]) -> None:
    config = PretrainConfig(clip_model_name=model, task_qa=task_qa)
    assert task_of(Pretraining, config).next_command(Path("run", "Epoch03"), None) == expected


def test_fine_tuning_leads_to_predictions_of_the_best_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for name in ("Epoch03", "BEST", "LAST"):
        (tmp_path / name).mkdir()
    task = task_of(Vqa, VqaConfig(data_root=str(tmp_path)))
    told = lines(task, tmp_path, saved="Epoch03", metric="score")
    assert told[2:] == [
        "best validation: score 50, loss 1.25, after epoch 2",
        "last validation: score 45, loss 1.75, after epoch 3",
        f"in {tmp_path}: Epoch03, BEST, LAST, metrics.jsonl, config.yaml, run.json",
        "next: torchrun --nproc-per-node 2 launch/predict.py --task vqa "
        f"--load {tmp_path}/BEST --test minival --data_root {tmp_path}",
    ]
    (tmp_path / "vqa").mkdir()
    (tmp_path / "vqa" / "test.json").touch()
    assert "--test test" in lines(task, tmp_path, saved="Epoch03")[-1]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([0.0, 0.0], "BEST scores 0: it has no answer of the validation right, "),
        ([0.0], "BEST scores 0: "),
        ([40.0, 30.0, 40.0], "BEST scores no more than the first model that was validated, after epoch 1: "),
        ([40.0, 30.0], "BEST scores no more than the first model that was validated, after epoch 1: "),
        ([40.0, 50.0, 30.0], ""),
        ([40.0], ""),  # there is nothing to compare it with
        ([], ""),
    ],
)
def test_a_best_model_that_has_learnt_nothing_is_told(scores: list[float], words: str) -> None:
    results = Results({"kind": "valid", "epoch": epoch, "score": score} for epoch, score in enumerate(scores, 1))
    assert not_learnt(results).startswith(words)
    assert bool(not_learnt(results)) == bool(words)
    assert not_learnt(Results({"kind": "valid", "epoch": 1, "loss": 0.0} for _ in range(2))) == ""  # has no BEST


def test_a_stopped_run_goes_on_by_its_own_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["launch/pretrain.py", "--local_rank=0", "--recipe", "rn50_stage_one"]
    monkeypatch.setattr("sys.argv", argv)
    told = lines(task_of(Pretraining, PretrainConfig(), ALONE), tmp_path, saved="Step000010", stopped=True)
    assert told[0] == "stopped after step 10"
    assert told[-1] == "to go on: python launch/pretrain.py --recipe rn50_stage_one --resume auto"
    many = Ranks(rank=0, world_size=4, local_rank=0, local_world_size=2)
    told = lines(task_of(Pretraining, PretrainConfig(), many), tmp_path, saved="Step000010", stopped=True)
    assert told[-1] == "to go on: launch/pretrain.py --recipe rn50_stage_one --resume auto"
    assert with_resume(["--resume", "auto"]) == ["--resume", "auto"]
    assert with_resume(["--resume=auto"]) == ["--resume=auto"]


MODULE = "--module launch.pretrain"


@pytest.mark.parametrize(
    ("ranks", "is_module", "goes_on", "follows"),
    [
        (ALONE, False, "/env/bin/clipvil-pretrain", "clipvil-pretrain"),
        (ALONE, True, "python -m launch.pretrain", "clipvil-pretrain"),
        (TWO, False, "deepspeed --num_gpus 2 /env/bin/clipvil-pretrain", f"deepspeed --num_gpus 2 {MODULE}"),
        (TWO, True, f"deepspeed --num_gpus 2 {MODULE}", f"deepspeed --num_gpus 2 {MODULE}"),
    ],
    ids=["command", "module", "command_on_two", "module_on_two"],
)
def test_an_installed_copy_tells_commands_that_are_there(
    ranks: Ranks, is_module: bool, goes_on: str, follows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` makes the file of the module the first word, and the main module knows its name."""
    file = "/env/lib/launch/pretrain.py" if is_module else "/env/bin/clipvil-pretrain"
    spec = SimpleNamespace(name="launch.pretrain", origin=file) if is_module else None
    monkeypatch.setattr(commands, "IN_CHECKOUT", False)
    monkeypatch.setitem(sys.modules, "__main__", SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(sys, "argv", [file, "--fp16"])
    task = task_of(Pretraining, PretrainConfig(clip_model_name="RN50", task_qa=False), ranks)
    assert lines(task, tmp_path, saved="Step1", stopped=True)[-1] == f"to go on: {goes_on} --fp16 --resume auto"
    told = lines(task, tmp_path, saved="Epoch03")[-1]
    assert told == f"next: {follows} --recipe rn50_stage_two --load {tmp_path}/Epoch03"


def test_rank_0_says_it_through_the_reporter(tmp_path: Path) -> None:
    said: list[str] = []
    told, folder = SimpleNamespace(say=said.append), SimpleNamespace(folder=tmp_path)
    saver: Any = SimpleNamespace(saved="", stop_requested=False, reporter=told, checkpoints=folder)
    Conclusion(task_of(Pretraining, PretrainConfig()), saver, Results(), REASON).after_training(TrainState(step=3))
    assert said == [f"done after step 3: {REASON}\nin {tmp_path}: metrics.jsonl, config.yaml, run.json"]
