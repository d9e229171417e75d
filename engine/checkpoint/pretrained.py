"""A model to hand on: a folder that one function loads.

model.safetensors     fp32 weights and buffers; the masked-LM decoder is the word embeddings, so it is there once
unused.safetensors    what the original's files hold and no model here uses, so that they can be written again
config.json           the shape, and the answers of the head's rows
vocab.txt             word pieces
README.md             a model card
manifest.json         every file's size and hash
"""

import json
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.manifest import MANIFEST, UNFINISHED, fingerprint, sync_folder, verify
from engine.checkpoint.weights import State, load_state
from engine.errors import UserError
from engine.files import NO_SPACE, write_json
from engine.model.pretraining import ClipVilForPretraining

WEIGHTS, UNUSED_WEIGHTS, CONFIG, VOCABULARY, CARD = (
    "model.safetensors",
    "unused.safetensors",
    "config.json",
    "vocab.txt",
    "README.md",
)


def load_pretrained(folder: str | Path) -> ClipVilForPretraining:
    """The model in a folder that `launch/convert.py --to safetensors` wrote: fp32, on the CPU, in evaluation mode.

    `read_description` gives its answers and its vocabulary.

    Raises:
        UserError: if the folder is incomplete or damaged.
    """
    folder = Path(folder)
    state, _ = read_pretrained(folder)
    model = read_description(folder).build()
    load_state(model, state, str(folder))
    return model.eval()


def read_description(folder: Path) -> ModelDescription:
    """What config.json and vocab.txt say."""
    try:
        values = json.loads((folder / CONFIG).read_text())
        words = folder / VOCABULARY
        vocabulary = words.read_text(encoding="utf-8").split("\n")[:-1] if words.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no folder with a model that can be read ({error})") from None
    return ModelDescription.from_dict({**values, "vocabulary": vocabulary}, str(folder / CONFIG))


def read_pretrained(folder: Path) -> tuple[State, State]:
    """Weights and unused parts, verified."""
    verify(folder)
    try:
        unused = folder / UNUSED_WEIGHTS
        return load_file(folder / WEIGHTS), load_file(unused) if unused.exists() else {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder / WEIGHTS} can't be read ({error})") from None


def save_pretrained(folder: Path, state: State, unused: State, description: ModelDescription, origin: str) -> None:
    """Write the folder, whole or not at all.

    Raises:
        UserError: if there is something already, or it can't be written.
    """
    unfinished = folder.with_name(f".{folder.name}{UNFINISHED}")
    values = {"model_type": "clip-vil", **description.to_dict()}
    words = values.pop("vocabulary")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, unfinished / WEIGHTS)
        if unused:
            save_file({name: tensor.contiguous() for name, tensor in unused.items()}, unfinished / UNUSED_WEIGHTS)
        (unfinished / CONFIG).write_text(json.dumps(values, indent=1) + "\n")
        if words is not None:
            (unfinished / VOCABULARY).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        (unfinished / CARD).write_text(model_card(folder.name, state, description, origin))
        files = sorted(unfinished.iterdir())
        for path in files:
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        write_json(
            unfinished / MANIFEST, {"step": 0, "files": {path.name: fingerprint(path) for path in files}}, indent=1
        )
        sync_folder(unfinished)
        unfinished.rename(folder)
        sync_folder(folder.parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        full = getattr(error, "errno", None) in NO_SPACE or "No space left" in str(error)
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise UserError(f"{folder} can't be written ({reason}); free space or choose another folder") from None


def model_card(name: str, state: State, description: ModelDescription, origin: str) -> str:
    """What a reader on a model hub wants to know first."""
    visual = description.visual
    bert = {name: value for name, value in description.bert.items() if name != "transformers_version"}
    answers = "none" if description.answers is None else f"{len(description.answers):,} answers"
    cells = "all" if visual.sub_feat_num is None else str(visual.sub_feat_num)
    millions = sum(tensor.numel() for tensor in state.values() if tensor.is_floating_point()) / 1e6
    return f"""---
library_name: clipvil-engine
pipeline_tag: visual-question-answering
tags: [clip-vil, vision-and-language]
---

# {name}

CLIP-ViL ("How Much Can CLIP Benefit Vision-and-Language Tasks?", Shen et al., 2021): a CLIP ResNet and a BERT over one
sequence of words and grid cells.

| | |
|---|---|
| from | {origin} |
| values | {millions:.1f} million, fp32 |
| backbone | ResNet {"-".join(map(str, visual.backbone.layers))}, width {visual.backbone.width} |
| cells read per image | {cells} |
| position tables | {f"{visual.pos_num} rows" if visual.use_positional_embedding else "none"} |
| BERT | {json.dumps(bert)} |
| answer head | {answers} |

    from engine.checkpoint import load_pretrained

    model = load_pretrained("{name}")
"""
