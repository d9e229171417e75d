"""One step of the engine, as training does it, with any of the switches turned over."""

from collections.abc import Iterable
from contextlib import ExitStack

import torch

from engine.benchmark.step.original import as_loaded
from engine.benchmark.step.parts import Recorder
from engine.benchmark.step.switches import SWITCHES
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import OptimizationConfig
from engine.data.loading import Batch
from engine.model.pretraining import ClipVilForPretraining
from engine.training.engine import build_engine
from engine.training.loop import micro_step
from engine.training.reports.metrics import Metrics

BATCHES_PER_EPOCH = 1000  # the schedules are laid out for more steps than are measured


def turn_over(model: ClipVilForPretraining, names: Iterable[str]) -> ClipVilForPretraining:
    for name in names:
        SWITCHES[name].model(model)
    return model


class Ours:
    """DeepSpeed ZeRO-2 around the model, both optimisers and schedules, and the metrics of the training loop."""

    def __init__(
        self,
        model: ClipVilForPretraining,
        batch: Batch,
        config: OptimizationConfig,
        device: torch.device,
        turned: Iterable[str] = (),
    ) -> None:
        switches = [SWITCHES[name] for name in turned]
        settings = deepspeed_settings(config, world_size=1)
        for switch in switches:
            switch.settings(settings)
            batch = switch.batch(batch)
        self.around = [switch.around for switch in switches]
        self.batch, self.device = as_loaded(batch, device), device
        self.engine = build_engine(turn_over(model, turned), config, settings, BATCHES_PER_EPOCH)
        for switch in switches:
            switch.engine(self.engine)
        self.engine.train()
        self.metrics = Metrics(device)
        self.recorder = Recorder(device)
        self.recorder.attach(self.engine.module)

    def step(self) -> None:
        self.recorder.begin("images to device")
        batch = Batch(self.batch.inputs, self.batch.numbers, []).to(self.device)
        self.recorder.begin("host")
        with ExitStack() as stack:
            for around in self.around:
                stack.enter_context(around())
            output = micro_step(self.engine, batch, at_boundary=True)
        self.recorder.begin("host")
        self.metrics.add(output.metrics)

    def close(self) -> None:
        self.engine.destroy()  # the hooks on its parameters would keep it for ever
