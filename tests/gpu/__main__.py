"""Everything that a GPU has to show, in one command: under eight minutes on an H100.

    make gpu                                               in the project's environment
    make gpu PYTHON=python3 WHEELS=.whl OUT=results        with the packages of that Python, and wheels from a folder
    make gpu DEVICE=cpu SMALL=1                            rehearses every part on a CPU, under five minutes

Parts run one after the other, each with a limit of its own. What a part found is in OUT before the next begins, and
whatever becomes of it, the others run:

    summary.txt     a line per part: what is printed at the end
    results.json    the figures of all parts, by their names
    log.txt         all that they printed
    kernels.png     times of the kernels beside other ways
    trace.json.gz   one step of training, for chrome://tracing or Perfetto

This program needs nothing but Python; the parts need what it installs from WHEELS, in a folder that goes when it ends.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from tests.gpu.parts import ROOT, Part, figures_file, make_parts

KILL_AFTER = 5.0  # seconds, from SIGTERM
KEPT_OUTPUT = 60_000  # bytes of a part's output that go to the log, the last ones


@dataclass
class Run:
    """Where parts run and what became of them."""

    out: Path
    scratch: Path
    deadline: float  # of time.monotonic()
    environment: dict[str, str]
    results: dict[str, Any] = field(default_factory=dict)
    failed: int = 0

    def run(self, part: Part) -> None:
        """Run a part, and write down what became of it."""
        started = time.monotonic()
        state, last = ("left out", part.left_out) if part.left_out else self._run_commands(part)
        found, figures = self._read(part)
        seconds = time.monotonic() - started
        self.failed += state not in ("passed", "left out")
        told = figures if state == "passed" and figures else "; ".join(text for text in (last, figures) if text)
        line = f"{part.name:<16}{state:<10}{seconds:5.0f} s  {told}"
        print(line, flush=True)
        self._write("summary.txt", line + "\n")
        self.results[part.name] = {"state": state, "seconds": round(seconds, 1), "told": told, "figures": found}
        self._write("results.json", json.dumps(self.results, indent=1) + "\n", mode="w")

    def _write(self, name: str, text: str, mode: str = "a") -> None:
        try:
            with (self.out / name).open(mode) as file:
                file.write(text)
        except OSError as error:  # what comes is still printed
            print(f"gpu: {self.out / name} can't be written: {error.strerror}", file=sys.stderr)

    def _read(self, part: Part) -> tuple[Any, str]:
        """A part's figures, and what it says of them; a part that was ended may have written some of them only."""
        try:
            found = json.loads(figures_file(self.scratch, part.name).read_text())
        except (OSError, ValueError):
            return None, ""
        try:
            return found, part.tell(found)
        except (LookupError, TypeError):
            return found, ""

    def _run_commands(self, part: Part) -> tuple[str, str]:
        """Its state, and the last line that it printed."""
        ends = min(time.monotonic() + part.seconds, self.deadline)
        last = ""
        for command in part.commands:
            left = ends - time.monotonic()
            if left <= 0:
                return "no time", f"{len(part.commands)} commands, not all were begun"
            code, output = self._call(command, left)
            lines = [line.strip() for line in output.replace("\r", "\n").splitlines() if line.strip()]
            last = lines[-1][:150] if lines else ""
            if code is None:
                return "too long", f"ended after {left:.0f} s: {last}"
            if code != 0:
                return "FAILED", f"code {code}: {last}"
        return "passed", last

    def _call(self, command: Sequence[str], seconds: float) -> tuple[int | None, str]:
        """Exit code, None for one that took too long, and output; nothing of it runs on."""
        with (self.scratch / "output").open("w+b") as output:
            try:
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=self.environment,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                return 127, f"{command[0]}: {error.strerror}"
            code: int | None = None
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            finally:
                end_group(process)
            text = last_bytes(output, KEPT_OUTPUT)
        self._write("log.txt", f"\n$ {' '.join(command)}\n{text}\nexit code {code}\n")
        return code, text


