"""The parts of tests.gpu: what each runs, for how long, and what is told of its figures. Needs nothing but Python."""

import argparse
import importlib.util
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NEED_NO_GPU = ("test_compile.py", "test_interpreter.py", "test_benchmark.py")


@dataclass(frozen=True)
class Part:
    """Commands that run one after the other; the first that fails ends the part. A JSON file holds their figures."""

    name: str
    seconds: float
    commands: Sequence[Sequence[str]]
    tell: Callable[[Any], str] = lambda figures: ""  # of its figures, for the summary
    left_out: str = ""  # why, where it can't run


def figures_file(scratch: Path, name: str) -> Path:
    """What a part writes its figures to."""
    return scratch / f"{name.replace(' ', '_')}.json"


def tell_machine(found: dict[str, Any]) -> str:
    dtype = "fp16" if "matmul_tflops_fp16" in found else "fp32"
    versions = found["versions"]
    return (
        f"{found['device_name']}, torch {versions['torch']}, DeepSpeed {versions['deepspeed']}; copies "
        f"{found['copy_gb_per_s']:.0f} GB/s, multiplies {found[f'matmul_tflops_{dtype}']:.2f} TFLOP/s in {dtype}"
    )


def tell_training(found: dict[str, Any]) -> str:
    checks = found["checks"]
    failed = [f"{name}: {check['found']}" for name, check in checks.items() if not check["holds"]]
    speed = f", {found['images_per_second']:.0f} images/s" if "images_per_second" in found else ""
    return f"{len(checks) - len(failed)} of {len(checks)} hold{speed}" + "".join(f"; NOT {text}" for text in failed)


def tell_kernels(rows: list[dict[str, Any]]) -> str:
    ours = [row for row in rows if row["implementation"] == "ours" and row["direction"] == "both"]
    return "; ".join(
        f"{row['model']} {row['layout']} {row['batch']}: {row['microseconds']:.0f} us, "
        f"{row['ratio_to_original']:.1f}x"
        + (f" ({row['ratio_to_compiled']:.1f}x compiled)" if row["ratio_to_compiled"] else "")
        for row in ours
    )


def tell_batch_norm(rows: list[dict[str, Any]]) -> str:
    ours = [row for row in rows if row["implementation"] == "ours" and row["direction"] == "both"]
    return "; ".join(
        f"{row['shape']}: {row['percent_of_copy']:.0f} % of copy, {row['ratio_to_operators']:.1f}x operators"
        + (f" ({row['ratio_to_compiled']:.1f}x compiled)" if "ratio_to_compiled" in row else "")
        for row in ours
    )


def tell_step(found: dict[str, Any]) -> str:
    if "images_per_second" not in found:
        return ""
    ratio = found["step_ratio_to_baseline"]
    compared = "the baseline doesn't fit" if ratio is None else f"{ratio:.2f}x the baseline"
    return (
        f"batch {found['batch']}: {found['images_per_second']:.1f} images/s, {compared}, "
        f"MFU {100 * found['mfu']:.1f} %, peak {found['peak_gb']:.1f} GB of {found['predicted_peak_gb']:.1f} predicted"
    )


def tell_sharing(found: dict[str, Any]) -> str:
    speeds = (
        f"K = {row['sentences_per_image']}: {row['sentences_per_second']:.1f} sentences/s, {row['speed_up']:.2f}x, "
        f"{100 * row['share_of_bound']:.0f} % of the bound, memory {row['memory']:.2f}"
        for row in found["rows"]
    )
    return f"the backbone has {100 * found['backbone_share']:.0f} % of a step; " + "; ".join(speeds)


def module(name: str, flags: str = "", *more: str) -> list[str]:
    return [sys.executable, "-m", name, *flags.split(), *more]


