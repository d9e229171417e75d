"""Being asked to stop."""

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch

from engine.model.metrics import MetricSums
from engine.tasks.task import Judge
from engine.training.observers.validator import Validator
from tests.conftest import ROOT

PROGRAM = """
import signal, subprocess, sys, time
if "nohup" in sys.argv:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
from engine.training.preemption import Preemption
preemption = Preemption(grace=float(sys.argv[1]))
subprocess.run(["true"])  # a SIGCHLD is no request
time.sleep(0.2)
print(preemption.received, flush=True)
while preemption.received is None or sys.argv[1] == "0.5":
    time.sleep(0.05)
print(preemption.received)
"""


def run(grace: str, *numbers: int, more: Sequence[str] = ()) -> "tuple[subprocess.Popen[str], str]":
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, grace, *more],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "None\n"
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.2)  # else one may take the other's place
    printed, errors = process.communicate(timeout=20)
    return process, printed + errors


def test_a_request_to_save_is_noted_beside_one_to_stop() -> None:
    """SIGUSR2 asks for a checkpoint, and the run goes on; what comes behind it is still heard."""
    preemption = "from engine.training.preemption import Preemption\npreemption = Preemption()\n"
    program = f"""
import os, signal, time
{preemption}
os.kill(os.getpid(), signal.SIGUSR2)
print(preemption.save_asked.wait(10), preemption.received)
preemption.save_asked.clear()
os.kill(os.getpid(), signal.SIGTERM)
while preemption.received is None:
    time.sleep(0.01)
print(preemption.save_asked.is_set(), preemption.received)
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=20)
    assert run.stdout == "True None\nFalse SIGTERM\n", run.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT])
def test_a_signal_is_noted_and_ends_nothing_by_itself(number: int) -> None:
    process, printed = run("60", number)
    assert process.returncode == 0
    name = signal.Signals(number).name
    again = "; Ctrl-C again ends it at once" if number == signal.SIGINT else ""
    assert printed == f"{name}\n{name}: the training ends its step, saves and stops{again}\n"


def test_a_second_ctrl_c_ends_at_once() -> None:
    """The program wouldn't end by itself. SIGTERM, which launchers send behind the first, isn't a second one."""
    process, printed = run("0.5", signal.SIGINT, signal.SIGTERM, signal.SIGINT)
    assert process.returncode == 130
    assert printed.splitlines()[-1] == "Ctrl-C again: ended at once, without a checkpoint"


def test_what_nohup_has_a_program_ignore_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """But torchrun ends its ranks on it, so that they have to save."""
    process, printed = run("60", signal.SIGHUP, signal.SIGTERM, more=["nohup"])
    assert process.returncode == 0
    assert printed.splitlines()[0] == "SIGTERM"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    process, printed = run("60", signal.SIGHUP, more=["nohup"])
    assert printed.splitlines()[0] == "SIGHUP"


def test_who_does_not_come_to_an_end_is_ended() -> None:
    started = time.monotonic()
    process, printed = run("0.5", signal.SIGTERM)
    assert process.returncode == 1
    assert "after SIGTERM; giving up" in printed
    assert time.monotonic() - started < 15


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, number: int) -> SimpleNamespace:
        self.calls += 1
        return SimpleNamespace(metrics=MetricSums(("mask_lm_loss",), torch.tensor([[number, 1.0]])))


class Batch:
    def __init__(self, number: int) -> None:
        self.inputs = {"number": number}

    def to(self, device: torch.device) -> "Batch":
        return self


@pytest.mark.parametrize("signal_at", [None, 2])
def test_a_signal_cuts_a_validation_short(signal_at: int | None) -> None:
    """What it would have told is left to the resumed run, which validates again."""
    preemption = SimpleNamespace(received=None)
    saver = SimpleNamespace(preemption=preemption, stop_requested=False)
    saver.agree = lambda: setattr(saver, "stop_requested", preemption.received is not None)
    records: list[dict] = []
    reporter = SimpleNamespace(
        engine=SimpleNamespace(module=Model(), global_rank=1),
        tell=lambda record, text: records.append(record),
        count_unreadable=lambda batch: None,
        validated=(0, 0),
        pace=SimpleNamespace(start=lambda: None),
    )

    def batches():
        for number in range(5):
            if number == signal_at:
                preemption.received = "SIGTERM"
            yield Batch(number)

    Validator(reporter, saver, batches(), Judge()).after_epoch(SimpleNamespace(epoch=0, step=7))
    assert reporter.engine.module.calls == (5 if signal_at is None else 2)
    assert records == (
        [{"kind": "valid", "epoch": 1, "step": 7, "loss": 2.0, "mask_lm_loss": 2.0}] if signal_at is None else []
    )
