"""What annotations and images cost, beside the original's scheme, measured in one run on this machine.

    python -m engine.benchmark.data --json numbers.json

draws a synthetic data set (engine.synthetic.lxmert), checks that the store and a twin of the original's scheme hold the
same, then measures each part in a process of its own. What is compared takes turns within one process, and the median
of the rounds counts: ratios are what to look at, absolute numbers tell about the machine.
"""

import argparse
import itertools
from dataclasses import replace
from pathlib import Path

from engine.benchmark.data.annotations import (
    ACCESSES,
    TWIN_ITEMS,
    measure_access,
    measure_build,
    measure_warm_start,
)
from engine.benchmark.data.measuring import Results, in_process
from engine.benchmark.data.program import Limit, parser_of, run
from engine.benchmark.data.twin import read_items
from engine.synthetic.lxmert import annotation_source, write_data_set

LXMERT = 9_180_000  # sentences
ENOUGH_FOR_ROUNDS = 1_000_000  # more items are built once

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
             `digests_over_warm_start` is the time of the digests by which a resumed run knows its data, over that.
images       one process, one thread; `float` is the original's path, the others' uint8 is normalised on the device."""


def measure(options: argparse.Namespace, folder: Path) -> Results:
    """Everything, in an empty folder."""
    data_root, tenth_root, cache = folder / "data", folder / "tenth", folder / "cache"
    listing = tuple(write_data_set(data_root, options.items, options.seed, progress=True))
    write_data_set(tenth_root, max(1, options.items // 10), options.seed)
    source = annotation_source(data_root)
    texts = [item.sent for item in itertools.islice(read_items(source), ACCESSES)]
    build_rounds = options.rounds if options.items <= ENOUGH_FOR_ROUNDS else 1
    results: Results = in_process("spawn", measure_build, data_root, cache, texts, build_rounds)
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


def bytes_needed(options: argparse.Namespace) -> int:
    return 500 * options.items + 420 * min(options.items, TWIN_ITEMS) + 500_000 * options.images


def main(argv: list[str] | None = None) -> None:
    parser = parser_of("engine.benchmark.data", __doc__ or "", items=500_000, images=64)
    parser.add_argument("--skip_images", action="store_true", help="measure the annotations only")
    run(parser, argv, measure, bytes_needed, LIMITS, NOTES)


if __name__ == "__main__":
    main()
