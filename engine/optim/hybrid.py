"""AdamW for the transformer and SGD for the CLIP backbone, as one optimiser that ZeRO-2 can partition."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

BACKBONE = "visual_model"  # in the name of every parameter that SGD trains
# As in the original: `visn_layer_norm` and the answer head's LayerNorm match neither and do decay.
NO_DECAY = ("bias", "LayerNorm.weight")


def is_exempt_from_decay(name: str) -> bool:
    return any(part in name for part in NO_DECAY)


def parameter_groups(
    model: nn.Module,
    *,
    lr: float,
    weight_decay: float,
    adam_epsilon: float,
    sgd_lr: float,
    sgd_momentum: float,
    sgd_weight_decay: float,
    use_adam_for_visual: bool = False,
) -> list[dict[str, Any]]:
    """Three groups, in this order: AdamW with decay, AdamW without, SGD for the backbone.

    Each also names its schedule: "warmup" or, for the backbone, "milestones". A frozen backbone has no group, and with
    `use_adam_for_visual` it has two, as the rest, with SGD's rate.

    Raises:
        ValueError: if a group is empty or a trainable parameter is not in exactly one group.
    """
    adamw = {"algorithm": "adamw", "lr": lr, "betas": (0.9, 0.999), "eps": adam_epsilon, "schedule": "warmup"}
    sgd = {"algorithm": "sgd", "lr": sgd_lr, "momentum": sgd_momentum, "weight_decay": sgd_weight_decay}
    adamw_for_visual = {**adamw, "lr": sgd_lr, "schedule": "milestones"}
    backbone: list[dict[str, Any]] = [{"name": "sgd_backbone", "params": [], "schedule": "milestones", **sgd}]
    if use_adam_for_visual:
        backbone = [
            {"name": "adamw_backbone_decay", "params": [], "weight_decay": weight_decay, **adamw_for_visual},
            {"name": "adamw_backbone_no_decay", "params": [], "weight_decay": 0.0, **adamw_for_visual},
        ]
    groups: list[dict[str, Any]] = [
        {"name": "adamw_decay", "params": [], "weight_decay": weight_decay, **adamw},
        {"name": "adamw_no_decay", "params": [], "weight_decay": 0.0, **adamw},
        *([] if is_frozen(model) else backbone),
    ]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decay, no_decay = (groups[2], groups[-1]) if BACKBONE in name else groups[:2]
        (no_decay if is_exempt_from_decay(name) else decay)["params"].append(parameter)
    check_partition(model, groups)
    return groups


def is_frozen(model: nn.Module) -> bool:
    """Whether a model has a backbone, and none of it is trained."""
    backbone = [parameter for name, parameter in model.named_parameters() if BACKBONE in name]
    return bool(backbone) and not any(parameter.requires_grad for parameter in backbone)


def trained_values(model: nn.Module) -> tuple[int, int]:
    """How many values are trained outside of the backbone, and how many of it."""
    counts = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    backbone = sum(count for name, count in counts.items() if BACKBONE in name)
    return sum(counts.values()) - backbone, backbone


def check_partition(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    """Every trainable parameter in exactly one group, no group empty, the backbone's alone in its own."""
    seen: dict[int, str] = {}
    for group in groups:
        if not group["params"]:
            raise ValueError(f"no parameter of the model belongs to the group {group['name']}")
        for parameter in group["params"]:
            if id(parameter) in seen:
                raise ValueError(f"a parameter is in both {seen[id(parameter)]} and {group['name']}")
            seen[id(parameter)] = group["name"]
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) not in seen:
            raise ValueError(f"{name} is in no parameter group")
        if (BACKBONE in name) != ("backbone" in seen[id(parameter)]):
            raise ValueError(f"{name} is in the group {seen[id(parameter)]}")


class HybridOptimizer(Optimizer):
    """Runs torch's own AdamW or SGD on each group, as the group's `algorithm` says.

    ZeRO-2 sets `param_groups` to one group at a time before each `step()`, so a step reads `self.param_groups`
    anew and hands the groups, with the shared state, to the algorithm that they name.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        placeholder = [torch.zeros(1)]
        self.algorithms: dict[str, Optimizer] = {
            "adamw": AdamW(placeholder, fused=True),
            "sgd": SGD(placeholder, lr=0.0, fused=True),
        }
        completed = [{**self.algorithms[group["algorithm"]].defaults, **group} for group in groups]
        super().__init__(completed, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        if closure is not None:
            raise ValueError("HybridOptimizer takes no closure")
        for name, algorithm in self.algorithms.items():
            algorithm.param_groups = [group for group in self.param_groups if group["algorithm"] == name]
            algorithm.state = self.state
            algorithm.step()
