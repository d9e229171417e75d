"""Forward and backward passes that were recorded from the original code, and how far ours are from them.

A folder such as tests/golden/model_pretrain holds initial weights, one batch, and what each variant of the model made
of them. The recorded numbers are fp32 of a CPU.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig

from engine.checkpoint.formats.original import split_unused
from engine.checkpoint.weights import HEAD, load_state
from engine.model.clip_resnet import ResNetShape
from engine.model.encoder import VisualShape
from engine.model.pretraining import ClipVilForPretraining, PretrainingOutput

Arrays = dict[str, np.ndarray]
Gradients = dict[str, Tensor]

# Suggested by the recording's README from what a second recording with one thread showed (loss 2e-6, gradients
# 1.3e-5); small enough to see another GELU or epsilon.
LOSS, GRADIENT = 2e-5, 1e-4
OUTPUT = 2e-5  # of a tensor's largest entry: the loss's, for values of the order of 1


class Quantity(NamedTuple):
    """How far a number of ours is from the recorded one. Without a tolerance it is for information."""

    name: str
    error: float
    tolerance: float | None

    @property
    def is_beyond(self) -> bool:
        return self.tolerance is not None and not self.error <= self.tolerance

    def __str__(self) -> str:
        tolerance = "information" if self.tolerance is None else f"{self.tolerance:.1e}"
        return f"{self.name:<48} {self.error:<10.2e} {tolerance:<12}{'BEYOND' if self.is_beyond else ''}"


def largest_error(ours: Any, theirs: Any, *, relative: bool = False) -> float:
    """Largest absolute difference, if asked in units of the largest recorded entry; infinite for another shape."""
    if isinstance(ours, Tensor):
        ours = ours.detach().cpu().double()
    a, b = np.asarray(ours, dtype=np.float64), np.asarray(theirs, dtype=np.float64)
    if a.shape != b.shape or not np.isfinite(a).all():
        return float("inf")
    error = float(np.abs(a - b).max(initial=0.0))
    scale = float(np.abs(b).max(initial=0.0)) if relative else 0.0
    return error / scale if scale else error


def read_arrays(path: Path) -> Arrays:
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


def recorded_images(images: np.ndarray) -> Tensor:
    """uint8 (B, 3, H, W) as the recording decodes them: fp32, without CLIP's mean and standard deviation."""
    return torch.from_numpy(images).float() / 64 - 2


