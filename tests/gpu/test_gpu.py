"""The command itself: what becomes of parts that fail, hang, or lack something, and a whole rehearsal on the CPU."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.benchmark.step.__main__ import parse
from engine.benchmark.step.parts import PARTS
from engine.benchmark.step.run import Benchmark
from tests.conftest import ROOT, session_members
from tests.gpu import __main__ as program
from tests.gpu.__main__ import Run
from tests.gpu.parts import Part, figures_file, make_parts

STEP_KEYS = {
    *("step_ratio_to_baseline", "memory_ratio_to_baseline", "images_per_second", "mfu", "parts", "ablation"),
    *("versions", "device_name", "kernel_launches", "data_wait", "flops_per_step", "backbone_gb", "peak_gb"),
}


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    for name in ("out", "scratch"):
        (tmp_path / name).mkdir()
    return Run(tmp_path / "out", tmp_path / "scratch", time.monotonic() + 60, dict(os.environ))


def told(run: Run) -> list[str]:
    return (run.out / "summary.txt").read_text().splitlines()


def test_a_part_that_fails_hides_no_other(run: Run) -> None:
    write = f"import pathlib; pathlib.Path({str(figures_file(run.scratch, 'last one'))!r}).write_text('[7]')"
    run.run(Part("broken", 20, [python("print('a kernel is wrong'); raise SystemExit(3)"), python("print('not run')")]))
    run.run(Part("no program", 20, [["/nowhere/program"]]))
    figures_file(run.scratch, "half").write_text('{"checks": {}}')
    run.run(Part("half", 20, [python("print('ended early')")], lambda figures: figures["not there yet"]))
    run.run(Part("last one", 20, [python(write)], lambda figures: f"the figure is {figures[0]}"))
    lines = told(run)
    assert "FAILED" in lines[0]
    assert lines[0].endswith("code 3: a kernel is wrong")
    assert "FAILED" in lines[1]
    assert "/nowhere/program" in lines[1]
    assert lines[2].endswith("ended early")
    assert "passed" in lines[3]
    assert lines[3].endswith("the figure is 7")
    assert run.failed == 2
    results = json.loads((run.out / "results.json").read_text())
    assert results["last one"]["figures"] == [7]
    assert "not run" not in (run.out / "log.txt").read_text().replace("print('not run')", "")


def test_a_part_that_hangs_is_ended_with_its_children(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it had written before counts."""
    monkeypatch.setattr(program, "KILL_AFTER", 1.0)
    path = figures_file(run.scratch, "hangs")
    code = f"""
import os, pathlib, signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pathlib.Path({str(path)!r}).write_text('{{"steps": 5}}')
print("five steps", flush=True)
child = subprocess.Popen(["sleep", "600"])
pathlib.Path({str(path) + ".pid"!r}).write_text(str(os.getpid()))
child.wait()
"""
    started = time.monotonic()
    run.run(Part("hangs", 2, [python(code)], lambda figures: f"{figures['steps']} steps"))
    assert time.monotonic() - started < 15
    assert "too long" in told(run)[0]
    assert told(run)[0].endswith("ended after 2 s: five steps; 5 steps")
    assert session_members(int(Path(f"{path}.pid").read_text())) == []


def test_no_part_begins_when_all_time_is_used(run: Run) -> None:
    run.deadline = time.monotonic() - 1
    run.run(Part("late", 20, [python("print('ran')")]))
    run.run(Part("not here", 20, [], left_out="no compute-sanitizer"))
    assert "no time" in told(run)[0]
    assert "left out" in told(run)[1]
    assert run.failed == 1


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    """With -S there are no installed packages, as if all wheels were missing."""
    found = subprocess.run([sys.executable, "-S", "-m", "tests.gpu.packages"], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 1
    assert found.stdout.startswith("missing: torch, triton, deepspeed")
    none = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--wheels", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert none.returncode == 2
    assert none.stderr.startswith(f"gpu: error: --wheels {tmp_path} holds no wheels")


def test_a_rehearsal_looks_for_a_batch_that_a_cpu_is_soon_done_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its --memory_gb has to go down with what the engine needs: hundreds of images took longer than the part may."""
    options = argparse.Namespace(device="cpu", small=True, wheels=None)
    parts = {part.name: part for part in make_parts(options, tmp_path, tmp_path)}
    _python, _m, _module, *flags = parts["step largest"].commands[0]
    monkeypatch.setattr(Benchmark, "fits", lambda *_: True)
    assert 2 <= Benchmark(parse(flags), torch.device("cpu")).largest() <= 32


def check_step(report: dict[str, Any]) -> None:
    """The JSON of python -m engine.benchmark.step, and that its figures follow from one another."""
    assert report.keys() >= STEP_KEYS
    assert set(report["parts"]) == set(report["baseline_parts"]) == set(PARTS)
    assert all(seconds > 0 for seconds in report["parts"].values())
    assert report["step_ratio_to_baseline"] == report["baseline_step_seconds"] / report["step_seconds"]
    assert report["images_per_second"] == report["batch"] / report["step_seconds"]
    assert report["predicted_to_measured_peak"] == pytest.approx(1, abs=0.15)
    ablation = report["ablation"]
    assert ablation["uint8_images"].keys() == {"engine", "step_seconds", "step_ratio", "memory_ratio"}
    assert ablation.keys() >= {"sdpa", "channels_last", "no_throughput_timer"}


@pytest.mark.slow
def test_the_rehearsal_passes(tmp_path: Path) -> None:
    """On the CPU. Left out are the kernels' tests and benchmark, which have tests of their own, and repeated parts."""
    parts = ["ONLY=machine,sanitizer,parity,training,step"]
    command = ["make", "gpu", "DEVICE=cpu", "SMALL=1", f"OUT={tmp_path}", f"PYTHON={sys.executable}", *parts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout[-3000:] + (tmp_path / "log.txt").read_text()[-6000:]
    results = json.loads((tmp_path / "results.json").read_text())
    assert all(part["state"] == "passed" for part in results.values()), done.stdout
    assert results["training"]["figures"]["checks"]["resumed, it reports the same"]["holds"]
    check_step(results["step"]["figures"])
    assert len(list(tmp_path.iterdir())) <= 8
