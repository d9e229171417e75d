"""The folder of a run, and where a run starts."""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import torch.distributed as dist

from engine.arguments import to_yaml
from engine.checkpoint.manifest import MANIFEST, complete_checkpoints, newest_checkpoint, sweep
from engine.checkpoint.state import Checkpoint, SavedState, open_checkpoint
from engine.config import TrainingConfig
from engine.distributed import Ranks
from engine.errors import UserError
from engine.files import only_here
from engine.preemption import GRACE
from engine.sharing import share_on_node

# What a resumed run may say otherwise: paths, how it is spread, when it reports, saves and stops.
MAY_CHANGE = frozenset(
    {"data_root", "bert", "clip_weights", "image_store", "cache_dir", "num_workers", "worker_start_method"}
    | {"gradient_accumulation_steps", "global_batch_size", "deepspeed_config", "stop_after_epoch", "max_steps"}
    | {"load", "from_scratch", "not_load_scheduler", "not_load_adam_optimizer", "valid", "max_unreadable_images"}
    | {"output", "report_step", "save_step", "keep", "resume"}
    | {"load_lxmert", "load_lxmert_qa", "human_answers", "allow_trained_on"}
    | {"sub_sampling_in_evaluation", "activation_checkpointing", "deterministic"}
)


class RunFolder:
    """`--output`: config.yaml, metrics.jsonl, checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock: IO[bytes] | None = None

    def check(self, *, resume: bool) -> None:
        """Raises UserError if a run's checkpoints are here that this run isn't meant to go on from."""
        found = [*complete_checkpoints(self.path), *sorted(path.parent for path in self.path.glob(f"[!.]*/{MANIFEST}"))]
        if not resume and found:
            raise UserError(
                f"--output {self.path} holds a run, up to {found[0].name}; add --resume auto to go on from there, "
                "choose another folder, or remove it"
            )

    def claim(self, config: TrainingConfig) -> None:
        """Keep other runs out until this process ends, and remove what an earlier one left unfinished.

        Raises:
            UserError: if the folder can't be written, or a run that uses it doesn't end.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = self.lock = (self.path / ".lock").open("ab")
            _wait(lambda: only_here(lock, self.path), f"waiting for another run to leave {self.path}")
            sweep(self.path)
            if config.resume is None or not complete_checkpoints(self.path):
                (self.path / "metrics.jsonl").unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"--output {self.path} can't be written: {error.strerror}; choose another folder") from None

    def write_config(self, config: TrainingConfig) -> None:
        """Leave the flags as a recipe.

        Raises:
            UserError: if the disk is full.
        """
        try:
            (self.path / "config.yaml").write_text(to_yaml(config))
        except OSError as error:
            raise UserError(f"--output {self.path} can't be written: {error.strerror}; choose another folder") from None


def _wait(attempt: Callable[[], None], message: str) -> None:
    """A run that is being ended still writes its checkpoint."""
    deadline = time.monotonic() + GRACE + 10
    told = False
    while True:
        try:
            return attempt()
        except UserError:
            if time.monotonic() > deadline:
                raise
        if not told:
            print(message, file=sys.stderr, flush=True)
            told = True
        time.sleep(0.2)


def find_start(
    config: TrainingConfig, folder: RunFolder, ranks: Ranks, sentences: int
) -> tuple[Checkpoint | None, SavedState | None]:
    """What the weights come from, and whether the run goes on from there.

    1. --resume auto: the newest checkpoint in --output that is whole
    2. else --load
    3. else nothing: --fromScratch, or CLIP and BERT

    Returns:
        the checkpoint to go on from, and that or what --load names.
    """

    def newest() -> Path | None:
        if ranks.rank == 0:
            folder.claim(config)
        if config.resume is None:
            return None
        return newest_checkpoint(folder.path, progress=ranks.rank == 0)

    if (path := share_on_node(ranks, "checkpoint", newest)) is not None:
        resumed = Checkpoint(path)
        check_same_run(resumed, config, ranks.world_size, sentences)
        return resumed, resumed
    if config.load is not None:
        optimizers = not (config.not_load_adam_optimizer and config.not_load_scheduler and not config.sgd_momentum)
        return None, open_checkpoint(config.load, optimizers=optimizers, progress=ranks.rank == 0)
    return None, None


def check_agreement(resumed: Checkpoint | None) -> None:
    """Raises UserError if machines go on from different checkpoints; every rank has to call it."""
    names: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(names, resumed.folder.name if resumed is not None else None)
    if len(set(names)) > 1:
        seen = ", ".join(sorted({name or "none" for name in names}))
        raise UserError(
            f"machines see different newest checkpoints ({seen}); --output has to be on a disk that all share"
        )


def check_same_run(checkpoint: Checkpoint, config: TrainingConfig, world_size: int, sentences: int) -> None:
    """Raises UserError if a run goes on with other flags, data or samples per step than it began with."""
    if "ranks" not in checkpoint.content:
        raise UserError(f"{checkpoint.folder} was converted, and is no place to go on from; start from it with --load")
    before: dict[str, Any] = checkpoint.content["config"]
    now = asdict(config)
    changed = [name for name in now if name not in MAY_CHANGE and name in before and before[name] != now[name]]
    if changed:
        values = ", ".join(f"--{name} was {before[name]!r} and is {now[name]!r}" for name in changed)
        raise UserError(
            f"{checkpoint.folder} is of a run with other flags: {values}; give the same ones, or start another run "
            f"from it with --load {checkpoint.folder} and a new --output"
        )
    if checkpoint.content["samples"] != sentences:
        raise UserError(
            f"{checkpoint.folder} is of a run on {checkpoint.content['samples']:,} sentences, now there are "
            f"{sentences:,}; restore the data, or start another run with --load and a new --output"
        )
    batch_before = len(checkpoint.content["ranks"]) * before["gradient_accumulation_steps"]
    if batch_before != world_size * config.gradient_accumulation_steps:
        raise UserError(
            f"{checkpoint.folder} is of a run with {batch_before * config.batch_size} samples per step, now there are "
            f"{world_size * config.gradient_accumulation_steps * config.batch_size}; add --global_batch_size "
            f"{batch_before * config.batch_size}"
        )
