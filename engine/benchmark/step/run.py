"""The stages of a run: check, build, measure, count, show, and turn each switch over."""

import argparse
import datetime
import gc
import statistics
import sys
import time
from functools import partial
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from engine.benchmark.counting import backbone_bytes, flops, host_waits, launches
from engine.benchmark.machine import describe, matmul_flops_per_second
from engine.benchmark.step.measuring import Samples, built, check, measure
from engine.benchmark.step.original import Baseline, in_the_original_way
from engine.benchmark.step.ours import Ours, turn_over
from engine.benchmark.step.parts import PASSES
from engine.benchmark.step.report import show, show_ablation
from engine.benchmark.step.switches import SWITCHES, named, useful
from engine.benchmark.step.workload import Workload, plain_pass, write_figures
from engine.configuration.deepspeed import deepspeed_settings
from engine.training.preflight.memory import training_bytes

GB = 1e9
SMALLER = 0.95  # of the images, where so many didn't fit


class Benchmark:
    """What each stage found is in `report`, and in the file, before the next begins."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device, self.kind = options, device, device.type
        self.started = time.monotonic()
        self.turned = named(options.without, on=True) + named(options.with_, on=False)
        height, width = options.image_size
        self.work = Workload(
            backbone=options.model,
            layers=options.layers,
            hidden_size=options.hidden_size,
            sub_feat_num=options.sub_feat_num,
            height=height,
            width=width,
            dtype=options.dtype,
        )
        self.images = 0
        self.report: dict[str, Any] = {
            "date": datetime.date.today().isoformat(),
            "device": self.kind,
            "model": options.model,
            "layers": options.layers,
            "hidden_size": options.hidden_size,
            "sub_feat_num": options.sub_feat_num,
            "image_size": options.image_size,
            "dtype": options.dtype,
            "without": [name for name in self.turned if SWITCHES[name].on],
            "with": [name for name in self.turned if not SWITCHES[name].on],
            **describe(self.kind),
            "matmul_tflops": matmul_flops_per_second(self.kind, options.dtype) / 1e12,
        }

    def run(self) -> None:
        options = self.options
        self.report["checked_quantities"] = self.check()
        self.images = self.largest() if options.batch == "largest" else int(options.batch)
        self.report["batch"] = self.images
        ours, peak = built(partial(self.make, self.turned), self.kind)
        baseline, baseline_peak = self.build_baseline()
        subjects: dict[str, Any] = {"ours": ours}
        if baseline is not None:
            subjects |= {"baseline": baseline, "plain": plain_pass(baseline)}
        samples = measure(subjects, self.kind, options.rounds, options.steps)
        self.add(step_figures(samples["ours"], self.images, peak))
        if baseline_peak is not None:
            self.add(compared_figures(samples, self.images, peak, baseline_peak))
        self.add(self.counted_figures(samples["ours"], launches(ours.step, self.kind)))
        self.add({"skipped_steps": ours.engine.skipped_steps, "host_waits": host_waits(ours.step, self.kind)})
        show(self.report)
        if options.trace:
            self.trace(ours)
        if options.ablate:
            self.ablate(ours, peak)

    def add(self, figures: dict[str, Any]) -> None:
        self.report |= figures
        write_figures(self.options.json, self.report)

    def check(self) -> int:
        """Both models, all recorded passes; gives the number of quantities."""
        folder = self.options.golden
        ours = check("our model", partial(turn_over, names=self.turned), folder, self.kind)
        return ours + check("the baseline", in_the_original_way, folder, self.kind)

    def make(self, turned: list[str]) -> Ours:
        return Ours(self.work.model(), self.work.batch(self.images), self.work.config(self.images), self.device, turned)

    def make_baseline(self) -> Baseline:
        return Baseline(self.work.model(), self.work.batch(self.images), self.work.config(self.images), self.device)

    def build_baseline(self) -> tuple[Baseline | None, int | None]:
        """Nothing where it doesn't fit beside ours."""
        try:
            return built(self.make_baseline, self.kind)
        except torch.OutOfMemoryError:
            pass  # what the exception holds is free only after it
        self.free()
        return None, None

    def free(self) -> None:
        gc.collect()
        if self.kind == "cuda":
            torch.cuda.empty_cache()

    def predicted(self, images: int) -> dict[str, int]:
        settings = deepspeed_settings(self.work.config(images), world_size=1)
        for name in self.turned:
            SWITCHES[name].settings(settings)
        return training_bytes(*self.work.on_meta(images, self.turned), settings, on_gpu=self.kind == "cuda")

    def largest(self) -> int:
        """The images that fit: from what is predicted downwards, until steps pass."""
        limit = self.options.memory_gb * GB if self.options.memory_gb else torch.cuda.mem_get_info()[0]
        few, many = 32, 64
        less, more = self.predicted(few), self.predicted(many)
        per_image = max(1.0, (more["passes"] - less["passes"]) / (many - few))
        self.images = max(1, few + int((limit - less["state"] - less["buckets"] - less["passes"]) / per_image))
        while self.images > 1 and not self.fits(limit):
            self.free()
            self.images = min(self.images - 1, int(self.images * SMALLER))
        self.free()
        return self.images

    def fits(self, limit: float) -> bool:
        try:
            subject, peak = built(partial(self.make, self.turned), self.kind)
        except torch.OutOfMemoryError:
            return False
        subject.close()
        return peak <= limit

    def counted_figures(self, ours: Samples, kernels: int) -> dict[str, Any]:
        """Operations and bytes, how near to the machine's ceilings they come, and the memory that was predicted."""
        model, inputs = self.work.on_meta(self.images, self.turned)
        operations, traffic = flops(model, inputs), backbone_bytes(model, inputs["images"])
        parts, seconds = ours.median_parts(), ours.median
        bandwidth = traffic / (parts["backbone"] + parts["backbone backward"])
        waits = {f"{rate:g}": max(0.0, self.images / rate - seconds) for rate in self.options.loader_rates}
        predicted = self.predicted(self.images)
        return {
            **{f"predicted_{name}_gb": size / GB for name, size in predicted.items()},
            "predicted_to_measured_peak": predicted["peak"] / GB / self.report["peak_gb"],
            "flops_per_step": operations,
            "mfu": operations / seconds / (self.report["matmul_tflops"] * 1e12),
            "backbone_gb": traffic / GB,
            "backbone_gb_per_s": bandwidth / GB,
            "backbone_share_of_copy": bandwidth / GB / self.report["copy_gb_per_s"],
            "kernel_launches": kernels,
            "data_wait": {rate: wait / (wait + seconds) for rate, wait in waits.items()},
        }

    def trace(self, ours: Ours) -> None:
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self.kind == "cuda" else [])]
        with profile(activities=activities, acc_events=True) as profiler:
            ours.step()
        order = "self_device_time_total" if self.kind == "cuda" else "self_cpu_time_total"
        print(profiler.key_averages().table(sort_by=order, row_limit=40, max_name_column_width=60))
        profiler.export_chrome_trace(str(self.options.trace))
        if self.options.trace.stat().st_size == 0:  # the profiler tells nobody
            print(f"{self.options.trace} couldn't be written; is there space?", file=sys.stderr)

    def ablate(self, ours: Ours, peak: int) -> None:
        """Each switch turned over alone, in turns with ours."""
        ablation: dict[str, dict[str, Any]] = {}
        for name in useful(self.turned, self.kind, self.work.dtype):
            found = ablation[name] = {"engine": "on" if SWITCHES[name].on else "off"}
            if time.monotonic() - self.started > 60 * self.options.minutes:
                found["left_out"] = "no time"
            else:
                try:
                    found |= self.turned_over(name, ours, peak)
                except Exception as error:  # a compiler's, say: one that fails here keeps the others from nothing
                    found["left_out"] = f"{type(error).__name__}: {error}".splitlines()[0]
                self.free()
            self.add({"ablation": ablation})
        show_ablation(ablation)

    def turned_over(self, name: str, ours: Ours, peak: int) -> dict[str, float]:
        turned = [*self.turned, name]
        check(f"our model, {name} turned over", partial(turn_over, names=turned), self.options.golden, self.kind, 1)
        other, other_peak = built(partial(self.make, turned), self.kind)
        samples = measure({"ours": ours.step, name: other.step}, self.kind, self.options.rounds, self.options.steps)
        other.close()
        seconds = samples[name].median
        return {
            "step_seconds": seconds,
            "step_ratio": seconds / samples["ours"].median,
            "memory_ratio": other_peak / peak,
        }


