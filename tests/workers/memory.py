"""What two stages of ZeRO keep on each rank, in bytes: as counted, and as measured once optimisers have their state.

memory.py REPORT.json
"""

import json
import sys
from pathlib import Path

import torch.distributed as dist

from engine.benchmark.counting import Memory
from engine.benchmark.step.workload import Workload
from engine.configuration.deepspeed import deepspeed_settings
from engine.distributed.joining import join
from engine.distributed.ranks import Ranks
from engine.optim.hybrid import trained_values
from engine.training.engine import build_engine
from engine.training.loop import micro_step
from engine.training.preflight.memory import optimizer_groups, reduced_values, training_bytes

IMAGES, BUCKET = 2, 3_000_000  # which any parameter fits into
ITEMSIZE = 2
ranks = Ranks.from_environment()
join()


def compare(stage: int) -> dict[str, tuple[int, int]]:
    """Of the state, and of the gradients that are there between two micro-batches of a step."""
    work = Workload("tiny", 1, 64, 4, 64, 96, "bf16")
    config = work.config(IMAGES)
    config.gradient_accumulation_steps, config.sgd_momentum = 2, 0.9
    settings = deepspeed_settings(config, ranks.world_size)
    settings["zero_optimization"] |= {"stage": stage, "reduce_bucket_size": BUCKET}
    model, inputs = work.on_meta(IMAGES)
    counted = training_bytes(model, inputs, settings, world_size=ranks.world_size, on_gpu=False, sgd_momentum=True)
    reduced = reduced_values(list(optimizer_groups(model, use_adam_for_visual=False).values()), ranks.world_size)
    gradients = reduced if stage == 2 else sum(trained_values(model)) + 2 * BUCKET  # kept until the step, as well
    batch = work.batch(IMAGES)
    engine = build_engine(work.model(), config, settings, batches_per_epoch=100)
    engine.train()
    for at_boundary in (False, True):
        micro_step(engine, batch, at_boundary)
    zero = engine.optimizer
    moments = [value for values in zero.optimizer.state.values() for value in values.values() if value.dim()]
    kept = [*engine.module.parameters(), *engine.module.buffers(), *zero.single_partition_of_fp32_groups, *moments]
    state = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    between = []
    for _ in range(8):
        with Memory("cpu") as memory:
            micro_step(engine, batch, at_boundary=False)
        between.append(memory.kept)
        micro_step(engine, batch, at_boundary=True)
    engine.destroy()
    # Of what was there before, the profiler may not see that it is freed, so the least is what is kept.
    return {"state": (counted["state"], sum(state.values())), "gradients": (ITEMSIZE * gradients, min(between))}


found = {f"stage {stage}": compare(stage) for stage in (1, 2)}
everywhere: list[dict[str, dict[str, tuple[int, int]]]] = [{}] * ranks.world_size
dist.all_gather_object(everywhere, found)
if ranks.rank == 0:
    Path(sys.argv[1]).write_text(json.dumps(everywhere))
dist.destroy_process_group()
