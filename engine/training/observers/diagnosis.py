"""Where a NaN or an infinity came from."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def first_non_finite(model: nn.Module, inputs: dict[str, Any]) -> str:
    """Run one batch again and say which parameter, or which module's output, is the first that isn't finite."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            return f"the parameter {name} is not finite"
    found: list[str] = []
    hooks = [module.register_forward_hook(_remember(name, found)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return (
        f"the first output that is not finite is that of {found[0]}"
        if found
        else "the outputs are finite, the gradients are not"
    )


def _remember(name: str, found: list[str]) -> Any:
    def hook(module: nn.Module, arguments: Any, output: Any) -> None:
        if not all(torch.isfinite(tensor).all() for tensor in _floats(output)):
            found.append(name)

    return hook


def _floats(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, tuple | list):
        for part in output:
            yield from _floats(part)
