"""launch/pretrain.py as a user runs it: two ranks, a tiny model, and real launchers where they could matter."""

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
import transformers
import yaml

from engine.checkpoint.state import Checkpoint
from engine.checkpoint.weights import resize_rows
from engine.data.images.writer import write_image_store
from engine.provenance.history import read_starts
from tests.conftest import (
    free_port,
    in_shared_memory,
    launch,
    left_in_shared_memory,
    read_metrics,
    session_members,
    start,
)
from tests.kill.training import TIMES

Flags = Callable[..., list[str]]


def test_stage_one_then_stage_two(flags: Flags, tmp_path: Path) -> None:
    """40 micro-batches of 4 over 2 ranks, accumulation 2: 10 steps an epoch. torchrun starts a test of test_resume."""
    one, two = tmp_path / "one", tmp_path / "two"
    common = ["--batchSize", "4", "--gradient_accumulation_steps", "2", "--report_step", "10"]
    run = launch(
        "launch/pretrain.py",
        flags("--epochs", "3", "--stop_after_epoch", "2", "--task_matched", "true", "--output", str(one), *common),
    )
    assert run.code == 0, run.stderr[-3000:]
    assert run.left == []
    assert sorted(path.name for path in one.iterdir()) == [
        *(".lock", "Epoch01", "Epoch01_LXRT.pth", "Epoch02", "Epoch02_LXRT.pth"),
        *("config.yaml", "latest", "metrics.jsonl", "run.json"),
        *("zero_to_fp32.py", "zero_to_torch.py"),  # DeepSpeed's own, to read its shards
    ]
    [start_of_run] = read_starts(one / "run.json")
    assert {host: about["ranks"] for host, about in start_of_run["hosts"].items()} == {socket.gethostname(): [0, 1]}
    assert "deepspeed.launcher.runner" in start_of_run["command"]["launcher"]
    assert start_of_run["deepspeed"]["train_batch_size"] == 16
    records = read_metrics(one)
    assert [record["step"] for record in records] == [5, 10, 15, 20]
    expected = {"kind", "epoch", "step", "loss", "mask_lm_loss", "mask_lm_accuracy", "matched_loss", "matched_accuracy"}
    expected |= {"grad_norm", "lr", "sgd_lr", "loss_scale", "skipped_steps", "unreadable_images"}
    assert set(records[0]) == expected | set(TIMES)
    assert records[-1]["mask_lm_loss"] < records[0]["mask_lm_loss"]
    assert [record["epoch"] for record in read_metrics(one, "valid")] == [1, 2]
    check_original_keys(one / "Epoch02_LXRT.pth")

    run = launch(
        "launch/pretrain.py",
        [
            *flags("--recipe", "demo_stage_two", "--load", str(one / "Epoch02"), "--output", str(two)),
            *("--epochs", "1", *common),
        ],
        launcher="warm",
    )
    assert run.code == 0, run.stderr[-3000:]
    assert f"{one}/Epoch02: " in run.stdout
    assert "missing: answer_head" in run.stdout
    assert {"qa_loss", "qa_accuracy"} <= set(read_metrics(two)[-1])
    # Stage one's words are known: the first report of stage two lies below stage one's first.
    assert read_metrics(two)[0]["mask_lm_loss"] < records[0]["mask_lm_loss"]

    run = launch(
        "launch/pretrain.py",
        [
            *("--load", str(two / "Epoch01"), "--task_matched", "false", "--num_workers", "0", "--max_steps", "2"),
            *("--data_root", flags()[3], "--train", "mscoco_train", "--valid", "", "--output", str(tmp_path / "three")),
            *("--not_load_scheduler", *common),
        ],
        launcher="warm",
    )
    assert run.code == 0, run.stderr[-3000:]
    assert f"from {two}/Epoch01: --clip_model_name tiny, " in run.stdout
    assert "    the answer head stays as it is, as this training answers no questions" in run.stdout
    before, after = (Checkpoint(folder) for folder in (two / "Epoch01", tmp_path / "three" / "Step000002"))
    assert after.answers == before.answers
    ours, theirs = after.weights(), before.weights()
    changed = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    heads = {name for name in ours if name.startswith(("answer_head.", "cls.seq_relationship."))}
    assert ours.keys() == theirs.keys()
    assert heads
    assert not heads & changed
    assert "cls.predictions.transform.dense.weight" in changed


