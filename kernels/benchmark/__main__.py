"""Grid sub-sampling with its position embedding, timed beside other ways to do the same, in one run.

    python -m kernels.benchmark --json kernels.json --plot kernels.png
    python -m kernels.benchmark --device cpu

Before anything is timed, every implementation's tokens and gradients are compared with the twin's; one that differs
ends the run. What is compared takes turns, on sets of inputs that no cache holds together (tiny shapes apart, of which
there are eight sets), and medians count.

    original       sampling on the host, position tables added to all cells, a gather by an expanded index
    gather_first   PyTorch alone: sampling on the device, then only the sampled cells
    compiled       torch.compile of gather_first
"""

import argparse
import datetime
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kernels.backend import triton, use_triton
from kernels.benchmark import grid_subsample
from kernels.benchmark.comparing import DIRECTIONS, compare, save
from kernels.benchmark.shapes import CHANNELS, DTYPES, LAYOUTS, Shape
from kernels.benchmark.timing import Subject, copy_gigabytes_per_second, device_name

# Of inputs. Those of a tiny shape may well stay in the cache together, which is fine: it would take hundreds to outgrow
# it, and minutes to make them.
MOST_SETS = 8
NOTES = """
us       median, and the quantiles 20 and 80. On a GPU: device time in a CUDA graph, without the original's sampling on
         the host and its copy of the index; on a CPU: all of it
eager    on a GPU without a graph, by events; wall: by the host's clock, the original's sampling on the host included
GB/s     the fewest bytes that the task has to move, over that time; %: of what a plain copy reaches in this run
x        how many times as long the baseline takes"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if gpu else "cpu")
    parser.add_argument("--model", nargs="+", choices=list(CHANNELS), default=list(CHANNELS))
    parser.add_argument("--layout", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--dtype", nargs="+", choices=list(DTYPES), help="fp16 and bf16; on a CPU fp32")
    parser.add_argument("--batch", nargs="+", type=int, help="sequences; 32, 128 and 256; on a CPU 32")
    parser.add_argument("--grid", nargs=2, type=int, metavar=("ROWS", "COLUMNS"), default=[12, 20])
    parser.add_argument("--samples", nargs="+", type=int, default=[100], help="cells drawn; ROWS x COLUMNS keeps all")
    shared = "sequences that share a grid; the baselines copy it"
    parser.add_argument("--sentences_per_image", nargs="+", type=int, default=[1], metavar="K", help=shared)
    parser.add_argument("--rounds", type=int, help="times that each is timed; 50; on a CPU 15")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rows")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the times; needs matplotlib")
    options = parser.parse_args(arguments)
    on_gpu = options.device == "cuda"
    options.dtype = options.dtype or (["fp16", "bf16"] if on_gpu else ["fp32"])
    options.batch = options.batch or ([32, 128, 256] if on_gpu else [32])
    options.rounds = options.rounds or (50 if on_gpu else 15)
    if on_gpu and not gpu:
        parser.error("--device cuda: torch finds no GPU here; --device cpu times the CPU paths")
    if min(options.rounds, *options.batch, *options.grid) < 1:
        parser.error("--rounds, --batch and --grid have to be 1 or more")
    if any(number < 1 or batch % number for number in options.sentences_per_image for batch in options.batch):
        parser.error(f"--sentences_per_image {options.sentences_per_image}: each has to divide --batch {options.batch}")
    rows, columns = options.grid
    if max(rows, columns) > 25 or not all(1 <= samples <= rows * columns for samples in options.samples):
        parser.error(
            f"--grid {rows} {columns} --samples {options.samples}: at most 25 rows and columns, and their cells"
        )
    try:
        options.backend = "triton" if use_triton(options.device) else "torch"
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if options.plot:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            parser.error("--plot needs matplotlib: pip install -e '.[benchmark]'")
    for path in (options.json, options.plot):
        if path:
            try:
                path.touch()
            except OSError as error:
                parser.error(f"{path} can't be written: {error.strerror}")
    return options


def measure(shape: Shape, options: argparse.Namespace) -> dict[tuple[str, str], Subject]:
    """All implementations at one shape, checked and timed, by name and direction."""
    torch.compiler.reset()  # it compiles one function for eight shapes at most, then raises
    # The sets together are larger than twice the cache, so that a set's turn finds nothing of it there.
    cache = torch.cuda.get_device_properties(0).L2_cache_size if options.device == "cuda" else 64 * 2**20
    number = min(max(2, -(-2 * cache // grid_subsample.fewest_bytes(shape, "backward"))), MOST_SETS)
    sets = [grid_subsample.Inputs(shape, options.device, seed) for seed in range(number)]
    implementations = grid_subsample.implementations(shape)
    return compare(implementations, grid_subsample.check, sets, shape, options.device, options.rounds)


def row_of(
    name: str,
    direction: str,
    subjects: dict[tuple[str, str], Subject],
    fewest_bytes: int,
    copy_bandwidth: float,
) -> dict[str, Any]:
    """The numbers of one implementation and direction, among those that it is compared with."""
    subject = subjects[name, direction]
    microseconds = subject.samples.median()
    low, high = torch.tensor(subject.samples.counted).quantile(torch.tensor([0.2, 0.8])).tolist()
    bandwidth = fewest_bytes / microseconds / 1e3

    def ratio(baseline: str, clock: str | None = None) -> float | None:
        other = subjects.get((baseline, direction))
        return other.samples.median(clock) / subject.samples.median(clock) if other else None

    return {
        "direction": direction,
        "implementation": name,
        "microseconds": microseconds,
        "microseconds_q20": low,
        "microseconds_q80": high,
        "eager_microseconds": subject.samples.median("eager") if subject.samples.eager else None,
        "wall_microseconds": subject.samples.median("wall"),
        "gb_per_s": bandwidth,
        "percent_of_copy": 100 * bandwidth / copy_bandwidth,
        "ratio_to_original": ratio("original"),
        "ratio_to_gather_first": ratio("gather_first"),
        "ratio_to_compiled": ratio("compiled"),
        "wall_ratio_to_original": ratio("original", "wall"),
        "peak_mib": None if subject.peak_bytes is None else subject.peak_bytes / 2**20,
        "in_cuda_graph": bool(subject.samples.graph),
    }


def show(rows: list[dict[str, Any]]) -> None:
    shape = ("model", "layout", "dtype")
    print(
        f"\n{' '.join(rows[0][name] for name in shape)}, batch {rows[0]['batch']}, {rows[0]['samples']} cells, "
        f"{rows[0]['sentences_per_image']} to a grid"
    )
    columns = {
        "us": ("microseconds", 9, 1),
        "q20": ("microseconds_q20", 9, 1),
        "q80": ("microseconds_q80", 9, 1),
        "eager": ("eager_microseconds", 7, 0),
        "wall": ("wall_microseconds", 7, 0),
        "GB/s": ("gb_per_s", 7, 1),
        "% copy": ("percent_of_copy", 6, 1),
        "peak MiB": ("peak_mib", 8, 0),
        "x original": ("ratio_to_original", 10, 2),
        "by wall": ("wall_ratio_to_original", 7, 2),
        "x gather_first": ("ratio_to_gather_first", 14, 2),
        "x compiled": ("ratio_to_compiled", 10, 2),
    }
    print(" " * 22, *(f"{title:>{width}}" for title, (_, width, _) in columns.items()))
    for row in rows:
        values = (
            f"{'-':>{width}}" if row[name] is None else f"{row[name]:{width}.{digits}f}"
            for name, width, digits in columns.values()
        )
        print(f"{row['direction']:9}{row['implementation']:13}", *values)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """A panel per direction: time over the time of the fewest bytes at copy bandwidth, so 1 is the best possible."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["implementation"] for row in rows))
    columns = ("model", "layout", "dtype", "batch", "samples", "sentences_per_image")
    shapes = list(dict.fromkeys(tuple(row[name] for name in columns) for row in rows))
    figure, panels = pyplot.subplots(len(DIRECTIONS), 1, sharex=True, figsize=(max(8, 1.2 * len(shapes)), 10))
    for panel, direction in zip(panels, DIRECTIONS, strict=True):
        for number, name in enumerate(names):
            chosen = [row for row in rows if (row["direction"], row["implementation"]) == (direction, name)]
            places = [shapes.index(tuple(row[name] for name in columns)) + 0.2 * (number - 1.5) for row in chosen]
            panel.bar(places, [100 / row["percent_of_copy"] for row in chosen], 0.2, label=name)
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set_yscale("log")
        panel.set_ylabel(f"{direction}: time / copy of fewest bytes")
    labels = [f"{model} {layout}\n{dtype}, batch {b}\n{s} cells, K = {k}" for model, layout, dtype, b, s, k in shapes]
    panels[-1].set_xticks(range(len(shapes)), labels)
    panels[0].set_title(f"{rows[0]['device']}, torch {rows[0]['torch']}, {rows[0]['date']}", loc="right", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="upper left", ncols=len(names))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    machine: dict[str, Any] = {
        "device": device_name(options.device),
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "triton": getattr(triton, "__version__", None),
        "backend": options.backend,
    }
    machine["copy_gb_per_s"] = copy_gigabytes_per_second(options.device, options.rounds)
    print(
        *(f"{name} {value:.0f}" if isinstance(value, float) else f"{name} {value}" for name, value in machine.items()),
        sep=", ",
    )
    rows: list[dict[str, Any]] = []
    axes = (options.model, options.layout, options.dtype, options.batch, options.samples, options.sentences_per_image)
    for model, layout, dtype, batch, samples, shared in tqdm(list(itertools.product(*axes)), disable=None):
        height, width = options.grid
        shape = Shape(model, layout, dtype, batch, height, width, samples, shared)
        subjects = measure(shape, options)
        found = [
            {"model": model, "layout": layout, "dtype": dtype, "batch": batch, "samples": samples}
            | {"sentences_per_image": shared}
            | row_of(*key, subjects, grid_subsample.fewest_bytes(shape, key[1]), machine["copy_gb_per_s"])
            | machine
            for key in subjects
        ]
        show(found)
        rows += found
        if options.json:  # after each shape: what was measured isn't lost with what comes next
            text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
            save(options.json, partial(Path.write_text, data=text))
    print(NOTES)
    if options.plot:
        save(options.plot, partial(plot, rows))


if __name__ == "__main__":
    main()
