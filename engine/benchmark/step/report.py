"""A report for the eye."""

from collections.abc import Mapping
from typing import Any

from engine.benchmark.step.parts import PARTS
from engine.benchmark.step.switches import SWITCHES


def show(report: Mapping[str, Any]) -> None:
    """The parts of a step, ours beside the baseline's, and what follows from them."""
    height, width = report["image_size"]
    print(
        f"\n{report['model']} and {report['layers']} layers, {report['batch']} images of {height} x {width}, "
        f"{report['sub_feat_num']} cells, {report['dtype']}\n"
        f"{report['device_name']}: copies {report['copy_gb_per_s']:.1f} GB/s, multiplies "
        f"{report['matmul_tflops']:.2f} TFLOP/s in {report['dtype']}\n"
        f"{report['checked_quantities']} quantities of both models within the tolerances of the recorded numbers\n"
    )
    baseline = report.get("baseline_parts")
    print(f"{'milliseconds':24}{'ours':>10}{'share':>8}{'baseline':>12}{'share':>8}{'baseline / ours':>18}")
    for part in PARTS:
        ours, theirs = report["parts"][part], baseline[part] if baseline else None
        print(_row(part, ours, report["step_seconds"], theirs, report.get("baseline_step_seconds")))
    totals = sum(report["parts"].values()), sum(baseline.values()) if baseline else None
    print(_row("all parts", totals[0], report["step_seconds"], totals[1], report.get("baseline_step_seconds")))
    print(_row("step", report["step_seconds"], None, report.get("baseline_step_seconds"), None))
    quantiles = [_quantiles(report, name) for name in ("step_seconds", "baseline_step_seconds")]
    print(f"{'  quantiles 20 to 80':24}{quantiles[0]:>18}{quantiles[1]:>20}")
    print()
    for line, value in _lines(report).items():
        print(f"{line:44}{value}")


def _row(name: str, ours: float, step: float | None, theirs: float | None, their_step: float | None) -> str:
    shares = [f"{100 * a / b:.1f} %" if a is not None and b else "" for a, b in ((ours, step), (theirs, their_step))]
    theirs_ms = "-" if theirs is None else f"{1e3 * theirs:.2f}"
    ratio = "" if theirs is None or ours <= 0 else f"{theirs / ours:.2f}"
    return f"{name:24}{1e3 * ours:10.2f}{shares[0]:>8}{theirs_ms:>12}{shares[1]:>8}{ratio:>18}"


def _quantiles(report: Mapping[str, Any], name: str) -> str:
    if name not in report:
        return "-"
    return f"{1e3 * report[f'{name}_q20']:.2f} to {1e3 * report[f'{name}_q80']:.2f}"


def _lines(report: Mapping[str, Any]) -> dict[str, str]:
    compared = report["step_ratio_to_baseline"] is not None
    waits = ", ".join(f"{100 * share:.0f} % at {rate}" for rate, share in report["data_wait"].items())
    lines = {
        "baseline's step over ours": f"{report['step_ratio_to_baseline']:.2f}" if compared else "it doesn't fit",
        "images a second": f"{report['images_per_second']:.2f}",
        "host, until all is launched": f"{1e3 * report['host_seconds']:.2f} ms",
        "kernels launched" if report["device"] == "cuda" else "operators": f"{report['kernel_launches']}",
        "waits of the host": "; ".join(f"{number} in {place}" for place, number in report["host_waits"].items())
        or "none",
        "operations": f"{report['flops_per_step'] / 1e12:.3f} TFLOP, MFU {100 * report['mfu']:.1f} %",
        "backbone's memory traffic, at least": f"{report['backbone_gb']:.2f} GB, at "
        f"{100 * report['backbone_share_of_copy']:.0f} % of the copy's bandwidth",
        "peak memory, measured": f"{report['peak_gb']:.2f} GB",
        "... predicted": f"{report['predicted_peak_gb']:.2f} GB ({report['predicted_to_measured_peak']:.3f} of it): "
        + ", ".join(f"{name} {report[f'predicted_{name}_gb']:.2f}" for name in ("state", "buckets", "passes")),
        "waiting for a loader, images a second": waits,
    }
    if report["skipped_steps"]:
        lines["steps without an update, for overflow"] = f"{report['skipped_steps']}: the optimiser's time is too short"
    if compared:
        lines["baseline's peak over ours"] = f"{report['memory_ratio_to_baseline']:.2f}"
        lines["baseline's passes over plain PyTorch's"] = f"{report['baseline_passes_ratio_to_plain']:.3f}"
    return lines


def show_ablation(ablation: Mapping[str, Mapping[str, Any]]) -> None:
    print(
        f"\n{'turned over, alone':22}{'in the engine':>14}{'step':>8}{'memory':>8}   1.10: takes 1.10 times as long so"
    )
    for name, found in ablation.items():
        if "left_out" in found:
            print(f"{name:22}{found['engine']:>14}   left out: {found['left_out'][:70]}")
        else:
            ratios = f"{found['step_ratio']:8.3f}{found['memory_ratio']:8.3f}"
            print(f"{name:22}{found['engine']:>14}{ratios}   {SWITCHES[name].about}")
