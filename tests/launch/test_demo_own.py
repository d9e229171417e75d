"""`make demo-own`, small: from drawn photos to a model that a process without this checkout loads."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch.demo_own import other_packages
from tests.conftest import ROOT, environment

SMALL = ["--train_scenes", "40", "--valid_scenes", "5", "--sentences_per_scene", "4"]


@pytest.mark.slow
def test_photos_become_a_model_that_others_load(tmp_path: Path) -> None:
    """In two steps it learns next to nothing, so what it says doesn't count, but that every part is there does."""
    if not os.environ.get("CLIPVIL_DEMOS"):
        pytest.skip("two minutes; set CLIPVIL_DEMOS=1")
    data, output = tmp_path / "my data", tmp_path / "my runs"
    command = [sys.executable, str(ROOT / "launch" / "demo_own.py"), *SMALL, "--data_root", str(data)]
    command += ["--output", str(output), "--training", "--max_steps 2 --num_workers 0"]
    variables = {**environment(), "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    run = subprocess.run(command, env=variables, capture_output=True, text=True, check=False, timeout=400)
    assert run.returncode == 0, run.stderr[-3000:]
    assert len([line for line in run.stdout.splitlines() if line.startswith("$ ")]) == 5
    assert f"problem: {data}/photos/cut off.jpg: " in run.stdout
    summary = json.loads((output / "summary.json").read_text())
    tasks = ("masked_word_accuracy", "qa_accuracy")
    assert summary.keys() == {*tasks, *(f"{task}_blind" for task in tasks), "seconds"}
    assert all(0 <= summary[task] <= 1 for task in tasks)
    assert (output / "photos.jpg").stat().st_size > 10_000
    filled, answered = [line for line in run.stdout.splitlines() if " -> " in line][-2:]
    assert "[MASK]" in filled
    assert answered.split(" -> ")[1] in {entry["ans"] for entry in json.loads((data / "answers.json").read_text())}


def test_who_asks_elsewhere_finds_the_packages_but_not_this_checkout() -> None:
    code = "from importlib.util import find_spec as find; print(*map(bool, map(find, ('transformers', 'engine'))))"
    variables = {**os.environ, **other_packages()}
    command = [sys.executable, "-S", "-c", code]
    run = subprocess.run(command, env=variables, cwd="/", capture_output=True, text=True, check=False)
    assert run.stdout.split() == ["True", "False"], run.stderr