def test_a_library_that_reads_other_words_ends_a_run_with_one_line(flags: Flags, damaged: Path) -> None:
    """Before the annotations are read, so that no store keeps these words either."""
    run = launch("tests/workers/other_words_pretrain.py", flags("--data_root", str(damaged)), launcher="warm")
    assert run.code == 2
    [line] = run.stderr.strip().splitlines()
    libraries = f"transformers {transformers.__version__} with tokenizers {tokenizers.__version__}"
    words = "the words of 'Cab' with do_lower_case True, strip_accents None, tokenize_chinese_chars True"
    expected = f": error: {libraries} gives [6] for {words}, where the tested versions give [5]; a model would be "
    assert expected in line
    assert not (damaged / "cache").exists()


def check_original_keys(weights: Path) -> None:
    state = torch.load(weights, weights_only=True)
    names = ["bert.embeddings.word_embeddings.weight", "bert.encoder.visual_model.visual.layer1.0.downsample.0.weight"]
    names += ["bert.encoder.visn_fc.visn_fc.weight", "cls.predictions.decoder.weight", "bert.pooler.dense.bias"]
    names += ["bert.encoder.visual_pos.x_position_embedding.weight", "cls.seq_relationship.weight"]
    assert {f"module.{name}" for name in names} <= set(state)
    assert torch.equal(
        state["module.cls.predictions.decoder.weight"], state["module.bert.embeddings.word_embeddings.weight"]
    )
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in state.values())


def test_a_run_without_a_launcher_continues_a_checkpoint(flags: Flags, tmp_path: Path) -> None:
    """--load alone takes optimiser and schedule along: the rate goes on where it was."""
    common = flags("--batchSize", "8", "--epochs", "2", "--report_step", "1")
    first = launch("launch/pretrain.py", [*common, "--max_steps", "3"], ranks=1, launcher="warm")
    assert first.code == 0, first.stderr[-3000:]
    second = launch(
        "launch/pretrain.py",
        [
            *(*common, "--from_scratch", "false", "--load", str(tmp_path / "run" / "Step000003"), "--max_steps", "1"),
            *("--output", str(tmp_path / "more")),
        ],
        ranks=1,
        launcher="warm",
    )
    assert second.code == 0, second.stderr[-3000:]
    rates = [record["lr"] for record in read_metrics(tmp_path / "run") + read_metrics(tmp_path / "more")]
    assert rates == sorted(set(rates))  # the warm-up rises at each of the four steps
    assert len(rates) == 4


def test_another_run_may_have_larger_images_that_are_square(flags: Flags, tmp_path: Path) -> None:
    """Position tables and their moments come along, interpolated; a long sequence is padded, and trains."""
    common = flags("--batchSize", "8", "--report_step", "1", "--max_steps", "2")
    first = launch("launch/pretrain.py", common, ranks=1, launcher="warm")
    assert first.code == 0, first.stderr[-3000:]
    common += [
        "--image_size_min",
        "192",
        "--image_size_max",
        "192",
        "--max_seq_length",
        "32",
        "--long_captions",
        "window",
    ]
    common += [
        "--from_scratch",
        "false",
        "--load",
        str(tmp_path / "run" / "Step000002"),
        "--output",
        str(tmp_path / "more"),
    ]
    refused = launch("launch/pretrain.py", common, ranks=1, launcher="warm")
    assert "a grid of 6 x 6 cells, the position tables have 3 rows; raise --pos_num to 8" in refused.errors[0]
    second = launch("launch/pretrain.py", [*common, "--pos_num", "8"], ranks=1, launcher="warm")
    assert second.code == 0, second.stderr[-3000:]
    assert "position tables: 3 rows interpolated to 8" in second.stdout
    table = "module.bert.encoder.visual_pos.x_position_embedding.weight"
    before, after = (
        torch.load(tmp_path / run / "Step000002_LXRT.pth", weights_only=True)[table] for run in ("run", "more")
    )
    rates = [record["lr"] for record in read_metrics(tmp_path / "more")]
    assert len(rates) == 2
    moved = (after - resize_rows(before, 8)).abs().max()
    assert 0 < float(moved) < 3.2 * sum(rates)  # (1 - 0.9) / sqrt(1 - 0.999) is AdamW's longest step at rate 1


