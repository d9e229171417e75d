"""What annotations and images cost, beside the original's scheme, measured in one run on this machine.

    python -m engine.benchmark.data --json numbers.json

draws a synthetic data set (engine.synthetic.lxmert), checks that the store and a twin of the original's scheme hold the
same, then measures each part in a process of its own. What is compared takes turns within one process, and the median
of the rounds counts: ratios are what to look at, absolute numbers tell about the machine.
"""

import argparse
import itertools
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from engine.benchmark.data.annotations import (
    ACCESSES,
    TWIN_ITEMS,
    measure_access,
    measure_build,
    measure_warm_start,
)
from engine.benchmark.data.measuring import MB, Results, in_process
from engine.benchmark.data.twin import read_items
from engine.errors import UserError
from engine.synthetic.lxmert import annotation_source, write_data_set

LXMERT = 9_180_000  # sentences
ENOUGH_FOR_ROUNDS = 1_000_000  # more items are built once


class Limit(NamedTuple):
    """What a number is held against: at most or at least a limit, or another measured number by its name."""

    relation: str
    limit: float | str
    condition: str = ""
    items: int | None = None  # the number of items for which it counts; None: any


LIMITS = {
    "bytes_per_item_without_text": Limit("<=", 48),
    "bytes_per_item_with_text": Limit("<=", 115),
    "build_items_per_second": Limit(">=", "build_items_per_second_wanted", "(40,000, or less: 3x the tokeniser)"),
    "build_peak_mb_over_store": Limit("<=", 100),
    "build_peak_mb_absolute": Limit("<=", 300, items=LXMERT),
    "access_ratio_single": Limit(">=", 10, items=500_000),
    "access_ratio_batch32": Limit(">=", 30, items=500_000),
    "worker_anonymous_mb": Limit("<=", 2, "(forked)"),
    "worker_anonymous_mb_spawn": Limit("<=", 2),
    "worker_anonymous_mb_tenth": Limit("<=", 2, "(a tenth of the items)"),
    "attach_ms": Limit("<=", 5),
    "warm_start_seconds": Limit("<=", 5, items=LXMERT),
    "uint8_ratio": Limit(">=", 1.4),
    "workers_ratio": Limit(">=", "workers", "(where cores allow)"),
}

NOTES = f"""
access       `single` gives all of an item, `batch32` 32 of them by `take`. Tokenising, which the original does at each
             access too, is not counted against its twin, which holds at most {TWIN_ITEMS:,} items: its bytes per item
             are the same for any number of them, its time is that of fewer cache misses.
build        `build_peak_mb_over_store` is what the process grows by. The sealed copy of the store counts as the store:
             it is shared memory, and no process's until it is read. `_absolute` is that process with Python.
worker       memory of a worker's own after 50,000 accesses singly and in batches: copied pages and new ones.
warm start   from the tokeniser to the first batch, with black images, and a list in memory in place of their folder.
images       one process, one thread; `float` is the original's path, the others' uint8 is normalised on the device."""


def measure(options: argparse.Namespace, folder: Path) -> Results:
    """Everything, in an empty folder."""
    results: Results = {"items": options.items, "seed": options.seed, "rounds": options.rounds, **machine()}
    data_root, tenth_root, cache = folder / "data", folder / "tenth", folder / "cache"
    listing = tuple(write_data_set(data_root, options.items, options.seed, progress=True))
    write_data_set(tenth_root, max(1, options.items // 10), options.seed)
    source = annotation_source(data_root)
    texts = [item.sent for item in itertools.islice(read_items(source), ACCESSES)]
    build_rounds = options.rounds if options.items <= ENOUGH_FOR_ROUNDS else 1
    results |= in_process("spawn", measure_build, data_root, cache, texts, build_rounds)
    stores = [
        source.open(cache),
        replace(source, with_text=True).open(cache),
        annotation_source(tenth_root).open(tenth_root),
    ]
    results |= in_process("spawn", measure_access, *stores, data_root, folder, options.seed, options.rounds)
    results |= in_process("spawn", measure_warm_start, data_root, cache, listing, options.rounds)
    if not options.skip_images:
        from engine.benchmark.data.images import measure_images  # takes torch, which other measurements do without

        results |= in_process("spawn", measure_images, folder, options.images, options.seed, options.rounds)
    return results


def machine() -> Results:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return {
        "cpu": next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{package: version(package) for package in ("numpy", "torch", "pillow", "tokenizers")},
    }


def report(results: Results) -> str:
    """A line for each number, with its limit where it has one."""
    lines = []
    for name, value in results.items():
        line = f"{name:34}{value:>14,.3f}" if isinstance(value, float) else f"{name:34}{value:>14}"
        if name in LIMITS:
            relation, limit, condition, items = LIMITS[name]
            wanted = float(results[limit]) if isinstance(limit, str) else limit
            met = float(value) <= wanted if relation == "<=" else float(value) >= wanted
            missed = not met and items in (None, results["items"])
            condition = condition or (f"(at {items:,} items)" if items else "")
            line += f"  {relation} {wanted:<7,.10g}{'MISSED' if missed else '':8}{condition}"
        lines.append(line.rstrip())
    return "\n".join(lines)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m engine.benchmark.data", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--items", type=int, default=500_000, help="sentences (LXMERT has 9180000)")
    parser.add_argument("--json", type=Path, help="write all numbers here as one flat object")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=64, help="photos to draw")
    parser.add_argument("--skip_images", action="store_true", help="measure the annotations only")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the median counts")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="for data, removed at the end (%(default)s)"
    )
    options = parser.parse_args(argv)
    for name in ("items", "images", "rounds"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} was given; give 1 or more")
    return options


def check_disk(options: argparse.Namespace) -> None:
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
    needed = 500 * options.items + 420 * min(options.items, TWIN_ITEMS) + 500_000 * options.images
    if free < needed:
        raise UserError(
            f"{options.folder} has {free / MB:,.0f} MB free, and {options.items:,} items take {needed / MB:,.0f} MB; "
            "name another --folder or lower --items"
        )


def end(*_: Any) -> None:
    sys.exit(143)


def main(argv: list[str] | None = None) -> None:
    options = parse(argv)
    signal.signal(signal.SIGTERM, end)  # an exception, so that the folder is removed then, too
    try:
        check_disk(options)
        with tempfile.TemporaryDirectory(prefix="clipvil-benchmark-", dir=options.folder) as folder:
            results = measure(options, Path(folder))
        print(report(results) + "\n" + NOTES)
        if options.json is not None:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    except (UserError, OSError) as error:
        print(f"benchmark: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
