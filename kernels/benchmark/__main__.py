"""Grid sub-sampling with its position embedding, timed beside other ways to do the same, in one run.

    python -m kernels.benchmark --json kernels.json --plot kernels.png
    python -m kernels.benchmark --device cpu

Before anything is timed, every implementation's tokens and gradients are compared with the twin's; one that differs
ends the run. What is compared takes turns, on sets of inputs that no cache holds together, and medians count.

    original       sampling on the host, position tables added to all cells, a gather by an expanded index
    gather_first   PyTorch alone: sampling on the device, then only the sampled cells
    compiled       torch.compile of gather_first
"""

import argparse
import datetime
import itertools
import json
import platform
import statistics
import sys
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from kernels.backend import use_triton
from kernels.benchmark.implementations import CHANNELS, DTYPES, LAYOUTS, Inputs, Shape, check, implementations
from kernels.benchmark.timing import Call, Subject, copy_gigabytes_per_second, directions

DIRECTIONS = ("forward", "backward", "both")
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
    parser.add_argument("--batch", nargs="+", type=int, help="images; 32, 128 and 256; on a CPU 32")
    parser.add_argument("--grid", nargs=2, type=int, metavar=("ROWS", "COLUMNS"), default=[12, 20])
    parser.add_argument("--samples", nargs="+", type=int, default=[100], help="cells drawn; ROWS x COLUMNS keeps all")
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
    rows, columns = options.grid
    if max(rows, columns) > 25 or not all(1 <= samples <= rows * columns for samples in options.samples):
        parser.error(
            f"--grid {rows} {columns} --samples {options.samples}: at most 25 rows and columns, and their cells"
        )
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