def step_figures(ours: Samples, images: int, peak: int) -> dict[str, Any]:
    parts = ours.median_parts()
    return {
        "step_seconds": ours.median,
        "step_seconds_q20": ours.quantile(0.2),
        "step_seconds_q80": ours.quantile(0.8),
        "host_seconds": statistics.median(ours.host),
        "images_per_second": images / ours.median,
        "parts": parts,
        "parts_of_step": sum(parts.values()) / ours.median,
        "peak_gb": peak / GB,
        "step_ratio_to_baseline": None,
        "memory_ratio_to_baseline": None,
    }


def compared_figures(samples: dict[str, Samples], images: int, peak: int, baseline_peak: int) -> dict[str, Any]:
    ours, baseline, plain = (samples[name] for name in ("ours", "baseline", "plain"))
    parts = baseline.median_parts()
    return {
        "baseline_step_seconds": baseline.median,
        "baseline_step_seconds_q20": baseline.quantile(0.2),
        "baseline_step_seconds_q80": baseline.quantile(0.8),
        "baseline_images_per_second": images / baseline.median,
        "baseline_parts": parts,
        "baseline_peak_gb": baseline_peak / GB,
        "step_ratio_to_baseline": baseline.median / ours.median,
        "memory_ratio_to_baseline": baseline_peak / peak,
        "baseline_passes_ratio_to_plain": sum(parts[part] for part in PASSES) / plain.median,
    }
