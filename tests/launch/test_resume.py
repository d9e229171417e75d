"""Trainings that go on: bit for bit on the same ranks, on other ranks, after a signal, in fp16."""

import hashlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.checkpoint import load_pretrained
from engine.checkpoint.manifest import complete_checkpoints, read_manifest
from engine.checkpoint.shards import Shards
from engine.checkpoint.space import Files
from engine.checkpoint.state import Checkpoint
from engine.checkpoint.weights import BACKBONE
from engine.provenance.history import RUNNING, read_starts
from tests.conftest import ROOT, fp16_flags, launch, read_metrics, session_members, start
from tests.engine.training.reports.test_monitors import assert_shown
from tests.kill.training import read_curve

Flags = Callable[..., list[str]]
RESUME = ["--resume", "auto"]
# As in test_ranks: two ranks sum micro-batches in another order than one, through at most ten steps.
PARAMETERS = 5e-6


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True))


def assert_equal(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    assert set(one) == set(two)
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


def assert_same_training_state(one: Shards, two: Shards) -> int:
    """Weights, moments and step counts, exactly; how many moments there are."""
    assert_equal(one.weights(), two.weights())
    count = 0
    for name in one.group_of:
        assert_equal(one.moments(name), two.moments(name))
        assert one.steps(name) == two.steps(name)
        count += len(one.moments(name))
    return count


@pytest.fixture
def dropout_bert(scenes: Path, tmp_path: Path) -> Path:
    """The small BERT with dropout, whose draws have to go on, too."""
    folder = Path(shutil.copytree(scenes / "bert", tmp_path / "bert"))
    config = json.loads((folder / "config.json").read_text())
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (folder / "config.json").write_text(json.dumps({**config, **dropout}))
    return folder


def test_each_checkpoint_goes_on_bit_for_bit(flags: Flags, scenes: Path, dropout_bert: Path, tmp_path: Path) -> None:
    """20 micro-batches an epoch make 6 steps and leave 2 over; reports of 3 don't fall on the steps' ends.

    Step 4 is saved because a signal asks for it, and step 8 because of --save_step. TensorBoard and CSV files show what
    metrics.jsonl has in the end. One of the runs that go on ends at the first epoch's last step, where it validates.
    """
    common = ["--bert", str(dropout_bert), "--batchSize", "8", "--epochs", "2", "--gradient_accumulation_steps", "3"]
    common += ["--report_step", "4", "--save_step", "8", "--sgd_momentum", "0.9", "--monitor", "tensorboard,csv"]
    whole = tmp_path / "whole"
    run = launch("tests/workers/asking_pretrain.py", flags(*common, "--output", str(whole)), ranks=1, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert sorted(path.name for path in whole.glob("*[0-9]")) == ["Epoch01", "Epoch02", "Step000004", "Step000008"]
    model = Checkpoint(whole / "Epoch02").description.build()
    assert_counted(whole / "Epoch02", Files.of(model, itemsize=4, backbone_moments=1))
    for name in ("Step000004", "Epoch01"):
        output = tmp_path / name
        shutil.copytree(whole / name, output / name)
        shutil.copy(whole / "metrics.jsonl", output)  # with the lines of steps that are done again
        shutil.copy(whole / "run.json", output)
        stop = ["--max_steps", "6"] if name == "Step000004" else None
        for end in [stop, []] if stop else [[]]:
            more = flags(*common, *RESUME, "--output", str(output), *end)
            run = launch("launch/pretrain.py", more, ranks=1, launcher="warm")
            assert run.code == 0, run.stderr[-3000:]
            if end == stop or not stop:
                assert f"going on from {output / name}, after step" in run.stdout
        curves = [[record for record in read_curve(run) if not stop or record["step"] != 6] for run in (output, whole)]
        assert curves[0] == curves[1]  # an end has a report of its own
        assert [record["step"] for record in read_metrics(output, "valid")] == ([6, 6, 12] if stop else [6, 12])
        assert_shown(output)
        one, two = (Checkpoint(run / "Epoch01").content["ranks"][0] for run in (output, whole))
        assert one["progress"] == two["progress"] == {"epoch": 0, "batches": 18, "step": 6}
        assert_equal(weights(output / "Epoch02_LXRT.pth"), weights(whole / "Epoch02_LXRT.pth"))
        first, *_, second = read_starts(output / "run.json")
        assert read_starts(whole / "run.json") == [first]
        assert second["came_from"] == str(output / ("Step000006" if stop else name))
        assert {part for part in first if first[part] != second[part]} - {
            "code"
        } == {  # who tests may edit it meanwhile
            *("start", "end", "seconds", "command", "rank_0", "configuration", "came_from", "results"),
        }
        assert (second["exit"], second["step"], first["step"]) == ("finished", 12, 12)
        assert second["results"]["best"]["mask_lm_loss"] == first["results"]["best"]["mask_lm_loss"]
    assert read_curve(whole)[-1]["kind"] == "valid"
    assert first["data"]["train"]["files"]["mscoco_train.json"] == sha256(scenes / "lxmert" / "mscoco_train.json")
    assert first["results"]["valid"]["step"] == 12


@pytest.mark.slow
def test_a_run_that_is_done_goes_on_with_more_epochs_and_is_resumed_bit_for_bit(flags: Flags, tmp_path: Path) -> None:
    """An epoch has 6 steps and leaves 2 micro-batches over. Rates are those of a run that was begun for two epochs."""
    common = ["--batchSize", "8", "--gradient_accumulation_steps", "3", "--report_step", "1", "--warmup_ratio", "0.2"]
    common += ["--lr", "1e-3", "--sgd_lr", "1e-2", "--schedule", "1"]
    done, whole, halted = (tmp_path / name for name in ("done", "whole", "halted"))
    starts: list[tuple[Path, list[str]]] = [(done, ["--epochs", "1"]), (whole, ["--epochs", "2", *RESUME])]
    starts += [(halted, ["--epochs", "2", *RESUME, "--max_steps", "8"]), (halted, ["--epochs", "2", *RESUME])]
    told = []
    for output, more in starts:
        if output != done and not output.exists():
            shutil.copytree(done, output)
        run = launch("launch/pretrain.py", flags(*common, *more, "--output", str(output)), ranks=1, launcher="warm")
        assert run.code == 0, run.stderr[-3000:]
        told.append("--epochs has grown from 1 to 2: AdamW's rate goes from 0 to " in run.stdout)
    assert told == [False, True, True, False]
    rates = {record["step"]: (record["lr"], record["sgd_lr"]) for record in read_metrics(whole)}
    assert rates[5] == pytest.approx((1e-3 * (6 - 5) / (6 - 1.2), 1e-2))
    assert rates[7] == pytest.approx((1e-3 * (13 - 7) / (13 - 2.6), 1e-3))
    assert rates[12] == pytest.approx((1e-3 * (13 - 12) / (13 - 2.6), 1e-3))
    ends = [record for record in read_curve(halted) if (record["kind"], record["step"]) != ("valid", 8)]
    assert ends == read_curve(whole)
    assert_equal(weights(halted / "Epoch02_LXRT.pth"), weights(whole / "Epoch02_LXRT.pth"))
    assert assert_same_training_state(Shards(halted / "Epoch02"), Shards(whole / "Epoch02")) > 100


@pytest.mark.parametrize("shared", ["1", pytest.param("2", marks=pytest.mark.slow)], ids=["alone", "shared"])
def test_ranks_may_change_within_an_epoch(
    shared: str, flags: Flags, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks, one, two: each sentence once, the same state after each change, the same weights in the end."""
    monkeypatch.setenv("SEEN_DIRECTORY", str(tmp_path))
    common = ["--batchSize", "4", "--epochs", "1", "--global_batch_size", "16", "--freeze_batch_norm"]
    common += ["--sentences_per_image", shared]
    common += ["--task_matched", "true", "--taskQA", "--sgd_momentum", "0.9", "--lr", "5e-4"]
    worker, output = "tests/workers/recording_pretrain.py", tmp_path / "changing"
    steps = {}
    for ranks, stop in ((2, "3"), (1, "6"), (2, "10")):
        more = flags(*common, *RESUME, "--output", str(output), "--max_steps", stop)
        run = launch(worker, more, ranks=ranks, launcher="warm")
        assert run.code == 0, run.stderr[-3000:]
        if stop != "3":
            restored = Shards(output / "Restored")
            assert restored.model["dp_world_size"] == ranks
            assert assert_same_training_state(restored, steps["last"]) > 100
            shutil.rmtree(output / "Restored")
        if stop != "10":
            steps["last"] = Shards(output / f"Step{int(stop):06d}")
    seen: Counter[int] = Counter()
    for path in tmp_path.glob("*.json"):
        seen.update(number for epoch, number in json.loads(path.read_text()) if epoch == 0)
    assert len(list(tmp_path.glob("*.json"))) == 5
    assert seen == Counter(range(160))

    run = launch("launch/pretrain.py", flags(*common, "--output", str(tmp_path / "two")), launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    one, two = (weights(tmp_path / name / "Epoch01_LXRT.pth") for name in ("changing", "two"))
    errors = {name: float((one[name].double() - two[name].double()).abs().max()) for name in two}
    assert set(one) == set(two)
    assert max(errors.values()) <= PARAMETERS, max(errors, key=lambda name: errors[name])


@pytest.mark.slow
@pytest.mark.parametrize("zero", [{"stage": 1}, {"offload_optimizer": {"device": "cpu"}}], ids=["stage 1", "offload"])
def test_a_stage_or_offload_goes_on_bit_for_bit_and_elsewhere(
    zero: dict[str, Any], flags: Flags, tmp_path: Path
) -> None:
    """Two ranks as configured: the same again from the middle, and up to rounding on one rank, or in stage 2 without
    offload from the middle or from the start."""
    settings = json.loads((ROOT / "ds_configs" / "zero2_fp32.json").read_text())
    settings["zero_optimization"] |= zero
    own = tmp_path / "own.json"
    own.write_text(json.dumps(settings))
    common = ["--batchSize", "4", "--global_batch_size", "16", "--freeze_batch_norm", "--sgd_momentum", "0.9"]
    common += ["--lr", "5e-4", "--report_step", "1", "--save_step", "2", "--max_steps", "4"]
    configured = ["--deepspeed_config", str(own)]
    runs = {
        "whole": (2, configured),
        "again": (2, configured),
        "alone": (1, configured),
        "turned": (2, []),
        "two": (2, []),
    }
    final = {}
    for name, (ranks, more) in runs.items():
        output = tmp_path / name
        if name in ("again", "alone", "turned"):
            more = [*more, *RESUME]
            shutil.copytree(tmp_path / "whole" / "Step000002", output / "Step000002")
            shutil.copy(tmp_path / "whole" / "metrics.jsonl", output)
        more = flags(*common, *more, "--output", str(output))
        run = launch("launch/pretrain.py", more, ranks=ranks, launcher="warm")
        assert run.code == 0, run.stderr[-3000:]
        final[name] = weights(output / "Step000004_LXRT.pth")
    assert read_curve(tmp_path / "again") == read_curve(tmp_path / "whole")
    assert_equal(final["again"], final["whole"])
    assert assert_same_training_state(
        Shards(tmp_path / "again" / "Step000004"), Shards(tmp_path / "whole" / "Step000004")
    )
    for name in ("alone", "turned", "two"):
        for key, value in final["whole"].items():
            assert (value.double() - final[name][key].double()).abs().max() <= PARAMETERS, (name, key)
    losses = [[record["loss"] for record in read_metrics(tmp_path / name)] for name in ("whole", "two")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)  # as in test_ranks: only the parameters' rounding is left


@pytest.mark.slow
def test_a_frozen_backbone_keeps_every_digit_and_goes_on(flags: Flags, tmp_path: Path) -> None:
    """In bf16, whose copy of the backbone has 8 bits: a checkpoint holds the fp32 values that it was frozen with."""
    common = flags("--batchSize", "8", "--freeze_clip", "--bf16", "--report_step", "1", "--save_step", "2")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for output, more in ((whole, []), (resumed, RESUME)):
        if output == resumed:
            shutil.copytree(whole / "Step000002", resumed / "Step000002")
            shutil.copy(whole / "metrics.jsonl", resumed)
        run = launch(
            "launch/pretrain.py",
            [*common, *more, "--max_steps", "4", "--output", str(output)],
            ranks=1,
            launcher="warm",
        )
        assert run.code == 0, run.stderr[-3000:]
    assert read_curve(resumed) == read_curve(whole)
    assert {record["sgd_lr"] for record in read_metrics(whole)} == {0.0}
    last = weights(whole / "Step000004_LXRT.pth")
    assert_equal(weights(resumed / "Step000004_LXRT.pth"), last)
    saved = [Checkpoint(whole / name).weights() for name in ("Step000002", "Step000004")]
    frozen = [name for name in saved[0] if BACKBONE in name and name.endswith("conv1.weight")]
    assert frozen
    for name in frozen:
        assert torch.equal(saved[0][name], saved[1][name])
        assert torch.equal(last[f"module.{name}"], saved[1][name])
        assert not torch.equal(saved[0][name], saved[0][name].bfloat16().float())
    words = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(saved[0][words], saved[1][words])
    model = Checkpoint(whole / "Step000004").description.build()
    model.bert.encoder.visual_model.requires_grad_(False)
    assert_counted(whole / "Step000004", Files.of(model, itemsize=2, backbone_moments=0))


def assert_counted(folder: Path, files: Files) -> None:
    """Real files take what was counted before the run, and names, shapes and generators: under 1 kB for each of 150
    tensors, whatever their size."""
    state = sum(path.stat().st_size for path in folder.iterdir())
    assert 0 < state - files.state < 150_000
    assert 0 < Path(f"{folder}_LXRT.pth").stat().st_size - files.weights < 150_000


@pytest.mark.slow
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core runs one thread")
def test_another_number_of_threads_is_told(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """One, as the tests' environment says, and then those of all cores."""
    common, cores = flags("--batchSize", "8", *RESUME), len(os.sched_getaffinity(0))
    run = launch("launch/pretrain.py", [*common, "--max_steps", "1"], ranks=1, launcher="warm")
    assert "1 rank on cpu with 1 thread a rank, fp32" in run.stdout, run.stderr[-3000:]
    monkeypatch.delenv("OMP_NUM_THREADS")
    run = launch("launch/pretrain.py", [*common, "--max_steps", "2"], ranks=1, launcher="warm")
    assert f"1 rank on cpu with {cores} threads a rank, fp32" in run.stdout, run.stderr[-3000:]
    [warning] = [line for line in run.stdout.splitlines() if line.startswith("warning: ")]
    assert warning.startswith(f"warning: a rank had 1 thread and now has {cores}, which round sums otherwise; ")
    assert "with OMP_NUM_THREADS=1 losses repeat" in warning


def wait_for_step(output: Path, process: Any) -> None:
    wait_until(lambda: (output / "metrics.jsonl").exists() and bool(read_metrics(output)), process)


def wait_until(is_so: Callable[[], bool], process: Any) -> None:
    deadline = time.monotonic() + 90
    while not is_so():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["python", "deepspeed", "torchrun"])
def test_ctrl_c_saves_whatever_launcher_gets_it_too(flags: Flags, tmp_path: Path, launcher: str) -> None:
    """A terminal sends SIGINT to the launcher, ranks and workers; deepspeed's runner is gone before its ranks are."""
    output = tmp_path / "run"
    more = flags("--num_workers", "1", "--batchSize", "1", "--report_step", "1", "--epochs", "10000")
    process = start("launch/pretrain.py", more, launcher=launcher)
    try:
        wait_for_step(output, process)
        os.killpg(process.pid, signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
        deadline = time.monotonic() + 30
        while session_members(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for pid in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)
    if launcher == "python":
        assert process.returncode == 130
        assert "Traceback" not in errors
    [newest] = complete_checkpoints(output)
    step = read_manifest(newest)["step"]
    assert errors.count("SIGINT: the training ends its step, saves and stops; Ctrl-C again ends it at once") == 1
    assert f"asked to stop by a signal, after step {step}; --resume auto goes on from there" in printed
    assert read_metrics(output)[-1]["step"] == step
    assert [start["exit"] for start in read_starts(output / "run.json")] == ["asked to stop by SIGINT"]


@pytest.mark.slow
def test_a_training_goes_on_when_nobody_reads_what_it_says(flags: Flags, tmp_path: Path) -> None:
    process = start("launch/pretrain.py", flags("--report_step", "1", "--max_steps", "3"), ranks=1)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=90) == 0
    assert [record["step"] for record in read_metrics(tmp_path / "run") if record["kind"] == "train"] == [1, 2, 3]
    assert [path.name for path in complete_checkpoints(tmp_path / "run")] == ["Step000003"]


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.slow)])
def test_a_signal_ends_the_step_saves_and_exits_with_0(flags: Flags, tmp_path: Path, number: int) -> None:
    """SIGTERM to a training without a launcher and its workers; SIGUSR1 to one of two ranks, both of which stop.

    Before that the same processes are asked for a checkpoint by SIGUSR2, and by a file SAVE, and go on.
    """
    output, launcher = tmp_path / "run", "python" if number == signal.SIGTERM else "torchrun"
    process = start(
        "launch/pretrain.py",
        flags("--num_workers", "1", "--batchSize", "1", "--report_step", "1", "--epochs", "10000"),
        launcher=launcher,
    )
    try:
        wait_for_step(output, process)
        targets = session_members(process.pid)  # loading workers, too, as launchers do
        if number == signal.SIGUSR1:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            targets = [int(pid) for pid in children if "pretrain.py" in Path(f"/proc/{pid}/cmdline").read_text()][-1:]
        assert [start["exit"] for start in read_starts(output / "run.json")] == [RUNNING]
        for pid in targets:
            os.kill(pid, signal.SIGUSR2)
        wait_until(lambda: bool(complete_checkpoints(output)), process)
        assert complete_checkpoints(output)[-1].name.startswith("Step")  # an epoch has 80 or 160 steps
        (output / "SAVE").touch()
        wait_until(lambda: not (output / "SAVE").exists(), process)
        before = len(complete_checkpoints(output))
        for pid in targets:
            os.kill(pid, number)
        printed, errors = process.communicate(timeout=60)
    finally:
        for pid in session_members(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 0, errors[-3000:]
    saved = complete_checkpoints(output)
    assert len(saved) >= before >= 2
    step = read_manifest(saved[0])["step"]
    assert f"asked to stop by a signal, after step {step}; --resume auto goes on from there" in printed
    assert read_metrics(output)[-1]["step"] == step
    assert "Traceback" not in errors
    [start_of_run] = read_starts(output / "run.json")
    reasons = {f"asked to stop by {signal.Signals(number).name}", "asked to stop by a signal to another rank"}
    assert start_of_run["exit"] in (reasons if number == signal.SIGUSR1 else {"asked to stop by SIGTERM"})
    assert (start_of_run["step"], start_of_run["results"]["train"]["step"]) == (step, step)


def test_fp16_goes_on_bit_for_bit_and_loads_in_fp32_on_one_cpu(flags: Flags, tmp_path: Path) -> None:
    """Two ranks. The fp32 masters, which the fp16 weights don't tell, and the loss scale go on, too."""
    common = [*fp16_flags(tmp_path), "--batchSize", "4", "--report_step", "1", "--lr", "2e-3", "--max_steps", "6"]
    whole, again = tmp_path / "whole", tmp_path / "again"
    more = flags(*common, "--save_step", "3", "--output", str(whole))
    run = launch("tests/workers/fp16_pretrain.py", more, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    shutil.copytree(whole / "Step000003", again / "Step000003")
    shutil.copy(whole / "metrics.jsonl", again)
    more = flags(*common, *RESUME, "--output", str(again))
    run = launch("tests/workers/fp16_pretrain.py", more, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert read_curve(again) == read_curve(whole)
    assert read_metrics(again)[-1]["loss_scale"] > 1
    final = weights(again / "Step000006_LXRT.pth")
    assert_equal(final, weights(whole / "Step000006_LXRT.pth"))

    target = tmp_path / "model"
    run = launch(
        "launch/convert.py",
        ["--from", "deepspeed", str(whole / "Step000006"), "--to", "safetensors", str(target)],
        ranks=1,
        launcher="warm",
    )
    assert run.code == 0, run.stderr[-3000:]
    model = load_pretrained(target)
    state = model.state_dict()
    assert not model.training
    assert {tensor.dtype for tensor in state.values()} == {torch.float32, torch.int64}
    assert all(torch.equal(state[name], final[f"module.{name}"]) for name in state)
    halves = sum(not torch.equal(value, value.half().float()) for value in state.values())
    assert halves > len(state) / 2  # more digits than fp16 holds
