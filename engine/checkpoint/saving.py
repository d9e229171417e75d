"""A run's checkpoints: written beside, verified, then put in their place.

1. Every rank copies its part to memory; training goes on, and a thread writes the copy to `.NAME.unfinished/`, hashing
   it on the way, syncs the file, and reads it back.
2. When all ranks have done so, rank 0 adds `manifest.json` with every file's size and hash, renames the folder to
   `NAME`, and lastly rewrites `latest`.
3. Only then older folders beyond `keep` are deleted, renamed first; their NAME_LXRT.pth stay.

So a folder called NAME is complete, whatever was killed and when. What begins with a dot is swept at the next start.
"""

import copy
import hashlib
import itertools
import os
import shutil
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointCommitInfo, CheckpointEngine
from deepspeed.utils import safe_get_full_fp32_param
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from engine.checkpoint.formats.original import SUFFIX, original_names
from engine.checkpoint.manifest import (
    DELETED,
    MANIFEST,
    UNFINISHED,
    complete_checkpoints,
    fingerprint,
    sweep,
    sync_folder,
)
from engine.checkpoint.shards import load_shard
from engine.checkpoint.weights import State
from engine.errors import UserError
from engine.files import NO_SPACE, replacing, write_json

LATEST = "latest"


def full_state(engine: DeepSpeedEngine) -> State:
    """fp32 weights and buffers on the CPU, gathered from all ranks. Every rank has to call it."""
    state: State = {}
    parameters = dict(engine.module.named_parameters())
    for key, tensor in engine.module.state_dict().items():
        full = engine.frozen_weights.get(key)
        if full is None and key in parameters:
            full = safe_get_full_fp32_param(parameters[key])
        state[key] = tensor.detach().cpu().clone() if full is None else full.reshape(tensor.shape).cpu()
    return state


def saved_buffers(module: nn.Module) -> State:
    parameters = dict(module.named_parameters())
    return {key: tensor for key, tensor in module.state_dict().items() if key not in parameters}


class HashingFile:
    """A file to write to that knows the hash of what it was given."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")
        self.sha256 = hashlib.sha256()
        self.bytes = 0

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        count = self.file.write(data)
        self.bytes += count
        return count

    def flush(self) -> None:
        self.file.flush()


def write_verified(value: Any, path: Path) -> dict[str, Any]:
    """Save with torch, sync, read back and compare.

    Returns:
        The file's size and hash, for the manifest.

    Raises:
        OSError: if the disk takes it not, or gives back something else.
    """
    file = HashingFile(path)
    with file.file:
        torch.save(value, file)  # type: ignore[arg-type]  # all it needs
        file.flush()
        os.fsync(file.file.fileno())
    written = {"bytes": file.bytes, "sha256": file.sha256.hexdigest()}
    if fingerprint(path) != written:
        raise OSError(f"{path} reads back as something else than was written; the disk or its driver is faulty")
    return written


class BackgroundWriter(CheckpointEngine):
    """DeepSpeed's way to files: copies what it is given, and writes the copy while training goes on.

    The copies' memory is kept for the next checkpoint: touching new pages takes longer than filling them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.files: dict[str, Future[dict[str, Any]]] = {}
        self.copies: dict[str, list[Any]] = {}  # by file, the leaves of what was saved last

    def create(self, info: CheckpointCommitInfo) -> None:
        pass

    def save(self, state_dict: Any, path: str) -> None:
        leaves, structure = tree_flatten(state_dict)
        before = self.copies.get(Path(path).name, [])
        copies = [_copy(leaf, old) for leaf, old in itertools.zip_longest(leaves, before[: len(leaves)])]
        self.copies[Path(path).name] = copies
        self.write(tree_unflatten(copies, structure), Path(path))

    def write(self, value: Any, path: Path) -> None:
        """Write what nobody else changes."""
        self.files[path.name] = self.thread.submit(write_verified, value, path)

    def load(self, path: str, map_location: Any = None) -> Any:
        return load_shard(Path(path))

    def commit(self, info: CheckpointCommitInfo) -> bool:
        return True

    def preserves_storage_sharing(self) -> bool:
        return False

    def is_busy(self) -> bool:
        return not all(file.done() for file in self.files.values())

    def finish(self) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Wait for all files; what the manifest says of them, and what went wrong."""
        described, problem = {}, None
        for name, file in self.files.items():
            try:
                described[name] = file.result()
            except Exception as error:  # torch tells of a full disk in several ways
                problem = problem or f"{name}: {_reason(error)}"
        self.files = {}
        return described, problem


def _copy(value: Any, memory: Any) -> Any:
    """A tensor on the CPU, in an older copy's memory if it fits; other values, as the loss scaler, as they are now."""
    if not isinstance(value, Tensor):
        return copy.deepcopy(value)
    fits = isinstance(memory, Tensor) and memory.shape == value.shape and memory.dtype == value.dtype
    if not fits:
        memory = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
    return memory.copy_(value.detach())


