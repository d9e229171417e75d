"""--dry_run as a user starts it: it tells what a training would take, and leaves nothing behind."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import in_shared_memory, launch, left_in_shared_memory

Flags = Callable[..., list[str]]


def told(stdout: str) -> dict[str, str]:
    """The lines of the report, by their first word."""
    assert "nothing keeps this training from running" in stdout
    report = stdout.split("nothing keeps this training from running\n")[1]
    return {line[2:13].strip(): line[13:].strip() for line in report.splitlines() if line.startswith("  ")}


@pytest.mark.slow
def test_it_measures_and_leaves_nothing_behind(flags: Flags, tmp_path: Path) -> None:
    before = in_shared_memory()
    some = ["--batchSize", "4", "--gradient_accumulation_steps", "2", "--num_workers", "1", "--keep", "2"]
    run = launch("launch/pretrain.py", flags(*some, "--find_batch_size", "--memory_limit", "4"), launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert os.listdir(tmp_path) == []
    assert left_in_shared_memory(before) == set()
    assert "batch_size: 4\n" in run.stdout  # the recipe
    assert '"train_batch_size": 16,' in run.stdout  # and DeepSpeed's configuration
    report = told(run.stdout)
    assert report["batch"].startswith("4 x 2 x 2 = 16 samples per step")
    assert report["all of it"].startswith("30 steps, 3 checkpoints and 3 epochs: ")  # 160 sentences / 16, three times
    assert re.match(r"[\d.e-]+ s, the median of \d+; \d+% of the time is spent waiting for data$", report["step"])
    memory = (
        r"0\.\d+ GB at its peak, on rank [01], of 4 GB \(of the process\), with batches of broad and of high images"
    )
    assert re.fullmatch(memory, report["memory"])
    assert re.match(r"[\d.e-]+ GB in [\d.e-]+ s, for [\d.e-]+ s of which", report["checkpoint"])
    assert re.match(r"[\d.e-]+ s each$", report["validation"])
    assert re.match(r"[\d.e-]+ GB of the [\d.e+]+ GB free", report["disk"])
    samples = re.match(r"--micro_batch_size (\d+), with 0\.\d+ GB", report["would fit"])
    assert samples is not None
    assert int(samples[1]) > 64  # all 160 sentences, or as many as 4 GB take


@pytest.mark.slow
def test_a_training_that_takes_more_memory_than_there_is_is_refused(flags: Flags, tmp_path: Path) -> None:
    """By measurement: what is counted is a hundredth of what Python and torch take of a CPU's memory."""
    run = launch(
        "launch/finetune_vqa.py", vqa(flags, "--memory_limit", "0.2", "--max_steps", "4"), ranks=1, launcher="warm"
    )
    assert run.code == 2
    [error] = run.errors
    assert re.search(r"rank 0 took 0\.\d+ GB, more than the 0\.2 GB that there are; lower --batch_size 4", error)
    assert told(run.stdout)["memory"].endswith("of 0.2 GB (of the process), with batches of broad and of high images")
    assert os.listdir(tmp_path) == []


def vqa(flags: Flags, *more: str) -> list[str]:
    """The same small data, fine-tuned from random weights."""
    common = flags("--batchSize", "4", "--from_scratch", "true", "--load_lxmert_qa", "", "--dry_run", *more)
    return ["--recipe", "demo_vqa", *common[2:]]


def test_it_goes_on_from_a_run_and_leaves_that_as_it_is(flags: Flags, tmp_path: Path) -> None:
    started = launch("launch/pretrain.py", flags("--max_steps", "2", "--report_step", "1"), ranks=1, launcher="warm")
    assert started.code == 0, started.stderr[-3000:]
    before = {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").rglob("*"))}
    run = launch(
        "launch/pretrain.py", flags("--resume", "auto", "--dry_run", "--max_steps", "4"), ranks=1, launcher="warm"
    )
    assert run.code == 0, run.stderr[-3000:]
    assert "nothing keeps this training from running" in run.stdout
    assert {path: path.stat().st_mtime_ns for path in sorted((tmp_path / "run").rglob("*"))} == before
