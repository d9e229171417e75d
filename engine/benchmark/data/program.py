"""What the programs of this folder share: their flags, a folder that is gone at the end, and a report with limits."""

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from engine.benchmark.data.measuring import MB, Results
from engine.errors import UserError


class Limit(NamedTuple):
    """What a number is held against: at most or at least a limit, or another measured number by its name."""

    relation: str
    limit: float | str
    condition: str = ""
    items: int | None = None  # the number of items for which it counts; None: any


def parser_of(program: str, description: str, *, items: int, images: int) -> argparse.ArgumentParser:
    """The flags that all take, with these defaults."""
    parser = argparse.ArgumentParser(f"python -m {program}", description=description.split("\n")[0])
    parser.add_argument("--items", type=int, default=items, help="sentences (LXMERT has 9180000)")
    parser.add_argument("--json", type=Path, help="write all numbers here as one flat object")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=images, help="photos to draw")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the median counts")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="for data, removed at the end (%(default)s)"
    )
    return parser


def run(
    parser: argparse.ArgumentParser,
    argv: list[str] | None,
    measure: Callable[[argparse.Namespace, Path], Results],
    needed: Callable[[argparse.Namespace], int],
    limits: Mapping[str, Limit],
    notes: str,
) -> None:
    """Measure in a temporary folder, print the report, write the numbers.

    Args:
        measure: everything, in an empty folder.
        needed: bytes that it takes there.
    """
    options = parser.parse_args(argv)
    for name in ("items", "images", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} was given; give 1 or more")
    signal.signal(signal.SIGTERM, _end)  # an exception, so that the folder is removed then, too
    try:
        _check_disk(options, needed(options))
        with tempfile.TemporaryDirectory(prefix="clipvil-benchmark-", dir=options.folder) as folder:
            results = {"items": options.items, "seed": options.seed, "rounds": options.rounds, **machine()}
            results |= measure(options, Path(folder))
        print(report(results, limits) + "\n" + notes)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    except (UserError, OSError) as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


def machine() -> Results:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in ("numpy", "torch", "pillow", "tokenizers")},
    }


def report(results: Results, limits: Mapping[str, Limit]) -> str:
    """A line for each number, with its limit where it has one."""
    lines = []
    for name, value in results.items():
        line = f"{name:34}{value:>14,.3f}" if isinstance(value, float) else f"{name:34}{value:>14}"
        if name in limits:
            relation, limit, condition, items = limits[name]
            wanted = float(results[limit]) if isinstance(limit, str) else limit
            met = float(value) <= wanted if relation == "<=" else float(value) >= wanted
            missed = not met and items in (None, results["items"])
            condition = condition or (f"(at {items:,} items)" if items else "")
            line += f"  {relation} {wanted:<7,.10g}{'MISSED' if missed else '':8}{condition}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def _check_disk(options: argparse.Namespace, needed: int) -> None:
    """Raises UserError for what would otherwise fail after minutes."""
    try:
        flag, path = "--folder", options.folder
        tempfile.TemporaryFile(dir=path).close()
        if options.json is not None:
            flag, path = "--json", options.json
            tempfile.TemporaryFile(dir=path.parent).close()
            if path.exists():
                path.open("a").close()
    except OSError as error:
        raise UserError(f"{flag} {path} can't be written ({error.strerror}); name another") from None
    free = shutil.disk_usage(options.folder).free
    if free < needed:
        raise UserError(
            f"{options.folder} has {free / MB:,.0f} MB free, and {options.items:,} items take {needed / MB:,.0f} MB; "
            "name another --folder or lower --items"
        )


def _end(*_: Any) -> None:
    sys.exit(143)