def end_group(process: "subprocess.Popen[bytes]") -> None:
    """End what is left of a command: SIGTERM first, so that it can tidy up."""
    for number, patience in ((signal.SIGTERM, KILL_AFTER), (signal.SIGKILL, KILL_AFTER)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        ends = time.monotonic() + patience
        while time.monotonic() < ends:
            process.poll()
            try:
                os.killpg(process.pid, 0)
            except ProcessLookupError:
                return
            time.sleep(0.05)


def last_bytes(file: IO[bytes], size: int) -> str:
    """The end of a file, each line of a progress bar as it was left."""
    file.seek(max(0, file.seek(0, os.SEEK_END) - size))
    text = file.read().decode(errors="replace")
    return "\n".join(line.rsplit("\r", 1)[-1] for line in text.replace("\r\n", "\n").split("\n"))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="the smallest sizes: a rehearsal")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="folder of wheels to install; nothing is downloaded")
    parser.add_argument("--out", type=Path, default=Path("snap/gpu"), metavar="DIR", help="folder for what is found")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts together")
    parser.add_argument("--only", default="", metavar="NAMES", help="these parts, with commas between them")
    return parser.parse_args()


def problem(options: argparse.Namespace) -> str | None:
    """What keeps all parts from running, told before the first begins."""
    if options.wheels is not None and not any(options.wheels.glob("*.whl")):
        return f"--wheels {options.wheels} holds no wheels; `make wheels` fills such a folder where there is a network"
    try:
        with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname(), 1):
            pass
    except OSError as error:
        return (
            f"127.0.0.1 can't be reached ({error}), which torch.distributed needs; after unshare -n: ip link set lo up"
        )
    if options.device == "cuda":
        finds_gpu = [sys.executable, "-c", "import torch; torch.zeros(1, device='cuda')"]
        found = subprocess.run(finds_gpu, capture_output=True, text=True)
        if found.returncode != 0:
            *_, reason = found.stderr.strip().splitlines() or ["no reason given"]
            return f"PyTorch of {sys.executable} can't use a GPU ({reason}); DEVICE=cpu SMALL=1 rehearses without one"
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name in ("summary.txt", "log.txt"):
            (options.out / name).write_text("")
    except OSError as error:
        return f"--out {options.out} can't be written: {error.strerror}"
    return None


def main() -> int:
    options = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # a part that runs ends with this program
    if (reason := problem(options)) is not None:
        print(f"gpu: error: {reason}", file=sys.stderr)
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="clipvil-gpu-") as scratch:
        path = [f"{scratch}/site", str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "TOKENIZERS_PARALLELISM": "false"}
        environment |= {"DS_ACCELERATOR": options.device, "TMPDIR": scratch}  # which a part that is ended leaves full
        if options.small:
            environment["OMP_NUM_THREADS"] = "1"  # more gain nothing, and wait for each other where others compute
        run = Run(options.out.resolve(), Path(scratch), started + 60 * options.minutes, environment)
        parts = make_parts(options, run.out, run.scratch)
        chosen = [name.strip() for name in options.only.split(",") if name.strip()] or [part.name for part in parts]
        if unknown := set(chosen) - {part.name for part in parts}:
            print(
                f"gpu: error: --only {', '.join(unknown)}: the parts are {', '.join(p.name for p in parts)}",
                file=sys.stderr,
            )
            return 2
        for part in parts:
            if part.name in ("packages", *chosen):
                run.run(part)
    print(f"\n{(options.out / 'summary.txt').read_text()}")
    print(
        f"{run.failed} parts failed" if run.failed else "all parts passed",
        f"in {time.monotonic() - started:.0f} s;",
        options.out,
    )
    return 1 if run.failed else 0


if __name__ == "__main__":
    sys.exit(main())
