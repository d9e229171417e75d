"""Tensors from files into a model, and a report of every key that didn't match."""

import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from engine.commands import command
from engine.errors import UserError

State = dict[str, Tensor]
BACKBONE = "bert.encoder.visual_model."
HEAD = "answer_head."
POSITIONS = "bert.encoder.visual_pos."
POSITION_TABLES = tuple(f"{POSITIONS}{axis}_position_embedding.weight" for axis in "xy")
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
# Parts of the original and of CLIP that are never used and not built here.
UNUSED = (
    *(f"{BACKBONE}{name}" for name in ("visual.attnpool.", "transformer.", "token_embedding.", "ln_final.")),
    *(f"{BACKBONE}{name}" for name in ("positional_embedding", "text_projection", "logit_scale")),
    *("bert.encoder.visn_fc.box_fc.", "bert.encoder.visn_fc.box_layer_norm."),
)


@dataclass
class LoadReport:
    """What became of the keys of one file."""

    source: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)  # with both shapes
    left_out: dict[str, list[str]] = field(default_factory=dict)  # keys by what they are and why they aren't taken
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.matched)} matched"]
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines.append(f"{len(keys)} {name}" + "".join(f"\n    {name}: {key}" for key in keys))
        left_out = [f"left out, {len(keys)} tensors: {what}" for what, keys in self.left_out.items()]
        return ", ".join(lines) + "".join(f"\n    {note}" for note in [*left_out, *self.notes])


def compare(model: nn.Module, state: State, source: str, prefix: str = "") -> LoadReport:
    """Hold a state dict against the part of the model whose keys start with `prefix`; nothing is copied."""
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(prefix)}
    own = {key: tensor for key, tensor in own.items() if not key.endswith("num_batches_tracked") or key in state}
    report = LoadReport(source, missing=[key for key in own if key not in state])
    for key, tensor in state.items():
        if key not in own:
            report.unexpected.append(key)
        elif own[key].shape != tensor.shape:
            report.mismatched.append(f"{key} has shape {tuple(tensor.shape)}, the model's has {tuple(own[key].shape)}")
        else:
            report.matched.append(key)
    return report


def load_state(
    model: nn.Module, state: State, source: str, prefix: str = "", may_miss: tuple[str, ...] = ()
) -> LoadReport:
    """Copy a state dict into the part of the model whose keys start with `prefix`.

    Raises:
        UserError: for a tensor of another shape, or for a missing key outside `may_miss` (prefixes).
    """
    report = compare(model, state, source, prefix)
    if report.mismatched:
        raise UserError(
            f"{source}: {report.mismatched[0]}; the file is of a model of another size, check --clip_model_name, "
            "--bert and the answer table"
        )
    lost = [key for key in report.missing if not key.startswith(may_miss or ("\0",))]
    if lost:
        raise UserError(
            f"{source} lacks {len(lost)} of the {len(report.matched) + len(report.missing)} tensors that it should "
            f"hold, the first is {lost[0]}; it is of another kind of model, or not whole "
            f"({command('convert')} can fill them with random values)"
        )
    own = model.state_dict()
    for key in report.matched:
        own[key].copy_(state[key])
    return report


def resize_rows(table: Tensor, rows: int) -> Tensor:
    """(n, c) -> (rows, c), linear along the rows: each new row stands for the same relative place as in the old table.

    One that has this number of rows is returned as it is.
    """
    if len(table) == rows:
        return table
    return F.interpolate(table.t()[None], size=rows, mode="linear", align_corners=False)[0].t()


def unreadable(path: Path, error: Exception) -> UserError:
    """What to say of a file of tensors that can't be read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is missing; check the path")
    if isinstance(error, pickle.UnpicklingError):
        reason = "it holds something else than tensors, which is never run"
    else:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{path} is no readable file of tensors ({reason}); copy or download it again")


def read_file(path: Path) -> Any:
    """What torch saved, nothing but tensors unpickled, and every checksum of a zip archive compared.

    Raises:
        UserError: if the file is missing, damaged, or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"its part {damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise unreadable(path, error) from None


def read_tensors(path: Path) -> State:
    """The state dict in a .pt or .pth file."""
    state = read_file(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} holds no state dict of tensors")
    return state
