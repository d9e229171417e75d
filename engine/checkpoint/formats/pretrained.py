"""A model to hand on: a folder that one function loads.

model.safetensors     fp32 weights and buffers; the masked-LM decoder is the word embeddings, so it is there once
unused.safetensors    what the original's files hold and no model here uses, so that they can be written again
config.json           the shape, and the answers of the head's rows
vocab.txt             word pieces
trained_on.safetensors  which questions and images it has seen, where that is known
README.md             a model card
manifest.json         every file's size and hash
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.manifest import DELETED, MANIFEST, UNFINISHED, fingerprint, sync_folder
from engine.checkpoint.weights import State
from engine.data.trained_on import TrainedOn
from engine.errors import UserError
from engine.files import NO_SPACE, write_json

WEIGHTS, UNUSED_WEIGHTS, TRAINED_ON, CONFIG, VOCABULARY, CARD = (
    "model.safetensors",
    "unused.safetensors",
    "trained_on.safetensors",
    "config.json",
    "vocab.txt",
    "README.md",
)


class ModelFolder:
    """A folder with a model as what a training starts from: weights, and no state of optimisers."""

    scheduler: dict[str, Any] | None = None
    loss_scaler: Any = None

    def __init__(self, folder: Path) -> None:
        self.source, self.folder = str(folder), folder
        self.description = read_description(folder)

    @property
    def answers(self) -> list[str] | None:
        return self.description.answers

    @property
    def trained_on(self) -> TrainedOn | None:
        return TrainedOn.from_tensors(self._load(TRAINED_ON))

    def weights(self) -> State:
        return self._load(WEIGHTS)

    def unused(self) -> State:
        """What the original's files hold and no model here uses."""
        return self._load(UNUSED_WEIGHTS)

    def _load(self, name: str) -> State:
        path = self.folder / name
        try:
            return load_file(path) if path.exists() or name == WEIGHTS else {}
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path} can't be read ({error})") from None

    def moment_keys(self, name: str) -> set[str]:
        return set()

    def moments(self, name: str) -> State:
        return {}

    def steps(self, name: str) -> float | None:
        return None


def read_description(folder: Path) -> ModelDescription:
    """What config.json and vocab.txt say."""
    try:
        values = json.loads((folder / CONFIG).read_text())
        words = folder / VOCABULARY
        vocabulary = words.read_text(encoding="utf-8").split("\n")[:-1] if words.exists() else None
    except (OSError, ValueError) as error:
        raise UserError(f"{folder} is no folder with a model that can be read ({error})") from None
    return ModelDescription.from_dict({**values, "vocabulary": vocabulary}, str(folder / CONFIG))


def save_pretrained(
    folder: Path,
    state: State,
    unused: State,
    description: ModelDescription,
    origin: str,
    *,
    trained_on: TrainedOn | None = None,
    notes: dict[str, Any] | None = None,
    replace: bool = False,
) -> None:
    """Write the folder, whole or not at all.

    Args:
        origin: for the model card.
        notes: more entries of the manifest.
        replace: whether the folder may take the place of an older one.

    Raises:
        UserError: if there is something already, or it can't be written.
    """
    values = {"model_type": "clip-vil", **description.to_dict()}
    words = values.pop("vocabulary")
    with whole_folder(folder, replace=replace) as unfinished:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, unfinished / WEIGHTS)
        if unused:
            save_file({name: tensor.contiguous() for name, tensor in unused.items()}, unfinished / UNUSED_WEIGHTS)
        if trained_on is not None:
            save_file(trained_on.to_tensors(), unfinished / TRAINED_ON)
        (unfinished / CONFIG).write_text(json.dumps(values, indent=1) + "\n")
        if words is not None:
            (unfinished / VOCABULARY).write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
        (unfinished / CARD).write_text(model_card(folder.name, state, description, origin))
        files = {path.name: fingerprint(path) for path in sorted(unfinished.iterdir())}
        write_json(unfinished / MANIFEST, {"step": 0, **(notes or {}), "files": files}, indent=1)


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False) -> Iterator[Path]:
    """A folder to write files into that gets its name, or an older one's place, when it is whole and on the disk.

    Raises:
        UserError: if there is something already, or it can't be written; nothing is left of it then.
    """
    unfinished = folder.with_name(f".{folder.name}{UNFINISHED}")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        yield unfinished
        for path in unfinished.iterdir():
            path.chmod(0o644)
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(unfinished)
        old = folder.with_name(f".{folder.name}{DELETED}")
        if replace and folder.exists():
            folder.rename(old)
        unfinished.rename(folder)
        sync_folder(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except Exception as error:  # that of tokenizers has no kind of its own
        full = getattr(error, "errno", None) in NO_SPACE or "No space left" in str(error)
        if not full and not isinstance(error, OSError | SafetensorError):
            raise
        reason = "the disk is full" if full else getattr(error, "strerror", None) or str(error)
        raise UserError(f"{folder} can't be written ({reason}); free space or choose another folder") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


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

    import engine

    model = engine.load_pretrained("{name}")
"""