def make_parts(options: argparse.Namespace, out: Path, scratch: Path) -> list[Part]:
    """All parts, in their order. The small ones have more time than they need: a CPU may be busy."""
    device, on_gpu, small = options.device, options.device == "cuda", options.small

    def figures(part: str) -> tuple[str, str]:
        return "--json", str(figures_file(scratch, part))

    packages = [module("tests.gpu.packages")]
    if options.wheels:
        wheels = map(str, sorted(options.wheels.glob("*.whl")))
        flags = "install --quiet --no-index --no-deps --no-compile --disable-pip-version-check --target"
        packages.insert(0, module("pip", flags, str(scratch / "site"), *wheels))
    kernel_tests = module("pytest", "--maxfail 8 -p no:cacheprovider tests/kernels")
    kernel_tests += [f"--ignore=tests/kernels/{name}" for name in NEED_NO_GPU]
    kernel_tests += ["-k", "philox"] if small else []
    if on_gpu and importlib.util.find_spec("xdist"):
        kernel_tests += ["-n", "4"]  # most of the time goes to Triton's compiler, on the CPU
    sanitizer, smallest = shutil.which("compute-sanitizer"), module("tests.gpu.smallest")
    watched = [smallest]
    if on_gpu:
        tools = ("memcheck", "racecheck")
        # Without torch's cache an access beyond a tensor leaves the memory that the driver gave.
        begin = ["env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1", sanitizer or "", "--error-exitcode", "1", "--tool"]
        watched = [[*begin, tool, *smallest] for tool in tools]
    training = module("tests.gpu.training", "--small" if small else "", *figures("training"))
    precisions = "--dtype fp16 --passes 1" if small else "--dtype fp32 fp16 bf16"
    shapes = "--model RN50 --layout nchw --batch 2 --grid 3 5 --samples 7 --rounds 1"
    kernels = f"--device {device} {shapes if small else '--model RN50 --batch 32 128 --dtype fp16 --rounds 20'}"
    norms = "--images 1 --shapes 2 --rounds 1" if small else "--rounds 10"
    sizes = "--model tiny --layers 1 --hidden_size 64 --image_size 64 96 --sub_feat_num 4 --rounds 1 "

    def step(name: str, seconds: float, flags: str, *more: str) -> Part:
        command = module(
            "engine.benchmark.step", f"--device {device} {sizes if small else ''}{flags}", *figures(name), *more
        )
        return Part(name, seconds, [command], tell_step)

    grids = "--model RN50 --layout channels_last --dtype fp16 --batch 128 --sentences_per_image 8 --rounds 10"
    shared_grids = f"{shapes} --sentences_per_image 2" if small else grids
    shared_steps = "--batch 4 --sentences_per_image 2" if small else "--rounds 5 --steps 2"
    few, trace = "--batch 2 --minutes 0.5", ("--trace", str(out / "trace.json.gz"))
    return [
        Part("packages", 30, packages),
        Part("machine", 30, [module("engine.benchmark.machine", "", *figures("machine"))], tell_machine),
        Part("kernel tests", 90, [kernel_tests]),
        Part("sanitizer", 60, watched, left_out="" if sanitizer or not on_gpu else "compute-sanitizer isn't installed"),
        Part("parity", 45, [module("tests.parity", f"tests/golden {precisions}")]),
        Part("training", 120 if small else 90, [training], tell_training),
        Part(
            "kernels",
            60,
            [module("kernels.benchmark", kernels, *figures("kernels"), "--plot", str(out / "kernels.png"))],
            tell_kernels,
        ),
        Part(
            "batch norm",
            45,
            [module("kernels.benchmark.batch_norm", f"--device {device} {norms}", *figures("batch norm"))],
            tell_batch_norm,
        ),
        step("step", 95, few if small else "--batch 32 --rounds 5 --steps 2 --minutes 1.3", "--ablate", *trace),
        Part(
            "sharing",
            75,
            [
                module(
                    "engine.benchmark.sharing",
                    f"--device {device} {sizes if small else ''}{shared_steps}",
                    *figures("sharing"),
                ),
                module("kernels.benchmark", f"--device {device} {shared_grids}"),
            ],
            tell_sharing,
        ),
        step("step RN50x4", 40, "--batch 2" if small else "--model RN50x4 --batch 30 --rounds 5 --steps 2"),
        step("step largest", 60, "--batch largest " + ("--memory_gb 0.08" if small else "--rounds 3 --steps 1")),
    ]