def test_unreadable_images_are_named_skipped_and_counted(flags: Flags, damaged: Path, tmp_path: Path) -> None:
    images = sorted((damaged / "mscoco" / "train2014").glob("*.jpg"))
    images[0].write_bytes(images[0].read_bytes()[:300])
    images[1].write_bytes(b"")
    images[2].write_text("no image")
    whole_epoch = ["--epochs", "1", "--batch_size", "4"]  # four sentences an image: no batch is left over
    run = launch(
        "launch/pretrain.py",
        flags("--data_root", str(damaged), *whole_epoch, "--max_unreadable_images", "20"),
        launcher="warm",
    )
    assert run.code == 0, run.stderr[-3000:]
    assert all(image.name in run.stdout + run.stderr for image in images[:3])
    assert read_metrics(tmp_path / "run")[-1]["unreadable_images"] == 12  # three images, four sentences each


def test_print_config_is_a_whole_recipe(tmp_path: Path) -> None:
    run = launch(
        "launch/pretrain.py",
        ["--recipe", "rn50_stage_one", "--fp16", "false", "--lr", "3e-5", "--print_config"],
        launcher="python",
    )
    assert run.code == 0, run.stderr[-3000:]
    printed = run.stdout[run.stdout.index("output:") :]
    values = yaml.safe_load("\n".join(line for line in printed.splitlines() if not line.startswith("[")))
    assert (values["lr"], values["epochs"], values["stop_after_epoch"]) == (3e-5, 20, 9)


