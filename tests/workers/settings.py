"""A small model, trained for a few steps with each of many DeepSpeed configurations.

settings.py REPORT.json FILE.json...

The report has, for each rank and file, the losses and the weights, or what was refused, or the error.
"""

import json
import sys
import traceback
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import set_seed
from transformers.utils import ModelOutput

from engine.checkpoint.saving import full_state
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import OptimizationConfig
from engine.data.loading import Batch
from engine.distributed.joining import join
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.training.engine import build_engine
from engine.training.loop import micro_step
from engine.training.preflight.deepspeed import configuration_problems
from tests.workers import fp16_pretrain  # noqa: F401  fp16 passes on this CPU

ACCUMULATION = 2
STEPS = 2

torch.set_num_threads(1)
report, *files = sys.argv[1:]
ranks = Ranks.from_environment()
join()


class Model(nn.Module):
    """Something for each of the optimisers to train."""

    def __init__(self) -> None:
        super().__init__()
        self.visual_model = nn.Linear(8, 8)
        self.head = nn.Linear(8, 1)

    def forward(self, inputs: torch.Tensor) -> ModelOutput:
        outputs = self.head(self.visual_model(inputs.to(self.head.weight.dtype)))
        return ModelOutput(loss=outputs.float().square().mean())


def train(path: Path) -> dict[str, Any]:
    """Two steps, on the same data each time, in the precision that the file's name begins with."""
    precision = {name: path.name.startswith(name) for name in ("fp16", "bf16")}
    config = OptimizationConfig(
        batch_size=2,
        gradient_accumulation_steps=ACCUMULATION,
        warmup_ratio=0.0,
        sgd_lr=0.1,  # which, without clipping, shows how large a gradient is
        max_grad_norm=1000.0,
        deepspeed_config=str(path),
        **precision,
    )
    settings = deepspeed_settings(config, ranks.world_size)
    if problems := list(configuration_problems(settings)):
        raise UserError("; ".join(problems))
    set_seed(0)
    engine = build_engine(Model(), config, settings, 100)
    set_seed(1 + ranks.rank)
    losses = []
    for number in range(STEPS * ACCUMULATION):
        at_boundary = number % ACCUMULATION == ACCUMULATION - 1
        batch = Batch({"inputs": torch.randn(2, 8)}, [0, 1], [])
        losses.append(float(micro_step(engine, batch, at_boundary).loss.detach()))
    return {"losses": losses, "weights": {name: tensor.tolist() for name, tensor in full_state(engine).items()}}


results = {}
for file in files:
    try:
        results[file] = train(Path(file))
    except UserError as error:
        results[file] = {"refused": str(error)}
    except Exception:
        results[file] = {"error": traceback.format_exc()}
    dist.barrier()
everywhere: list[Any] = [None] * ranks.world_size
dist.all_gather_object(everywhere, results)
if ranks.rank == 0:
    Path(report).write_text(json.dumps(everywhere))
dist.destroy_process_group()
