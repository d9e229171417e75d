"""Whole trainings as a person sees them: on a terminal of 60 columns, in a pipe, stopped by gradients."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, environment, fp16_flags, launch, read_metrics

Flags = Callable[..., list[str]]


def on_a_terminal(arguments: list[str], columns: int, **variables: str) -> str:
    """What a program shows there."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, *arguments],
        **{"cwd": ROOT, "stdin": slave, "stdout": slave, "stderr": slave},
        env={**environment(), **variables},
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:  # nobody has the other end any more
        pass
    os.close(master)
    assert process.wait(60) == 0, shown.decode()[-3000:]
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.slow
def test_a_narrow_terminal_has_a_live_line_and_no_wrapped_reports(flags: Flags) -> None:
    """Two epochs with validations, whose bars come and go."""
    common = ["--batchSize", "16", "--report_step", "2", "--epochs", "2", "--task_matched", "true"]
    arguments = ["launch/pretrain.py", *flags(*common)]
    shown = on_a_terminal(arguments, 60, TERM="xterm", NO_COLOR="1", COLUMNS="60")
    assert "\x1b[3" not in shown  # colours; \x1b[A, one line up, is the validation's bar
    parts = shown.replace("\r", "\n").replace("\x1b[A", "").split("\n")
    assert any(part.startswith("step 20/20 | loss ") and part.rstrip().endswith(" left") for part in parts)
    reports = [number for number, part in enumerate(parts) if part.startswith("train: ")]
    assert len(reports) == 10
    for number in reports:
        assert parts[number + 1].startswith("  ")
    named = [part for part in parts if part.startswith(("train:", "valid:", "  ", "step", "epoch"))]
    assert [part for part in named if len(part) > 60] == []
    assert "done after step 20" in shown
    assert "\nbest validation: loss " in shown


def test_gradients_that_are_not_finite_end_a_run_that_is_to_stop_on_them(flags: Flags, tmp_path: Path) -> None:
    """Without the flag the loss scale, which is far too high here, falls until they are."""
    fp16 = fp16_flags(tmp_path)
    path = Path(fp16[-1])
    settings = json.loads(path.read_text())
    settings["fp16"]["initial_scale_power"] = 24
    path.write_text(json.dumps(settings))
    common = [*fp16, "--batchSize", "8", "--max_steps", "2", "--report_step", "1"]
    worker = "tests/workers/fp16_pretrain.py"
    run = launch(worker, flags(*common, "--stop_on", "nonfinite"), ranks=1, launcher="warm")
    assert run.code == 2, run.stderr[-3000:]
    [error] = run.errors
    assert "the gradients are not finite, and the loss scale is now 8.38861e+06, after 1 skipped steps: " in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    run = launch(worker, flags(*common), ranks=1, launcher="warm")
    assert run.code == 0, run.stderr[-3000:]
    assert [record["skipped_steps"] for record in read_metrics(tmp_path / "run")] == [1, 2]
    assert "\r" not in run.stdout + run.stderr
    assert "\x1b" not in run.stdout + run.stderr
    assert "tiny and 1 layer of 32, " in run.stdout
    assert "160 sentences of 40 images; 1 rank on cpu with 1 thread a rank, fp16, kernels of " in run.stdout
    assert "\nnext: python launch/pretrain.py --recipe demo_stage_two --load " in run.stdout