def test_a_port_that_another_program_has_is_named(flags: Flags, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a second training that is started on a machine under the launcher's own default."""
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = str(other.getsockname()[1])
        places = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        for name, value in {**places, "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        run = launch("launch/pretrain.py", flags(), ranks=1, launcher="warm")
    assert run.code == 2, run.stderr[-3000:]
    assert len(run.errors) == 1
    for part in (f"port {port}", "taken by another program", "--master_port"):
        assert part in run.errors[0]


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_an_error_of_all_ranks_is_one_line(launcher: str) -> None:
    run = launch("launch/pretrain.py", ["--bacthSize", "8"], launcher=launcher)
    assert run.errors == ["pretrain.py: error: unknown flag --bacthSize; did you mean --batchSize?"]
    # torchrun has an exit code of its own, and tells of the failed rank in its own words.
    assert run.code == (2 if launcher == "deepspeed" else 1)
    assert 'pretrain.py", line' not in run.stderr
    assert run.seconds_after_error < 10
    assert run.left == []


@pytest.mark.slow
def test_an_error_of_one_rank_in_training_ends_all(flags: Flags, damaged: Path, tmp_path: Path) -> None:
    for image in sorted((damaged / "mscoco" / "train2014").glob("*.jpg")):
        image.write_bytes(image.read_bytes()[:400])
    few = ["--max_unreadable_images", "3", "--num_workers", "2"]
    run = launch("launch/pretrain.py", flags("--data_root", str(damaged), *few))
    assert run.code == 2
    assert len(run.errors) == 1
    assert "unreadable images, more than --max_unreadable_images 3" in run.errors[0]
    [start_of_run] = read_starts(tmp_path / "run" / "run.json")
    assert "unreadable images, more than --max_unreadable_images 3" in start_of_run["exit"]
    assert "Traceback" not in run.stderr
    assert run.seconds_after_error < 10
    assert run.left == []


@pytest.mark.slow
def test_spawned_workers_and_an_image_store_change_nothing(flags: Flags, scenes: Path, tmp_path: Path) -> None:
    img_ids = [path.stem for path in (scenes / "mscoco").glob("*/*.jpg")]
    assert len(img_ids) == 55
    write_image_store(tmp_path / "lmdb", img_ids, scenes, resize=None, quality=95, workers=0, progress=False)
    common = ["--num_workers", "1", "--batchSize", "8", "--max_steps", "3", "--report_step", "1"]
    other = ["--image_store", str(tmp_path / "lmdb"), "--worker_start_method", "spawn"]
    records = []
    for name, more, launcher in (("plain", [], "warm"), ("other", other, "python")):
        output = ["--output", str(tmp_path / name)]
        run = launch("launch/pretrain.py", flags(*common, *more, *output), ranks=1, launcher=launcher)
        assert run.code == 0, run.stderr[-3000:]
        assert run.left == []
        assert f"image_store: {other[1] if more else 'null'}" in (tmp_path / name / "config.yaml").read_text()
        records.append(
            [{key: record[key] for key in record if key not in TIMES} for record in read_metrics(tmp_path / name)]
        )
    assert [record["step"] for record in records[0]] == [1, 2, 3]
    assert {"loss", "mask_lm_accuracy", "grad_norm"} <= set(records[0][0])
    assert records[1] == records[0]


@pytest.mark.slow
def test_a_killed_launcher_leaves_nothing_and_the_next_start_finds_its_annotations(
    flags: Flags, scenes: Path, tmp_path: Path
) -> None:
    """SIGKILL, which gives it no time to end its ranks; the next training has the same port and cache."""
    root = Path(shutil.copytree(scenes, tmp_path / "scenes", ignore=shutil.ignore_patterns("cache")))
    before, port, output = in_shared_memory(), free_port(), tmp_path / "run"
    common = flags("--data_root", str(root), "--num_workers", "1", "--batchSize", "8", "--report_step", "1")

    process = start("launch/pretrain.py", [*common, "--epochs", "10000"], port=port)
    try:
        deadline = time.monotonic() + 90
        while not (output / "metrics.jsonl").exists() or not read_metrics(output):
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(session_members(process.pid)) >= 2 + 2 + 4  # launchers, ranks, workers of two loaders each
        process.kill()
        process.wait()
        deadline = time.monotonic() + 15
        while left := session_members(process.pid):
            assert time.monotonic() < deadline, f"{left} outlive their launcher"
            time.sleep(0.1)
    finally:
        for member in session_members(process.pid):
            os.kill(member, signal.SIGKILL)
        process.communicate()
    assert left_in_shared_memory(before) == set()
    stores = {path.name: path.stat().st_mtime_ns for path in (root / "cache").iterdir()}
    assert len(stores) == 2  # for training and for validation
    assert all(name.endswith(".store") for name in stores)

    # Its ranks took the loss of their launcher for a request to stop, and saved.
    [step] = [int(path.name[4:]) for path in output.glob("Step??????")]
    more = ["--epochs", "10000", "--resume", "auto", "--max_steps", str(step + 3)]
    run = launch("launch/pretrain.py", [*common, *more], port=port, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert run.left == []
    assert [record["step"] for record in read_metrics(output)] == list(range(1, step + 4))
    assert left_in_shared_memory(before) == set()
    assert {path.name: path.stat().st_mtime_ns for path in (root / "cache").iterdir()} == stores
