"""Whether the engine works on every version of its libraries that setup.py allows: about 40 minutes on two cores.

    make test-versions                        all combinations of tests/versions/combinations.py
    make test-versions ONLY=lowest,newest     some of them

uv makes a fresh environment for each, with the libraries that setup.py names and its extra `dev`. The checks run in it
one after the other: the numbers of the original, ten steps on two ranks with a resume, and the quick tests of kernels/
and engine/. A combination takes up to 8 GB while it is tried, since PyPI's builds of torch are for GPUs. What was found
is in snap/versions, or --out DIR, before the next one begins:

    versions.json     by combination: its versions, and for each check whether it passed and its last line
    versions.md       the same as the table of docs/versions.md
    NAME.log          all that was printed

Combinations that aren't tried keep what versions.json says of them.
"""

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from tests.versions.combinations import COMBINATIONS, Combination

ROOT = Path(__file__).resolve().parents[2]
CHECKS = {
    "parity": ["-m", "tests.parity", "tests/golden"],
    "two ranks, resumed": ["-m", "tests.versions.training"],
    "tests": ["-m", "pytest", "-n", "2", "-m", "not slow and not gpu", "tests/kernels", "tests/engine"],
}
MINUTES = 15  # for one command
TOLD = ("torch", "triton", "deepspeed", "transformers", "tokenizers", "numpy")
VERSIONS = (
    "import importlib.metadata as m, json; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"
)


@dataclass
class Environment:
    """A fresh one, with the versions of a combination."""

    folder: Path
    log: IO[str]

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def call(self, command: Sequence[str]) -> tuple[bool, str]:
        """Run a command at the checkout's root: whether it passed, and the last line that it printed."""
        self.log.write(f"\n$ {' '.join(command)}\n")
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        variables |= {"DS_ACCELERATOR": "cpu", "UV_LINK_MODE": "hardlink"}
        try:
            ended = subprocess.run(
                command,
                cwd=ROOT,
                env=variables,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=60 * MINUTES,
            )
        except subprocess.TimeoutExpired:
            return False, f"took longer than {MINUTES} minutes"
        self.log.write(ended.stdout)
        self.log.flush()
        lines = [line.strip() for line in ended.stdout.splitlines() if line.strip()]
        return ended.returncode == 0, lines[-1] if lines else f"exit code {ended.returncode}"

    def make(self, combination: Combination) -> tuple[bool, str]:
        constraints = self.folder.with_suffix(".txt")
        constraints.write_text("\n".join([*combination.constraints, *(pins() if combination.pinned else [])]) + "\n")
        made = self.call(["uv", "venv", "--clear", "--python", combination.python, str(self.folder)])
        if not made[0]:
            return made
        resolution = "lowest-direct" if combination.lowest else "highest"
        wanted = ["--requirements", "setup.py", "--extra", "dev", "--constraints", str(constraints)]
        return self.call(["uv", "pip", "install", "--python", self.python, "--resolution", resolution, *wanted])

    def versions(self) -> dict[str, str]:
        _, told = self.call([self.python, "-c", VERSIONS])
        found: dict[str, str] = json.loads(told)
        return dict(sorted(found.items()))


def pins() -> list[str]:
    """constraints.txt, but for triton, of which torch brings its own."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [line for line in lines if not re.match(r"triton==", line)]


def try_out(name: str, out: Path, *, keep: bool) -> dict[str, Any]:
    """What became of a combination."""
    combination, started = COMBINATIONS[name], time.monotonic()
    found: dict[str, Any] = {"python": combination.python, "date": str(datetime.date.today()), "versions": {}}
    found["checks"] = {}
    with (out / f"{name}.log").open("w") as log:
        environment = Environment(out / name, log)
        checks = found["checks"]
        passed, told = environment.make(combination)
        if not passed:
            checks["installed"] = {"passed": False, "told": told}
            print(f"{name}: can't be installed: {told}", flush=True)
        else:
            found["versions"] = environment.versions()
            for check, command in CHECKS.items():
                print(f"{name}: {check} ...", flush=True)
                passed, told = environment.call([environment.python, *command])
                checks[check] = {"passed": passed, "told": told}
                print(f"{name}: {check} {'passed' if passed else 'FAILED'}: {told}", flush=True)
    if not keep:
        shutil.rmtree(environment.folder, ignore_errors=True)
    found["minutes"] = round((time.monotonic() - started) / 60, 1)
    return found


def table(results: dict[str, Any]) -> str:
    """Markdown."""
    titles = ["combination", "tried on", "Python", *TOLD, *CHECKS]
    rows = [titles, ["---"] * len(titles)]
    for name in (name for name in COMBINATIONS if name in results):
        found = results[name]
        outcomes = [found["checks"].get(check) for check in CHECKS]
        rows.append(
            [
                f"`{name}`",
                found["date"],
                found["python"],
                *(found["versions"].get(library, "") for library in TOLD),
                *("" if outcome is None else "passed" if outcome["passed"] else "FAILED" for outcome in outcomes),
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def problem(chosen: Sequence[str], record: Path) -> str | None:
    """What keeps all combinations from being tried, told before the first one is."""
    if unknown := [name for name in chosen if name not in COMBINATIONS]:
        return f"--only {unknown[0]}: the combinations are {', '.join(COMBINATIONS)}"
    if shutil.which("uv") is None:
        return "uv, which makes the environments, isn't there; `make setup` installs it"
    try:
        record.parent.mkdir(parents=True, exist_ok=True)
        if record.exists():
            json.loads(record.read_text())
    except OSError as error:
        return f"--out {record.parent} can't be used: {error.strerror}"
    except ValueError:
        return f"{record} is damaged; remove it"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.versions", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", metavar="NAMES", help="these combinations, with commas between them")
    parser.add_argument("--out", type=Path, default=Path("snap/versions"), metavar="DIR")
    parser.add_argument("--keep", action="store_true", help="keep the environments, OUT/NAME")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what runs ends with this program
    chosen = [name.strip() for name in options.only.split(",") if name.strip()] or list(COMBINATIONS)
    out = options.out.resolve()
    record = out / "versions.json"
    if (reason := problem(chosen, record)) is not None:
        print(f"versions: error: {reason}", file=sys.stderr)
        return 2
    results: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    for name in chosen:
        results[name] = try_out(name, out, keep=options.keep)
        record.write_text(json.dumps(results, indent=1) + "\n")
        (out / "versions.md").write_text(table(results))
    print(f"\n{table(results)}")
    failed = [name for name in chosen if not all(check["passed"] for check in results[name]["checks"].values())]
    print(f"failed: {', '.join(failed)}" if failed else "all passed", f"({out})")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
