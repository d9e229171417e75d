"""Clocks: of the device, by CUDA events around eager calls or replays of a CUDA graph, and of the wall."""

import itertools
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels.benchmark.shapes import Implementation

Call = Callable[[], object]
GRAPHED_CALLS = 50  # in a graph, at least: its own launch takes as long as one call of a small batch


def directions(implementation: Implementation, inputs: Any, drawn: Tensor | None = None) -> dict[str, Call]:
    """Calls that run one direction. With `drawn`, the host's part of sampling is left out."""

    def forward() -> Tensor:
        index = implementation.draw(inputs) if implementation.draw and drawn is None else drawn
        return implementation.compute(inputs, index)[0].contiguous()

    tokens = forward()

    def backward(of: Tensor = tokens) -> object:
        return inputs.finished(torch.autograd.grad(of, inputs.leaves, inputs.d_tokens, retain_graph=True))

    return {"forward": forward, "backward": backward, "both": lambda: backward(forward())}


@dataclass
class Samples:
    """Microseconds of one call each, by clock."""

    graph: list[float] = field(default_factory=list)  # device time of a replayed CUDA graph: no gaps between kernels
    eager: list[float] = field(default_factory=list)  # device time from first to last kernel, gaps included
    wall: list[float] = field(default_factory=list)  # until the device has finished, the host's own work included

    @property
    def counted(self) -> list[float]:
        """The samples that count: of the device where there is one."""
        return self.graph or self.eager or self.wall

    def median(self, clock: str | None = None) -> float:
        return statistics.median(getattr(self, clock) if clock else self.counted)


class Subject:
    """One implementation and direction, on sets of inputs that take turns, so that none is found in a cache."""

    def __init__(self, name: str, calls: list[Call], graphed: Callable[[], list[Call]], device: str) -> None:
        self.samples = Samples()
        self.turn = itertools.cycle(calls)
        self.on_gpu = device == "cuda"
        self.graph: torch.cuda.CUDAGraph | None = None
        self.graphed_calls: list[Call] = []  # the graph reads their tensors: they live as long as it does
        for call in calls:
            call()
        self.peak_bytes: int | None = None
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            kept = calls[0]()
            self.peak_bytes = torch.cuda.max_memory_allocated() - before
            del kept
            try:
                self.graph, self.graphed_calls = capture(graphed)
            except RuntimeError as error:
                print(f"{name}: no CUDA graph, so eager times count: {error}", file=sys.stderr)

    def sample(self) -> None:
        """Time one eager call and, on a GPU, one replay."""
        call = next(self.turn)
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            self.samples.wall.append((time.perf_counter() - start) * 1e6)
            return
        start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start = time.perf_counter()
        start_event.record()
        call()
        end_event.record()
        torch.cuda.synchronize()
        self.samples.wall.append((time.perf_counter() - start) * 1e6)
        self.samples.eager.append(start_event.elapsed_time(end_event) * 1e3)
        if self.graph is not None:
            start_event.record()
            self.graph.replay()
            end_event.record()
            torch.cuda.synchronize()
            self.samples.graph.append(start_event.elapsed_time(end_event) * 1e3 / len(self.graphed_calls))


def capture(make_calls: Callable[[], list[Call]]) -> tuple[torch.cuda.CUDAGraph, list[Call]]:
    """A graph of all calls, one after the other, several times, and these calls.

    They are made on the graph's stream, so that their backward passes run there too.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        calls = make_calls()
        for call in calls:
            call()
    calls *= -(-GRAPHED_CALLS // len(calls))
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    torch.cuda.synchronize()
    return graph, calls


def device_name(device: str) -> str:
    """That of the GPU, or of the CPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())


def copy_gigabytes_per_second(device: str, rounds: int) -> float:
    """Bandwidth of copying memory, bytes read and written: the median over rounds of a copy that no cache holds."""
    source = torch.ones((512 if device == "cuda" else 128) * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(rounds + 1):
        if device == "cuda":
            start_event, end_event = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start_event.record()
            target.copy_(source)
            end_event.record()
            torch.cuda.synchronize()
            times.append(start_event.elapsed_time(end_event) / 1e3)
        else:
            start = time.perf_counter()
            target.copy_(source)
            times.append(time.perf_counter() - start)
    return 2 * source.nbytes / torch.tensor(times[1:]).median().item() / 1e9
