"""Where a run starts: its own newest checkpoint, another's, or none; and whether it may."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import yaml

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.manifest import complete_checkpoints, has_checkpoints, newest_checkpoint, none_whole
from engine.checkpoint.state import Checkpoint, SavedState, open_checkpoint
from engine.configuration.flags import TrainingConfig
from engine.data.annotations.named import short_name, weight_of
from engine.distributed.ranks import Ranks
from engine.distributed.sharing import share_on_node
from engine.errors import UserError
from engine.training.preflight.memory import device_memory, largest_micro_batch
from engine.training.run_folder import RunFolder

# What a resumed run may say otherwise: paths, how it is spread, when it reports, saves and stops.
MAY_CHANGE = frozenset(
    {"data_root", "bert", "clip_weights", "image_store", "cache_dir", "num_workers", "worker_start_method"}
    | {"gradient_accumulation_steps", "global_batch_size", "deepspeed_config", "stop_after_epoch", "max_steps"}
    | {"epochs"}  # upwards
    | {"load", "from_scratch", "not_load_scheduler", "not_load_adam_optimizer", "valid", "max_unreadable_images"}
    | {"output", "report_step", "monitor", "stop_on", "save_step", "keep", "resume", "start_timeout"}
    | {"image_root", "answers", "load_lxmert", "load_lxmert_qa", "human_answers", "allow_trained_on"}
    | {"official_questions", "official_choices", "label_order"}
    | {"sub_sampling_in_evaluation", "activation_checkpointing", "compile", "memory_limit", "deterministic"}
)
# What the digests of ImageTextDataset.digests are of.
DIGESTED = {
    "texts": "the annotations' texts",
    "images": "the annotations' images",
    "labels": "the annotations' answers",
    "groups": "the batches that the sizes of images form",
    "parts": "the files of texts with a weight",
}


def find_start(
    config: TrainingConfig, folder: RunFolder, ranks: Ranks, *, claim: bool = True
) -> tuple[Checkpoint | None, SavedState | None]:
    """What the weights come from, and whether the run goes on from there.

    1. --resume auto: the newest checkpoint in --output that is whole
    2. else --load
    3. else nothing: --fromScratch, or CLIP and BERT

    Args:
        claim: whether the folder is taken for this run, and what an earlier one left unfinished in it removed.

    Returns:
        the checkpoint to go on from, and that or what --load names.
    """

    def newest() -> Path | None:
        if claim and ranks.rank == 0:
            folder.claim(config)
        if config.resume is None:
            return None
        found = newest_checkpoint(folder.path, progress=ranks.rank == 0)
        if found is None and has_checkpoints(folder.path):
            raise none_whole(folder.path)
        return found

    if (path := share_on_node(ranks, "checkpoint", newest)) is not None:
        resumed = Checkpoint(path)
        check_same_run(resumed, config, ranks.world_size)
        if Path(config.bert).parent == folder.path:  # its words are read, and config.yaml outlives what --keep deletes
            config.bert = resumed.content["config"]["bert"]
        return resumed, resumed
    if config.load is not None:
        optimizers = not (config.not_load_adam_optimizer and config.not_load_scheduler and not config.sgd_momentum)
        return None, open_checkpoint(config.load, ranks, optimizers=optimizers)
    return None, None


def settle_micro_batch(
    config: TrainingConfig,
    description: ModelDescription,
    settings: dict[str, Any],
    ranks: Ranks,
    device: torch.device,
    sentences_per_pass: float = 1.0,
) -> None:
    """Put a number in place of --micro_batch_size auto: the resumed run's, or the largest that fits into the device.

    Raises:
        UserError: if none fits, or there is no device to ask.
    """
    folder = Path(config.output)

    def choose() -> int:
        if config.resume is not None and complete_checkpoints(folder) and (folder / "config.yaml").is_file():
            return int(yaml.safe_load((folder / "config.yaml").read_text())["batch_size"])
        limit = device_memory(config, device)
        return largest_micro_batch(config, description, settings, ranks.world_size, limit, sentences_per_pass)

    config.batch_size = share_on_node(ranks, "micro-batch", choose)
    config.check(ranks.world_size)


def check_agreement(start: SavedState | None, batch_size: int, digests: dict[str, str]) -> None:
    """Compare what machines see and chose. All ranks call it.

    Args:
        digests: of the data to train on.

    Raises:
        UserError: if their weights come from different checkpoints, they chose other micro-batches, or have other data.
    """
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (Path(start.source).name if start is not None else "none", batch_size, digests))
    names, sizes = ({each[place] for each in found} for place in (0, 1))
    if len(sizes) > 1:
        raise UserError(
            f"--micro_batch_size auto came to {' and '.join(map(str, sorted(sizes)))} on machines with other GPUs; "
            f"give --micro_batch_size {min(sizes)}"
        )
    if len(names) > 1:
        seen = ", ".join(sorted(names))
        raise UserError(
            f"machines see different newest checkpoints ({seen}); --output, and a run that --load names, have to be on "
            "a disk that all share"
        )
    if different := [what for kind, what in DIGESTED.items() if len({theirs.get(kind) for _, _, theirs in found}) > 1]:
        raise UserError(f"machines have data that differ in {', '.join(different)}; copy those of one machine to all")


def as_compared(name: str, value: Any) -> Any:
    """A flag's value as a resumed run has to have it; tables to train on may have been moved."""
    if name != "train":
        return value
    return [(Path(word).name, short_name(weight_of(word)[0])) for word in value.split(",")]  # draws follow short names


