"""How long a checkpoint holds training up, how long until it is on the disk, and how large it is.

    python -m engine.benchmark.checkpoints --json docs/benchmarks/checkpoints_cpu.json
    deepspeed --num_gpus 8 --module engine.benchmark.checkpoints

Beside DeepSpeed's own save_checkpoint and load_checkpoint, which neither sync nor verify, in the same run: medians over
the rounds, in turns. The model is RN50 and BERT base with AdamW's moments, in fp32, or --precision.
"""

import argparse
import functools
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from torch import Tensor
from torch.utils._pytree import tree_leaves
from transformers import BertConfig, set_seed

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.manifest import read_manifest, verify
from engine.checkpoint.restoring import restore_all
from engine.checkpoint.saving import Checkpoints
from engine.checkpoint.shards import MODEL_STATES, load_shard
from engine.checkpoint.state import CONTENT, Checkpoint, load_weights
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import OptimizationConfig
from engine.distributed.device import pick_device
from engine.distributed.joining import join
from engine.distributed.ranks import Ranks
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.training.engine import build_engine

NAME, PLAIN = "Step000001", "plain"


def make_engine(description: ModelDescription, config: OptimizationConfig, world_size: int) -> DeepSpeedEngine:
    """An engine that has done one step, so that AdamW has its moments."""
    set_seed(0)
    engine = build_engine(description.build(), config, deepspeed_settings(config, world_size), batches_per_epoch=100)
    device = engine.device
    words = torch.ones(1, 20, dtype=torch.int64, device=device)
    one = torch.ones(1, dtype=torch.int64, device=device)
    output = engine(
        input_ids=words,
        token_type_ids=torch.zeros_like(words),
        attention_mask=words,
        images=torch.zeros(1, 3, 64, 64, dtype=torch.uint8, device=device),
        masked_lm_labels=words,
        matched_label=one,
        ans=one,
        sampling_state=torch.tensor([0, 0, 0], device=device),
    )
    engine.backward(output.loss)
    engine.step()
    return engine


def timed(action: Callable[[], object]) -> float:
    """Seconds that it takes on the slowest rank."""
    dist.barrier()
    started = time.perf_counter()
    action()
    dist.barrier()
    return time.perf_counter() - started


def tensor_bytes(folder: Path) -> int:
    """Of the tensors in a checkpoint's files, each storage once."""
    storages: dict[tuple[str, int], int] = {}
    for path in folder.glob("*.pt"):
        for leaf in tree_leaves(load_shard(path)):
            if isinstance(leaf, Tensor):
                storages[path.name, leaf.untyped_storage().data_ptr()] = leaf.untyped_storage().nbytes()
    return sum(storages.values())


def measure(folder: Path, rounds: int, precision: str, ranks: Ranks) -> dict[str, Any]:
    """Medians over the rounds, and the bytes of the last one."""
    config = OptimizationConfig(fp16=precision == "fp16", bf16=precision == "bf16", batch_size=1)
    visual = VisualShape(SHAPES["RN50"], sub_feat_num=4)
    description = ModelDescription.of(BertConfig(), visual, [str(row) for row in range(9500)], None)
    engine = make_engine(description, config, ranks.world_size)
    plain, checkpoints = TorchCheckpointEngine(), Checkpoints(engine, folder)
    content = {CONTENT: {"description": description.to_dict()}}
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):  # the first warms up
        if ranks.rank == 0:
            for name in (NAME, PLAIN):
                shutil.rmtree(folder / name, ignore_errors=True)
        engine.checkpoint_engine = plain
        one = {"DeepSpeed, save": timed(lambda: engine.save_checkpoint(str(folder), tag=PLAIN, save_latest=False))}
        one["DeepSpeed, load"] = timed(lambda: engine.load_checkpoint(str(folder), tag=PLAIN))
        engine.checkpoint_engine = checkpoints.writer
        one["held up"] = timed(lambda: checkpoints.save(NAME, 1, content, weights_file=False))
        one["on the disk"] = one["held up"] + timed(checkpoints.finish)
        one["verify"] = timed(lambda: verify_on_first(ranks, folder / NAME))
        one["load"] = timed(functools.partial(restore, engine, description.build(), folder / NAME))
        if number:
            for name, value in one.items():
                seconds.setdefault(name, []).append(value)
    on_disk = sum(path.stat().st_size for path in (folder / NAME).iterdir())
    result = {name: statistics.median(values) for name, values in seconds.items()}
    assert set(read_manifest(folder / NAME)["files"]) >= {MODEL_STATES}
    return {**result, "bytes on the disk": on_disk, "bytes of tensors": tensor_bytes(folder / NAME)}


def verify_on_first(ranks: Ranks, folder: Path) -> None:
    """As a resumed run does, on the first rank of each machine."""
    if ranks.local_rank == 0:
        verify(folder)


def restore(engine: DeepSpeedEngine, model: torch.nn.Module, folder: Path) -> None:
    """As a resumed run does: weights into a new model, everything else into the engine."""
    checkpoint = Checkpoint(folder)
    load_weights(model, checkpoint, checkpoint.answers)
    restore_all(engine, checkpoint)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write; a temporary one if not given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp32")
    parser.add_argument("--json", help="also write the figures to this file")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    ranks = Ranks.from_environment()
    device = pick_device(ranks)
    join()
    places: list[Any] = [None]
    if ranks.rank == 0:
        places = [tempfile.mkdtemp(prefix="clipvil-checkpoint-", dir=options.folder)]
    dist.broadcast_object_list(places, src=0)
    try:
        figures = measure(Path(places[0]), options.rounds, options.precision, ranks)
    finally:
        if ranks.rank == 0:
            shutil.rmtree(places[0])
    if ranks.rank == 0:
        where = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
        about = {"device": where, "ranks": ranks.world_size, "precision": options.precision, "torch": torch.__version__}
        report = {**about, **{name: round(value, 3) for name, value in figures.items()}}
        report["bytes on the disk / of tensors"] = round(figures["bytes on the disk"] / figures["bytes of tensors"], 4)
        report["held up / DeepSpeed's save"] = round(figures["held up"] / figures["DeepSpeed, save"], 2)
        report["verify and load / DeepSpeed's load"] = round(
            (figures["verify"] + figures["load"]) / figures["DeepSpeed, load"], 2
        )
        for name, value in report.items():
            print(f"{name:<36} {value}")
        if options.json:
            Path(options.json).write_text(json.dumps(report, indent=1) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
