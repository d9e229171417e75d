"""What a run's checkpoints take on the disk, known before it starts."""

import os
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from engine.errors import UserError
from engine.optim.hybrid import trained_values

GB = 1e9


@dataclass(frozen=True)
class Files:
    """Bytes of a training state, such as Epoch01/, and of a file or folder with fp32 weights alone."""

    state: int
    weights: int

    @classmethod
    def of(cls, model: nn.Module, *, itemsize: int, backbone_moments: int) -> "Files":
        """Count what they hold; what else is in them is below a hundredth of that in a model of BERT's size.

        Args:
            itemsize: bytes of a weight in the training's precision.
            backbone_moments: values that the backbone's optimiser keeps for each of its parameters.
        """
        others, backbone = trained_values(model)
        trained = others + backbone
        frozen = sum(p.numel() for p in model.parameters()) - trained
        buffers = sum(buffer.nbytes for buffer in model.buffers())
        moments = 2 * others + backbone_moments * backbone
        weights = 4 * (trained + frozen) + buffers
        # Frozen weights are there three times: in the model, beside it as DeepSpeed has it, and in fp32.
        state = itemsize * (trained + 2 * frozen) + 4 * frozen + buffers + 4 * (trained + moments)
        return cls(state, weights)


def free_bytes(folder: Path) -> int:
    """Of the disk on which a folder is, or will be."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    disk = os.statvfs(there)
    return disk.f_bavail * disk.f_frsize


def check_space(folder: Path, files: Files, *, saves: int, keep: int | None, weights_files: int) -> str:
    """Compare what a run will write with what its disk has free; what is there already counts as written.

    Args:
        saves: training states that the run will write in all.
        keep: how many of them stay; None for all.
        weights_files: how many files or folders with weights alone will be there at the end.

    Returns:
        What to say of a run without `keep` whose disk will be full before its end, or "".

    Raises:
        UserError: if `keep` of them and the one that is being written don't fit, or without `keep` not even two.
    """
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    free = free_bytes(folder)
    kept = saves if keep is None else min(keep, saves)
    written = min(kept + 1, saves)  # an older one goes when a newer one is complete
    needed = written * files.state + weights_files * files.weights - there
    if needed <= free:
        return ""
    in_gb = {"needed": max(needed, 0) / GB, "free": free / GB, "state": files.state / GB, "weights": files.weights / GB}
    if keep is None and min(2, saves) * files.state + files.weights - there <= free:
        return (
            "--output {folder} needs {needed:.3g} GB for {saves} checkpoints of {state:.3g} GB, and {free:.3g} GB are "
            "free: the disk will be full before the end; add --keep 3"
        ).format(folder=folder, saves=saves, **in_gb)
    raise UserError(
        (
            "--output {folder} needs {needed:.3g} GB for {written} checkpoints of {state:.3g} GB and {files} x "
            "{weights:.3g} GB of weights, and {free:.3g} GB are free; free space, choose another disk or lower --keep"
        ).format(folder=folder, written=written, files=weights_files, **in_gb)
    )