def check_same_run(checkpoint: Checkpoint, config: TrainingConfig, world_size: int) -> None:
    """Raises UserError if a run goes on with other flags or samples per step than it began with."""
    if "ranks" not in checkpoint.content:
        raise UserError(f"{checkpoint.folder} was converted, and is no place to go on from; start from it with --load")
    before: dict[str, Any] = checkpoint.content["config"]
    now = asdict(config)
    defaults = {field.name: field.default for field in fields(config)}
    before = {name: before.get(name, defaults[name]) for name in now}  # a flag that is newer than the run was off
    changed = [
        name
        for name in now
        if name not in MAY_CHANGE and as_compared(name, before[name]) != as_compared(name, now[name])
    ]
    if changed:
        values = ", ".join(f"--{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
        raise UserError(
            f"{checkpoint.folder} is of a run with other flags: {values}; give the same ones, or start another run "
            f"from it with --load {checkpoint.folder} and a new --output"
        )
    if config.epochs < before["epochs"]:
        raise UserError(
            f"{checkpoint.folder} is of a run of {before['epochs']} epochs, and --epochs {config.epochs} is fewer; "
            f"give {before['epochs']} or more, and --stop_after_epoch to end the run earlier"
        )
    passes = len(checkpoint.content["ranks"]) * before["gradient_accumulation_steps"]
    if passes != world_size * config.gradient_accumulation_steps:
        samples, fitting = passes * config.batch_size, [n for n in range(1, passes + 1) if passes % n == 0]
        remedy = f"add --global_batch_size {samples}"
        if world_size not in fitting:
            remedy = f"{world_size} ranks can't share {samples} in micro-batches of {config.batch_size}, which have to "
            remedy += f"stay: go on with {' or '.join(map(str, fitting))}, or start another run with --load"
        raise UserError(
            f"{checkpoint.folder} is of a run with {samples} samples per step, now there are "
            f"{world_size * config.gradient_accumulation_steps * config.batch_size}; {remedy}"
        )


def check_same_data(checkpoint: Checkpoint, sentences: int, answers: list[str] | None, digests: dict[str, str]) -> None:
    """Compare the data to train on with those that a run began with.

    Args:
        sentences: how many there are.
        answers: of the answer head's rows; None if none is trained.
        digests: see ImageTextDataset.digests; checkpoints of earlier versions have none.

    Raises:
        UserError: with all that is different.
    """
    before = {**digests, **checkpoint.content.get("digests", {})}
    learnt = {kind: what for kind, what in DIGESTED.items() if kind != "labels" or answers is not None}
    different = [what for kind, what in learnt.items() if before.get(kind) != digests.get(kind)]
    if (count := checkpoint.content["samples"]) != sentences:
        different = [f"the number of sentences ({count:,}, now {sentences:,})"]  # and hence in all kinds
    if answers is not None and checkpoint.answers != answers:
        different.append("the answer table")
    if different:
        raise UserError(
            f"{checkpoint.folder} is of a run on other data, which differ in {', '.join(different)}; restore them, "
            f"or start another run with --load {checkpoint.folder} and a new --output"
        )
