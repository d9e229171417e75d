"""A step in fp32 on two ranks, in buckets for all and in buckets smaller than some parameters.

masters.py REPORT.json
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import BertConfig, set_seed

from engine.checkpoint.saving import full_state
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import OptimizationConfig
from engine.distributed.joining import join
from engine.distributed.ranks import Ranks
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.model.pretraining import ClipVilForPretraining
from engine.training.engine import build_engine

ranks = Ranks.from_environment()
config = OptimizationConfig(batch_size=2, warmup_ratio=0.0)
join()


def step(bucket_size: int) -> tuple[bool, bool, dict[str, torch.Tensor]]:
    """Whether ZeRO's fp32 weights lie in the model's memory, whether they are the model's, and what they are."""
    settings = deepspeed_settings(config, ranks.world_size)
    settings["zero_optimization"]["reduce_bucket_size"] = bucket_size
    set_seed(0)
    bert = BertConfig(vocab_size=50, hidden_size=64, num_hidden_layers=1, num_attention_heads=1, intermediate_size=128)
    engine = build_engine(ClipVilForPretraining(bert, VisualShape(SHAPES["tiny"], 4)), config, settings, 100)
    set_seed(1 + ranks.rank)
    words = torch.randint(1, 50, (2, 6))
    inputs = {"input_ids": words, "token_type_ids": torch.zeros_like(words), "attention_mask": torch.ones_like(words)}
    labels = {"masked_lm_labels": words, "matched_label": words[:, 0] % 2, "ans": words[:, 0]}
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    engine.train()
    output = engine(**inputs, **labels, images=images, sampling_state=torch.tensor([1, 0, 2 * ranks.rank]))
    engine.backward(output.loss)
    engine.step()
    model = {parameter.untyped_storage().data_ptr() for parameter in engine.module.parameters()}
    masters = engine.optimizer.single_partition_of_fp32_groups
    weights = full_state(engine)
    same = all(torch.equal(weights[name], parameter) for name, parameter in engine.module.named_parameters())
    return all(each.untyped_storage().data_ptr() in model for each in masters), same, weights


shared, same, weights = step(10_000_000)
_, same_again, again = step(1000)
record = {
    "shared": shared,
    "the model's": same and same_again,
    "the same in small buckets": all(torch.equal(weights[name], again[name]) for name in weights),
    "sum": sum(float(tensor.double().sum()) for name, tensor in weights.items() if "running" not in name),
}
everywhere: list[dict] = [{}] * ranks.world_size
dist.all_gather_object(everywhere, record)
if ranks.rank == 0:
    Path(sys.argv[1]).write_text(json.dumps(everywhere))
dist.destroy_process_group()
