"""How fast each rank is, and what it spends its time on: measured by the host, and exchanged only for reports."""

import statistics
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import nn

from engine.data.loading import Batch
from engine.data.waiting import TimedLoader
from engine.distributed.device import peak_bytes

GB = 1e9
TIMED_PASSES = 200  # of a rank between two reports, the latest


@dataclass
class Share:
    """What one rank did since the last report. Sums over all ranks are estimated as if each had done the same."""

    seconds: float
    samples: int  # sentences, of all ranks
    images: int  # passes of the backbone, of all ranks
    micro_batches: int
    waited: float  # seconds, for the loader
    forward: float  # seconds of a forward pass: their median; 0 if none was timed
    peak_memory: float  # GB, since the program's start

    @property
    def data_wait(self) -> float:
        return min(1.0, self.waited / self.seconds)

    @property
    def busy(self) -> float:
        """Seconds of a micro-batch in which no other rank can hold this one up."""
        return self.forward + self.waited / self.micro_batches


class ForwardTimer:
    """Times a model's forward passes in training, which hold no collective: there no rank waits for another.

    A GPU's are timed by events on its stream, which are read at the next report, when the device has been waited for
    anyway.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.passes: deque[tuple[Any, Any]] = deque(maxlen=TIMED_PASSES)
        self.begun: Any = None
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def take(self) -> float:
        """Median seconds since it was last asked."""
        if self.on_gpu and self.passes:
            self.passes[-1][1].synchronize()
        seconds = [begun.elapsed_time(end) / 1000 if self.on_gpu else end - begun for begun, end in self.passes]
        self.passes.clear()
        return statistics.median(seconds) if seconds else 0.0

    def _begin(self, model: nn.Module, arguments: Any) -> None:
        self.begun = self._now() if model.training else None

    def _end(self, model: nn.Module, arguments: Any, output: Any) -> None:
        if self.begun is not None:
            self.passes.append((self.begun, self._now()))

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.monotonic()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


class Pace:
    """This rank's share since the last report."""

    def __init__(self, engine: DeepSpeedEngine, batches: TimedLoader[Batch]) -> None:
        self.batches, self.device = batches, engine.device
        self.forward = ForwardTimer(engine.module, engine.device)
        self.start()

    def start(self) -> None:
        """Count anew from here."""
        self.started, self.waited_before = time.monotonic(), self.batches.seconds
        self.samples = self.images = self.micro_batches = 0

    def count(self, batch: Batch) -> None:
        self.samples += len(batch) * dist.get_world_size()
        self.images += len(batch.inputs["images"]) * dist.get_world_size()
        self.micro_batches += 1

    def state_dict(self) -> dict[str, Any]:
        return {
            "samples": self.samples,
            "images": self.images,
            "micro_batches": self.micro_batches,
            "seconds": time.monotonic() - self.started,
            "waited": self.batches.seconds - self.waited_before,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Of a checkpoint; those of earlier versions have no `samples`, and count them as `images`."""
        self.images, self.micro_batches = state["images"], state["micro_batches"]
        self.samples = state.get("samples", self.images)
        self.started = time.monotonic() - state["seconds"]
        self.waited_before = self.batches.seconds - state.get("waited", 0.0)

    def gather(self) -> list[Share]:
        """Every rank's, on every rank; all of them have to call it, after the device has been waited for."""
        mine = Share(
            seconds=time.monotonic() - self.started,
            samples=self.samples,
            images=self.images,
            micro_batches=self.micro_batches,
            waited=self.batches.seconds - self.waited_before,
            forward=self.forward.take(),
            peak_memory=peak_bytes(self.device) / GB,
        )
        shares = [mine] * dist.get_world_size()
        dist.all_gather_object(shares, mine)
        return shares


def speeds(shares: list[Share], accumulation: int) -> dict[str, float]:
    """A report's entries about the pace; of the time that passed, rank 0's clock decides."""
    seconds, count = shares[0].seconds, len(shares)
    return {
        "images_per_second": round(sum(share.images for share in shares) / count / seconds, 2),
        "samples_per_second": round(sum(share.samples for share in shares) / count / seconds, 2),
        "seconds_per_step": round(seconds / shares[0].micro_batches * accumulation, 4),
        "data_wait": round(sum(share.data_wait for share in shares) / count, 4),
        "peak_memory_gb": round(max(share.peak_memory for share in shares), 3),
    }