def measure(shape: Shape, options: argparse.Namespace, copy_bandwidth: float) -> list[dict[str, Any]]:
    """Rows of one shape."""
    device = options.device
    # The sets together are larger than twice the cache, so that a set's turn finds nothing of it there.
    cache = torch.cuda.get_device_properties(0).L2_cache_size if device == "cuda" else 64 * 2**20
    sets = [Inputs(shape, device, seed) for seed in range(max(2, -(-2 * cache // shape.fewest_bytes("backward"))))]
    subjects: dict[tuple[str, str], Subject] = {}
    for name, implementation in implementations(shape).items():
        try:
            check(implementation, sets[0])
        except AssertionError as error:
            sys.exit(f"error: {name} is wrong, so nothing is timed: {error} ({shape})")
        except RuntimeError as error:
            if name != "compiled":
                raise
            print(f"compiled is left out, torch.compile fails: {str(error).splitlines()[0]}", file=sys.stderr)
            continue
        eager = [directions(implementation, inputs) for inputs in sets]
        for direction in DIRECTIONS:

            def graphed(implementation: Any = implementation, direction: str = direction) -> list[Call]:
                drawn = [implementation.draw(inputs) if implementation.draw else None for inputs in sets]
                return [directions(implementation, *each)[direction] for each in zip(sets, drawn, strict=True)]

            calls = [each[direction] for each in eager]
            subjects[name, direction] = Subject(f"{name} {direction}", calls, graphed, device)
    for _ in range(options.rounds):
        for subject in subjects.values():
            subject.sample()

    def median(name: str, direction: str, clock: str | None = None) -> float:
        samples = subjects[name, direction].samples
        return statistics.median(getattr(samples, clock) if clock else samples.graph or samples.eager or samples.wall)

    compiles = ("compiled", "both") in subjects
    rows = []
    for (name, direction), subject in subjects.items():
        samples = subject.samples
        counted = samples.graph or samples.eager or samples.wall
        quantiles = torch.tensor(counted).quantile(torch.tensor([0.2, 0.8])).tolist()
        microseconds = median(name, direction)
        bandwidth = shape.fewest_bytes(direction) / microseconds / 1e3
        rows.append(
            {
                "model": shape.model,
                "layout": shape.layout,
                "dtype": shape.dtype,
                "batch": shape.batch,
                "samples": shape.samples,
                "direction": direction,
                "implementation": name,
                "microseconds": microseconds,
                "microseconds_q20": quantiles[0],
                "microseconds_q80": quantiles[1],
                "clock": "graph" if samples.graph else "eager" if samples.eager else "wall",
                "eager_microseconds": median(name, direction, "eager") if samples.eager else None,
                "wall_microseconds": median(name, direction, "wall"),
                "gb_per_s": bandwidth,
                "percent_of_copy": 100 * bandwidth / copy_bandwidth,
                "ratio_to_original": median("original", direction) / microseconds,
                "ratio_to_gather_first": median("gather_first", direction) / microseconds,
                "ratio_to_compiled": median("compiled", direction) / microseconds if compiles else None,
                "wall_ratio_to_original": median("original", direction, "wall") / median(name, direction, "wall"),
                "peak_mib": None if subject.peak_bytes is None else subject.peak_bytes / 2**20,
            }
        )
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    first = rows[0]
    print(f"\n{first['model']} {first['layout']} {first['dtype']} batch {first['batch']}, {first['samples']} cells")
    columns = f"{'us':>9} {'q20-q80':>15} {'eager':>9} {'wall':>9} {'GB/s':>7} {'%':>5} {'peak MiB':>8}"
    print(f"{'':24}{columns}   x original (wall)   x gather_first  x compiled")
    for row in rows:
        eager, peak, compiled = (
            "-" if row[name] is None else f"{row[name]:{form}}"
            for name, form in (("eager_microseconds", ".0f"), ("peak_mib", ".0f"), ("ratio_to_compiled", ".2f"))
        )
        print(
            f"{row['direction']:9} {row['implementation']:13} {row['microseconds']:9.1f} "
            f"{row['microseconds_q20']:7.1f}-{row['microseconds_q80']:<7.1f} {eager:>9} "
            f"{row['wall_microseconds']:9.0f} {row['gb_per_s']:7.1f} {row['percent_of_copy']:5.1f} {peak:>8} "
            f"{row['ratio_to_original']:12.2f} ({row['wall_ratio_to_original']:.2f})"
            f"{row['ratio_to_gather_first']:15.2f} {compiled:>11}"
        )


def plot(rows: list[dict[str, Any]], path: Path, title: str) -> None:
    """A panel per direction: time over the time of the fewest bytes at copy bandwidth, so 1 is the best possible."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = list(dict.fromkeys(row["implementation"] for row in rows))
    shapes = list(dict.fromkeys((r["model"], r["layout"], r["dtype"], r["batch"], r["samples"]) for r in rows))
    figure, panels = pyplot.subplots(len(DIRECTIONS), 1, sharex=True, figsize=(max(8, 1.2 * len(shapes)), 10))
    for panel, direction in zip(panels, DIRECTIONS, strict=True):
        for number, name in enumerate(names):
            values = [
                100 / r["percent_of_copy"] for r in rows if (r["direction"], r["implementation"]) == (direction, name)
            ]
            panel.bar([x + 0.2 * (number - 1.5) for x in range(len(shapes))], values, 0.2, label=name)
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.set_yscale("log")
        panel.set_ylabel(f"{direction}: time / copy of fewest bytes")
    panels[0].set_title(title)
    panels[0].legend(ncols=len(names))
    panels[-1].set_xticks(range(len(shapes)), ["\n".join(map(str, shape)) for shape in shapes])
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    device = torch.cuda.get_device_name() if options.device == "cuda" else cpu_name()
    machine: dict[str, Any] = {
        "device": device,
        "threads": torch.get_num_threads(),
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "backend": "triton" if use_triton(options.device) else "torch",
    }
    machine["copy_gb_per_s"] = copy_gigabytes_per_second(options.device, options.rounds)
    title = ", ".join(
        f"{name} {value:.0f}" if isinstance(value, float) else str(value) for name, value in machine.items()
    )
    print(title)
    rows: list[dict[str, Any]] = []
    axes = (options.model, options.layout, options.dtype, options.batch, options.samples)
    rows_, columns = options.grid
    for model, layout, dtype, batch, samples in tqdm(list(itertools.product(*axes)), file=sys.stderr, disable=None):
        shape = Shape(model, layout, dtype, batch, rows_, columns, samples)
        found = [row | machine for row in measure(shape, options, machine["copy_gb_per_s"])]
        show(found)
        rows += found
        if options.json:  # after each shape: what was measured isn't lost with what comes next
            options.json.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
    print(NOTES)
    if options.plot:
        plot(rows, options.plot, title)


if __name__ == "__main__":
    main()
