"""Four fp16 steps; in the third, the last rank's gradient is infinite. What moved at each goes to a file.

overflow.py REPORT.json FLAGS OF launch/pretrain.py
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from engine.benchmark.counting import HostWaits
from engine.checkpoint.saving import full_state
from engine.configuration.bert import read_bert
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.parsing import parse
from engine.data.loading import training_loader
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.ranks import Ranks
from engine.tasks.pretraining import PretrainConfig, Pretraining
from engine.training.engine import build_engine
from engine.training.model import build_model, describe_model
from engine.training.program import RECIPES
from tests.workers import fp16_pretrain  # noqa: F401  fp16 passes on this CPU

BAD_STEP = 3

report = Path(sys.argv.pop(1))
config, _ = parse(PretrainConfig, sys.argv[1:], RECIPES)
ranks = Ranks.from_environment()
device = pick_device(ranks)
config.check(ranks.world_size)
bert, tokenizer = read_bert(config.bert)
task = Pretraining(config, tokenizer, ranks)
task.read()
batches = training_loader(
    task.training,
    config.batch_size,
    accumulation=1,
    num_workers=0,
    rank=ranks.rank,
    world_size=ranks.world_size,
    same_order=True,
)
model = build_model(config, describe_model(config, bert, task), None, task)
join()
engine = build_engine(model, config, deepspeed_settings(config, ranks.world_size), len(batches))


def snapshot() -> dict[str, torch.Tensor]:
    """Weights by optimiser, and every tensor of both optimisers' states on this rank."""
    state = {f"weights {key}": tensor for key, tensor in full_state(engine).items() if "running" not in key}
    state = {key: tensor.clone() for key, tensor in state.items() if "num_batches" not in key}
    for number, values in enumerate(engine.optimizer.optimizer.state.values()):
        state |= {f"state {number} {k}": v.clone() for k, v in values.items() if isinstance(v, torch.Tensor)}
    return state


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], part: str) -> int:
    return sum(not torch.equal(before.get(key, torch.empty(0)), after[key]) for key in after if part in key)


engine.train()
records = []
for step, batch in enumerate(batches, start=1):
    before, rates, scale = snapshot(), engine.lr_scheduler.get_last_lr(), engine.optimizer.loss_scale
    inputs = batch.to(device).inputs
    waits = HostWaits()
    output = engine(**inputs)
    is_bad = step == BAD_STEP and ranks.rank == ranks.world_size - 1
    if is_bad:
        weight = engine.module.bert.encoder.visn_fc.visn_fc.weight
        hook = weight.register_hook(lambda gradient: gradient.fill_(float("inf")))
    engine.backward(output.loss)
    with waits:
        engine.step()
    if is_bad:
        hook.remove()
    after = snapshot()
    record = {
        "backbone": moved(before, after, "visual_model"),
        "weights": moved(before, after, "weights "),
        "state": moved(before, after, "state "),
        "rates_moved": rates != engine.lr_scheduler.get_last_lr(),
        "scale_factor": engine.optimizer.loss_scale / scale,
        "skipped": engine.skipped_steps,
        "waits": waits.places,
    }
    everywhere: list[dict] = [{}] * ranks.world_size
    dist.all_gather_object(everywhere, record)
    records.append(everywhere)
    if step == BAD_STEP + 1:
        break
if ranks.rank == 0:
    report.write_text(json.dumps(records))
dist.destroy_process_group()
