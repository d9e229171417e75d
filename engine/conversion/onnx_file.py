"""`--to onnx`: the model as one ONNX file, by torch's exporter, for batches, texts and images of any size."""

import json
import logging
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.manifest import UNFINISHED, sync_folder
from engine.checkpoint.weights import State
from engine.conversion.hub.export import hub_config, hub_model
from engine.errors import UserError
from engine.files import NO_SPACE
from engine.importing import check_packages
from engine.model.clip_resnet import STRIDE

NEEDED = ("onnx", "onnxscript")
MOST_BYTES = 2**31 - 2**24  # of weights: a protobuf ends at 2 GiB, and the graph needs some room
INPUTS = ("input_ids", "token_type_ids", "attention_mask", "images")
OUTPUTS = {
    "pretraining": ("language", "vision", "pooled", "grid", "lm_scores", "matched_scores", "answer_scores"),
    "question_answering": ("answer_scores",),
}


def check_onnx() -> None:
    """Raises UserError where the exporter's packages are missing."""
    check_packages("--to onnx", *NEEDED)


class Outputs(nn.Module):
    """The exported model with its outputs as a tuple."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor, images: Tensor) -> Any:
        output = self.model(input_ids, token_type_ids, attention_mask, images)
        return tuple(output[name] for name in self.names)


def save_onnx(target: Path, state: State, description: ModelDescription) -> None:
    """Write the file, whole or not at all.

    Inputs are input_ids, token_type_ids and attention_mask, int64 (B, L), and images, uint8 (B, 3, H, W) H and W
    multiples of 32; all cells are read, in order. Outputs are those of the hub's model. The file's metadata has
    `config`, the hub's config.json with the answers.

    Raises:
        UserError: if the model is too large for one file, or the file can't be written.
    """
    if (found := sum(tensor.nbytes for tensor in state.values())) > MOST_BYTES:
        raise UserError(
            f"--to onnx: {found / 1e9:.1f} GB of weights are more than the 2 GiB that an ONNX file can hold"
        )
    names = [name for name in OUTPUTS[description.architecture] if name != "answer_scores" or description.answers]
    reads = description.preprocessing
    rows, columns = (max(size // STRIDE, 2) for size in (reads.image_size_min, reads.image_size_max))
    # Three tensors, though any would do: the exporter takes one that comes twice for one input.
    words = [torch.zeros(2, reads.max_seq_length, dtype=torch.int64) for _ in range(3)]
    inputs = (*words, torch.zeros(2, 3, STRIDE * rows, STRIDE * columns, dtype=torch.uint8))
    batch, length, *sides = (torch.export.Dim(name, min=1) for name in ("batch", "length", "rows", "columns"))
    texts, pixels = {0: batch, 1: length}, {0: batch, 2: STRIDE * sides[0], 3: STRIDE * sides[1]}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it tells of packages that it would know operators of
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own affairs
        program = torch.onnx.export(
            Outputs(hub_model(description, state), names).eval(),
            inputs,
            input_names=INPUTS,
            output_names=names,
            dynamic_shapes=(texts, texts, texts, pixels),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props["config"] = json.dumps(hub_config(description).to_dict())
    write_program(target, program)


def write_program(target: Path, program: Any) -> None:
    """Write what torch exported, whole or not at all.

    Raises:
        UserError: if the file can't be written.
    """
    partial = target.with_name(f".{target.name}{UNFINISHED}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        program.save(partial, external_data=False)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        reason = "the disk is full" if error.errno in NO_SPACE else error.strerror
        raise UserError(f"{target} can't be written ({reason}); free space or choose another place") from None
    finally:
        partial.unlink(missing_ok=True)
