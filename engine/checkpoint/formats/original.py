"""The original code's checkpoint files, read and written.

    X_LXRT.pth              weights and buffers, fp32, every key with `module.` in front where several GPUs trained
    X_LXRT_AdamOptim.pth    AdamW's state by the number of the parameter
    X_LXRT_SGDOptim.pth     SGD's, the same way
    X_LXRT_Scheduler.pth    AdamW's schedule

Its VQA model is X.pth, which names the trunk `lxrt_encoder.model.bert.` and the answer head `logit_fc.`.

An optimiser numbers its parameters in the order of the model's, which is that of the keys in X_LXRT.pth: first those
with decay, then those without; SGD those of the backbone, used or not.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.weights import BACKBONE, DECODER, HEAD, UNUSED, WORDS, State, read_file, read_tensors
from engine.data.trained_on import TrainedOn
from engine.errors import UserError
from engine.files import replacing
from engine.optim.hybrid import is_exempt_from_decay

SUFFIX = "_LXRT.pth"
PREFIX = "module."
WRAPPERS = (PREFIX, "_orig_mod.")  # what DataParallel, its successors and torch.compile put before each name
# Ours in front of the names of the original's VQA model
VQA_NAMES = {"bert.": "lxrt_encoder.model.bert.", f"{HEAD}logit_fc.": "logit_fc."}
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class OriginalState:
    """What the original's files hold, by this model's names."""

    source: str
    state: State
    unused: State = field(default_factory=dict)
    moments_by_name: dict[str, State] = field(default_factory=dict)
    steps_by_name: dict[str, float] = field(default_factory=dict)
    scheduler: dict[str, Any] | None = None
    answers: list[str] | None = None  # the files don't say
    loss_scaler: Any = None
    architecture: str = "pretraining"
    trained_on: TrainedOn | None = None  # nor this
    description: ModelDescription | None = None  # nor this

    def weights(self) -> State:
        return self.state

    def moment_keys(self, name: str) -> set[str]:
        return set(self.moments(name))

    def moments(self, name: str) -> State:
        return self.moments_by_name.get(name, {})

    def steps(self, name: str) -> float | None:
        return self.steps_by_name.get(name)


def unwrapped(key: str) -> str:
    """A name without what wrappers put before it, however many there were."""
    while wrapper := next((wrapper for wrapper in WRAPPERS if key.startswith(wrapper)), None):
        key = key.removeprefix(wrapper)
    return key


def our_name(key: str) -> str:
    """The original's name of a tensor, of either of its models, to ours."""
    for ours, theirs in VQA_NAMES.items():
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return key


def split_unused(state: State, source: str) -> tuple[State, State]:
    """Take our names, untie the decoder, and set apart what this model doesn't have.

    Raises:
        UserError: if the decoder isn't the word embeddings.
    """
    state = {our_name(key): tensor for key, tensor in state.items()}
    decoder = state.pop(DECODER, None)
    if decoder is not None and WORDS in state and not torch.equal(decoder, state[WORDS]):
        raise UserError(f"{source}: {DECODER} differs from the word embeddings that it should be tied to")
    used = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
    return used, {key: tensor for key, tensor in state.items() if key.startswith(UNUSED)}


def read_original(path: Path, *, optimizers: bool = True) -> OriginalState:
    """`X_LXRT.pth`, and the files beside it where there are any.

    Raises:
        UserError: if a file is damaged, or an optimiser's state is of another model.
    """
    raw = {unwrapped(key): tensor for key, tensor in read_tensors(path).items()}
    used, unused = split_unused(raw, str(path))
    found = OriginalState(str(path), used, unused)
    if any(key.startswith("logit_fc.") for key in raw):
        found.architecture = "question_answering"
    if not optimizers or found.architecture != "pretraining":
        return found
    names = [key for key in raw if not key.endswith((DECODER, *BUFFERS))]
    trunk = [name for name in names if not name.startswith(BACKBONE)]
    in_order = {
        "AdamOptim": sorted(trunk, key=is_exempt_from_decay),
        "SGDOptim": [name for name in names if name.startswith(BACKBONE)],
    }
    shapes = {key: tensor.shape for key, tensor in raw.items()}
    for kind, order in in_order.items():
        file = path.with_name(path.name.removesuffix(".pth") + f"_{kind}.pth")
        if file.exists():
            _read_optimizer(file, order, shapes, found)
    schedule = path.with_name(path.name.removesuffix(".pth") + "_Scheduler.pth")
    if schedule.exists():
        found.scheduler = read_file(schedule)
        if not isinstance(found.scheduler, dict) or "last_epoch" not in found.scheduler:
            raise UserError(f"{schedule} is no state of a schedule")
    return found


def _read_optimizer(file: Path, order: list[str], shapes: dict[str, torch.Size], found: OriginalState) -> None:
    saved = read_file(file)
    if not isinstance(saved, dict) or not {"state", "param_groups"} <= set(saved):
        raise UserError(f"{file} is no state of an optimiser")
    count = sum(len(group["params"]) for group in saved["param_groups"])
    if count != len(order):
        raise UserError(
            f"{file} is of {count} parameters, but {found.source} has {len(order)} that this optimiser trains; the "
            "files are of different models"
        )
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    for number, name in zip(numbers, order, strict=True):
        for key, value in saved["state"].get(number, {}).items():
            if key == "step":
                found.steps_by_name[name] = float(value)
            elif isinstance(value, Tensor):
                if value.shape != shapes[name]:
                    raise UserError(
                        f"{file}: {key} of {name} has shape {tuple(value.shape)}, the weight {tuple(shapes[name])}; "
                        "the files are of different models"
                    )
                found.moments_by_name.setdefault(name, {})[key] = value.float()


def original_names(state: State, *, prefix: bool = True, architecture: str = "pretraining") -> State:
    """A state under the names that the original's loaders look for.

    All but its single-GPU path ask for `module.`, and skip in silence what lacks it.
    """
    named = dict(state)
    if architecture == "question_answering":
        named = {_vqa_name(key): tensor for key, tensor in state.items()}
    elif WORDS in state:
        named[DECODER] = state[WORDS]
    return {(PREFIX if prefix else "") + key: tensor for key, tensor in named.items()}


def _vqa_name(key: str) -> str:
    ours = next(ours for ours in VQA_NAMES if key.startswith(ours))
    return VQA_NAMES[ours] + key.removeprefix(ours)


def write_original(path: Path, state: State, *, prefix: bool = True, architecture: str = "pretraining") -> None:
    """Write `X_LXRT.pth`, or the `X.pth` of its VQA model, whole or not at all."""
    with replacing(path, "wb") as file:
        torch.save(original_names(state, prefix=prefix, architecture=architecture), file)
