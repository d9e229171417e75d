"""The real program as a user starts it: trained in fp16, validated, stopped by SIGTERM, and resumed.

    python -m tests.gpu.training --json training.json           full RN50 and 12 layers, random weights, 60 steps
    python -m tests.gpu.training --small --json training.json   a tiny model, also on a CPU that says it supports fp16

One training runs undisturbed under deepspeed's launcher. A second, the same but for its folder, gets SIGTERM and goes
on with --resume auto; its reports have to be those of the first, digit by digit.
"""

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import BertConfig

from engine.synthetic.demo import write_demo

ROOT = Path(__file__).resolve().parents[2]
# Of a report, what differs from run to run.
SPEEDS = ("images_per_second", "samples_per_second", "seconds_per_step", "seconds_left", "data_wait", "peak_memory_gb")
TIMES = ("time", "seconds", *SPEEDS)
TINY_BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


class Program:
    """launch/pretrain.py on drawn scenes, an epoch of `steps` steps."""

    def __init__(self, folder: Path, *, small: bool, steps: int) -> None:
        on_cpu = os.environ.get("DS_ACCELERATOR") == "cpu"
        self.folder, self.steps = folder, steps
        self.script = ROOT / ("tests/workers/fp16_pretrain.py" if on_cpu else "launch/pretrain.py")
        batch = 4 if small else 32
        write_demo(folder / "data", train_scenes=steps * batch // 4, valid_scenes=8 if small else 40, seed=1)
        shutil.copytree(folder / "data" / "bert", folder / "bert")
        words = len((folder / "bert" / "vocab.txt").read_text().splitlines())
        bert = BertConfig(vocab_size=words, **TINY_BERT) if small else BertConfig()
        bert.save_pretrained(folder / "bert")
        recipe = "demo_stage_one" if small else "rn50_stage_one"
        self.flags = ["--recipe", recipe, "--data_root", str(folder / "data"), "--bert", str(folder / "bert")]
        self.flags += ["--train", "mscoco_train", "--valid", "mscoco_minival", "--fromScratch", "--fp16", "true"]
        self.flags += ["--batch_size", str(batch), "--gradient_accumulation_steps", "1", "--epochs", "1"]
        self.flags += ["--schedule", "1", "--report_step", "1", "--keep", "1", "--deterministic"]
        self.flags += ["--num_workers", "1" if small else "8"]

    def start(self, name: str, *more: str, launcher: bool) -> "subprocess.Popen[bytes]":
        begin = [sys.executable, *(["-m", "deepspeed.launcher.runner", "--num_gpus", "1"] if launcher else [])]
        command = [*begin, str(self.script), *self.flags, "--output", str(self.folder / name), *more]
        print("$", *command, flush=True)
        return subprocess.Popen(command, cwd=ROOT)

    def reports(self, name: str, kind: str = "train") -> list[dict[str, Any]]:
        path = self.folder / name / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [record for line in lines if (record := json.loads(line))["kind"] == kind]

    def stop_at(self, name: str, process: "subprocess.Popen[bytes]", step: int) -> int:
        """SIGTERM once a step has been reported; gives the exit code."""
        while process.poll() is None and len(self.reports(name)) < step:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        return process.wait()


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in TIMES}


def fifths(values: list[float]) -> tuple[float, float]:
    """Means of the first and of the last fifth."""
    size = max(1, len(values) // 5)
    return statistics.mean(values[:size]), statistics.mean(values[-size:])


class Findings:
    """Figures, and what has to hold with what was found; printed and written as they come."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.figures: dict[str, Any] = {}
        self.checks: dict[str, dict[str, Any]] = {}

    def add(self, name: str, holds: bool, found: str) -> bool:
        self.checks[name] = {"holds": holds, "found": found}
        print(f"{name:32}{'yes' if holds else 'NO':5}{found}", flush=True)
        if self.path:
            self.path.write_text(json.dumps({"checks": self.checks, **self.figures}, indent=1) + "\n")
        return holds

    @property
    def failed(self) -> int:
        return sum(not check["holds"] for check in self.checks.values())


def train_whole(program: Program, findings: Findings) -> list[dict[str, Any]]:
    """Its reports; none if it failed."""
    code = program.start("whole", launcher=True).wait()
    reports, valid = program.reports("whole"), program.reports("whole", "valid")
    if not findings.add("trains to its end", code == 0 and len(reports) == program.steps, f"code {code}"):
        return []
    late = reports[-len(reports) // 3 :]
    scale, skipped = late[-1]["loss_scale"], late[-1]["skipped_steps"]
    findings.figures = {
        **{name: [report[name] for report in reports] for name in ("loss", "loss_scale", "grad_norm")},
        "images_per_second": statistics.median(report["images_per_second"] for report in late),
        "validation": {key: value for report in valid for key, value in report.items() if isinstance(value, float)},
    }
    first, last = fifths([report["loss"] for report in reports])
    findings.add("losses fall", last < first, f"{first:.3f} to {last:.3f}")
    settled = scale >= 1 and skipped == late[0]["skipped_steps"]
    findings.add("loss scale settles", settled, f"{scale:g}, {skipped} steps skipped in all")
    findings.add(
        "validates", len(valid) == 1, f"loss {valid[0]['loss']:.3f}" if valid else "no validation was reported"
    )
    return reports


def stop_and_resume(program: Program, reports: list[dict[str, Any]], findings: Findings) -> None:
    code = program.stop_at("stopped", program.start("stopped", launcher=False), step=2)
    stopped = len(program.reports("stopped"))
    findings.add("SIGTERM saves and ends with 0", code == 0 and 0 < stopped < program.steps, f"after step {stopped}")
    until = min(program.steps, stopped + 5)
    code = program.start("stopped", "--resume", "auto", "--max_steps", str(until), launcher=False).wait()
    again = program.reports("stopped")
    pairs = zip(map(without_times, again), map(without_times, reports), strict=False)
    differing = [(ours, theirs) for ours, theirs in pairs if ours != theirs]
    found = f"code {code}, {len(again)} reports, {len(differing)} differ"
    for ours, theirs in differing[:1]:
        found += f"; at step {ours['step']} losses {ours['loss']!r} and {theirs['loss']!r}"
    findings.add("resumed, it reports the same", code == 0 and len(again) == until and not differing, found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, help="60, with --small 8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    steps = options.steps or (8 if options.small else 60)
    findings = Findings(options.json)
    with tempfile.TemporaryDirectory(prefix="clipvil-gpu-training-") as folder:
        program = Program(Path(folder), small=options.small, steps=steps)
        reports = train_whole(program, findings)
        if reports:
            stop_and_resume(program, reports, findings)
    return 1 if findings.failed else 0


if __name__ == "__main__":
    sys.exit(main())
