"""Where a step's time goes: moments at which one part ends and the next begins, taken by hooks on the model."""

import time
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

# Each moment of a step belongs to one part, so their times add up to the step's.
PARTS = (
    "images to device",  # and all other inputs
    "backbone",
    "sub-sampling",  # the draw, the gather, the position tables
    "encoder",  # word embeddings, visual projection, BERT's layers
    "heads",  # pooler, scores, losses
    "heads backward",
    "encoder backward",
    "sub-sampling backward",
    "backbone backward",
    "optimiser",  # from the last gradient on: ZeRO's buckets, norm, clipping, both updates, schedules
    "host",  # all between: metrics, the wrappers around forward and backward pass
)
PASSES = tuple(part for part in PARTS if part not in ("images to device", "optimiser", "host"))


class Recorder:
    """Notes the moments while it runs; on a GPU as events in the stream, so that nothing has to wait."""

    def __init__(self, device: torch.device) -> None:
        self.on_gpu = device.type == "cuda"
        self.running = False
        self.moments: list[tuple[str, Any]] = []

    def begin(self, part: str) -> None:
        if self.running:
            self.moments.append((part, self._now()))

    def _now(self) -> Any:
        if not self.on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def start(self) -> None:
        self.moments, self.running = [], True

    def stop(self) -> dict[str, float]:
        """Seconds of each part since `start`."""
        self.begin("")
        self.running = False
        if self.on_gpu:
            torch.cuda.synchronize()
        seconds: dict[str, float] = defaultdict(float)
        for (part, begun), (_, ended) in zip(self.moments, self.moments[1:], strict=False):
            seconds[part] += begun.elapsed_time(ended) / 1e3 if self.on_gpu else ended - begun
        return {part: seconds[part] for part in PARTS}

    def attach(self, model: nn.Module) -> None:
        """Hooks on the modules of a ClipVilForPretraining, and on the gradients of what goes from one to the next."""
        embeddings, encoder = model.get_submodule("bert.embeddings"), model.get_submodule("bert.encoder")
        backbone, projection = encoder.get_submodule("visual_model.visual"), encoder.get_submodule("visn_fc")
        *_, last_layer = encoder.get_submodule("layer").children()
        embeddings.register_forward_pre_hook(lambda *_: self.begin("encoder"))
        # The words come first in the forward pass, so last in the backward pass.
        embeddings.register_forward_hook(lambda _m, _i, words: self._between(words, "backbone", "encoder backward"))
        backbone.register_forward_hook(lambda _m, _i, grid: self._between(grid, "sub-sampling", "backbone backward"))
        projection.register_forward_pre_hook(
            lambda _m, inputs: self._between(inputs[0], "encoder", "sub-sampling backward")
        )
        last_layer.register_forward_hook(lambda _m, _i, encoded: self._between(encoded, "heads", "encoder backward"))
        model.register_forward_hook(lambda _m, _i, output: self._between(output.loss, "host", "heads backward"))

    def _between(self, tensor: Tensor, following: str, backward: str) -> None:
        """`tensor` is there, so the part behind it begins; once its gradient is, the backward pass of what made it."""
        self.begin(following)
        if self.running and tensor.requires_grad:
            tensor.register_hook(lambda _: self._begin_backward(backward))

    def _begin_backward(self, part: str) -> None:
        self.begin(part)
        if part == "heads backward":  # the first: what runs behind the whole backward pass is asked for within it
            torch.autograd.Variable._execution_engine.queue_callback(lambda: self.begin("optimiser"))