def _reason(error: BaseException) -> str:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in NO_SPACE:
            return "the disk is full"
        seen = seen.__cause__ or seen.__context__
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


class Checkpoints:
    """The checkpoints in the folder of one run. Every rank has one, and all call the same methods together."""

    def __init__(self, engine: DeepSpeedEngine, folder: Path, *, keep: int | None = None) -> None:
        self.engine, self.folder, self.keep = engine, folder, keep
        self.writer = BackgroundWriter()
        engine.checkpoint_engine = self.writer
        self.pending: dict[str, Any] | None = None  # the manifest of the one that is being written

    def save(self, name: str, step: int, content: dict[str, Any], *, weights_file: bool) -> None:
        """Start to write `name`; the one before is finished first.

        Args:
            step: optimiser steps, by which checkpoints are ordered.
            content: what rank 0 puts beside DeepSpeed's state: tensors and plain values.
            weights_file: whether NAME_LXRT.pth is written, too.

        Raises:
            UserError: if the one before, or the start of this one, failed.
        """
        self.finish()
        state = full_state(self.engine) if weights_file else None
        try:
            if self.engine.global_rank == 0:
                shutil.rmtree(self.folder / f".{name}{UNFINISHED}", ignore_errors=True)
            self.engine.save_checkpoint(
                str(self.folder), tag=f".{name}{UNFINISHED}", client_state=content, save_latest=False
            )
            if state is not None and self.engine.global_rank == 0:
                self.writer.write(original_names(state), self.folder / f".{name}{SUFFIX}{UNFINISHED}")
        except OSError as error:
            raise self._failure(name, _reason(error)) from None
        self.pending = {"name": name, "step": step, "world_size": dist.get_world_size()}

    @property
    def is_busy(self) -> bool:
        """Whether this rank still writes."""
        return self.pending is not None and self.writer.is_busy()

    def finish(self) -> str | None:
        """Wait until all ranks have written, and put the checkpoint in its place; its name, if there was one.

        Raises:
            UserError: if a rank couldn't write; the checkpoints before are as they were.
        """
        if self.pending is None:
            return None
        manifest, self.pending = self.pending, None
        name = manifest.pop("name")
        results: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(results, self.writer.finish())
        problem: list[str | None] = [next((problem for _, problem in results if problem), None)]
        if self.engine.global_rank == 0:
            if problem[0] is None:
                try:
                    self._publish(name, {**manifest, "files": {k: v for files, _ in results for k, v in files.items()}})
                except (OSError, UserError) as error:
                    problem = [_reason(error)]
            if problem[0] is not None:
                sweep(self.folder)
        dist.broadcast_object_list(problem, src=0)
        if problem[0] is not None:
            raise self._failure(name, problem[0])
        return name

    def _failure(self, name: str, reason: str) -> UserError:
        return UserError(
            f"the checkpoint {self.folder / name} can't be written ({reason}); those before it are as they were: free "
            "space, then --resume auto goes on from the last one"
        )

    def _publish(self, name: str, manifest: dict[str, Any]) -> None:
        unfinished, target = self.folder / f".{name}{UNFINISHED}", self.folder / name
        weights = self.folder / f".{name}{SUFFIX}{UNFINISHED}"
        manifest["files"].pop(weights.name, None)
        if unseen := [file for file in manifest["files"] if not (unfinished / file).exists()]:
            raise UserError(f"{unseen[0]} of another machine is not here; --output has to be on a disk that all share")
        write_json(unfinished / MANIFEST, manifest, indent=1)
        sync_folder(unfinished)
        if weights.exists():
            weights.replace(self.folder / f"{name}{SUFFIX}")
        if target.exists():  # one that failed verification
            target.rename(self.folder / f".{name}{DELETED}")
        unfinished.rename(target)
        sync_folder(self.folder)
        with replacing(self.folder / LATEST, "w") as latest:
            latest.write(name)
        sync_folder(self.folder)
        if self.keep is not None:
            for old in complete_checkpoints(self.folder)[self.keep :]:
                old.rename(old.with_name(f".{old.name}{DELETED}"))
        sweep(self.folder)