def build_model(
    config: dict[str, Any],
    variant: dict[str, Any],
    state: Arrays,
    model_class: Callable[..., Any] = ClipVilForPretraining,
) -> Any:
    """A model of the recorded sizes; with an empty state, random."""
    bert = config["bert"]
    names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    bert_config = BertConfig(
        **{name: bert[name] for name in names},
        num_hidden_layers=bert["num_layers"],
        type_vocab_size=bert["type_vocab_size"],
        layer_norm_eps=bert["layer_norm_eps"],
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    visual = VisualShape(
        ResNetShape(tuple(config["clip"]["layers"]), config["clip"]["width"]),
        sub_feat_num=variant["sub_feat_num"] if variant["sub_sampling"] else None,
        use_positional_embedding=variant["use_positional_embedding"],
        pos_num=config["pos_num"],
    )
    model = model_class(bert_config, visual, config["num_answers"] if variant["task_qa"] else None)
    if not state:
        return model
    source = "the recorded state"
    used, _ = split_unused({key: torch.from_numpy(value) for key, value in state.items()}, source)
    load_state(model, used, source, may_miss=(HEAD,))
    return model


def model_inputs(arrays: Arrays, positions: np.ndarray) -> dict[str, Any]:
    """A recorded batch as the model's keyword arguments; (0,) positions stand for no sub-sampling."""
    names = ("input_ids", "token_type_ids", "attention_mask", "masked_lm_labels", "matched_label", "ans")
    inputs: dict[str, Any] = {name: torch.from_numpy(arrays[name]) for name in names}
    inputs["images"] = recorded_images(arrays["images_u8"])
    inputs["positions"] = torch.from_numpy(positions) if positions.size else None
    return inputs


def to_device(inputs: dict[str, Any], device: torch.device | str) -> dict[str, Any]:
    return {name: value.to(device) if isinstance(value, Tensor) else value for name, value in inputs.items()}


@dataclass(frozen=True)
class RecordedPass:
    """One variant: questions or not, sub-sampling or not, position tables or not."""

    name: str
    config: dict[str, Any]
    variant: dict[str, Any]
    state: Arrays
    batch: Arrays
    results: Arrays

    def model(self, device: torch.device | str = "cpu") -> ClipVilForPretraining:
        """With the recorded weights, in training mode."""
        return build_model(self.config, self.variant, self.state).to(device)

    def inputs(self, device: torch.device | str = "cpu", **changed: np.ndarray) -> dict[str, Any]:
        return to_device(model_inputs({**self.batch, **changed}, self.results["sampled_positions"]), device)

    def compare(self, output: PretrainingOutput, gradients: Gradients) -> Iterator[Quantity]:
        """Outputs, and gradients by parameter, beside the recorded ones; the quantities' names begin with ours."""
        yield from _outputs(self.name, output, self.results)
        yield from _gradients(self.name, gradients, self.results, self.variant["param_names_for_grad_norms"])


def read_passes(folder: Path) -> list[RecordedPass]:
    """All variants in a folder of recorded numbers."""
    description = json.loads((folder / "config.json").read_text())
    state, batch = read_arrays(folder / "state.npz"), read_arrays(folder / "batch.npz")
    return [
        RecordedPass(name, description["config"], variant, state, batch, read_arrays(folder / f"variant_{name}.npz"))
        for name, variant in description["variants"].items()
    ]


def gradients_of(model: nn.Module) -> Gradients:
    """By parameter, after a backward pass; zeros where no loss reaches."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def global_norm(gradients: Gradients) -> float:
    return float(torch.stack([gradient.double().norm() for gradient in gradients.values()]).norm())


def _outputs(name: str, output: PretrainingOutput, recorded: Arrays) -> Iterator[Quantity]:
    losses = torch.stack(list(output["losses"].values()))
    yield Quantity(f"{name} loss", largest_error(output.loss, recorded["loss"]), LOSS)
    yield Quantity(f"{name} losses", largest_error(losses, recorded["losses"]), LOSS)
    tensors = {
        "lang_output": output["language"],
        "visn_output": output["vision"],
        "pooled_output": output["pooled"],
        "visual_grid": output["grid"],
        "matched_scores": output["matched_scores"],
        "lm_scores_first8cols": output["lm_scores"][..., :8],
    }
    if "answer_scores" in output:
        tensors["answer_score"] = output["answer_scores"]
    for key, tensor in tensors.items():
        yield Quantity(f"{name} {key}", largest_error(tensor, recorded[key], relative=True), OUTPUT)
    scores = output["lm_scores"].detach().double()
    # A sum of N errors of random sign, each within OUTPUT of the largest score, stays within 4 sqrt(N) of one.
    bound = 4 * OUTPUT * float(scores.abs().max()) * scores.numel() ** 0.5
    yield Quantity(f"{name} lm_scores_sum", largest_error(scores.sum(), recorded["lm_scores_sum"]), bound)


def _gradients(name: str, ours: Gradients, recorded: Arrays, names_of_norms: list[str]) -> Iterator[Quantity]:
    """Whole gradients where they are recorded, the norm of each one, and the norm of all together."""
    whole = {key.removeprefix("grad/"): value for key, value in recorded.items() if key.startswith("grad/")}
    errors = [largest_error(ours[key], value, relative=True) for key, value in whole.items() if key in ours]
    yield Quantity(f"{name} gradients", max(errors), GRADIENT)
    # NaN stands for "no gradient": ours has to be zero there, or not to exist.
    theirs = dict(zip(names_of_norms, np.nan_to_num(recorded["grad_norms"]), strict=True))
    absent = [key for key in ours if key not in theirs] + [key for key, v in theirs.items() if v and key not in ours]
    norms = {key: float(gradient.double().norm()) for key, gradient in ours.items() if key in theirs}
    # A key bias's true gradient is 0 (softmax is blind to it), so its norm is rounding; the unit is the largest norm.
    unit = max(theirs.values())
    error = max(min(largest_error(n, theirs[k], relative=True), abs(n - theirs[k]) / unit) for k, n in norms.items())
    yield Quantity(f"{name} gradient norm of each parameter", float("inf") if absent else error, GRADIENT)
    error = largest_error(global_norm(ours), recorded["grad_global_norm"], relative=True)
    yield Quantity(f"{name} gradient norm", error, GRADIENT)
