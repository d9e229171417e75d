"""How far a half-precision pass may be from a recorded fp32 one, derived from the arithmetic and not from such a pass.

A half-precision operator computes in fp32 and rounds its result once, by at most u = eps / 2 of it; parameters and
inputs are rounded once, too. So the fp32 pass is repeated with each result, parameter and input off by a random share
of up to u (Monte Carlo arithmetic: D. S. Parker, "Monte Carlo Arithmetic", 1997). What that does to a quantity, root
mean square over DRAWS draws, is the deviation to expect; a quantity may be off by SPREAD of them. A true rounding is
off by up to half a unit in the last place, which is u of the smallest numbers with that unit and u / 2 of the largest,
so SPREAD = 4 are 5.5 true deviations: passed by chance 5 times in 100,000 (Student's t with 16 draws).

fp16 has a second error, which is absolute: what lies below 6e-8 vanishes. The loss is scaled by LOSS_SCALE for that, as
in training, and the gradients back.
"""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from engine.benchmark.recorded import Quantity, RecordedPass, gradients_of, read_passes
from engine.model.pretraining import ClipVilForPretraining

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
DRAWS, SPREAD = 16, 4
LOSS_SCALE = 2.0**8  # the recorded model's gradients are of the order of 1: far from fp16's largest, 65504
# The engine casts scores before the first two, so losses are fp32, and the third puts them beside each other.
IN_FP32 = ("_log_softmax", "nll_loss_forward", "stack")


class RandomRounding(TorchDispatchMode):
    """Every result is off by up to `u` of itself, uniformly, as if each operator had rounded it."""

    def __init__(self, u: float, device: str, seed: int) -> None:
        super().__init__()
        self.u, self.generator = u, torch.Generator(device).manual_seed(seed)

    def rounded(self, result: Any) -> Any:
        if not isinstance(result, Tensor) or result.dtype != torch.float32 or not result.dim():
            return result  # numbers without dimensions are losses, which stay fp32
        noise = torch.empty_like(result).uniform_(-self.u, self.u, generator=self.generator)
        return noise.add_(1).mul_(result)

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function._schema.name.split("::")[-1]
        if name in IN_FP32 or any(each.alias_info is not None for each in function._schema.returns):
            return result  # a view, or written in place
        if isinstance(result, tuple) and "backward" not in name:
            return self.rounded(result[0]), *result[1:]  # the others are statistics, which are fp32 in any case
        return tree_map(self.rounded, result)


def half_model(each: RecordedPass, device: str, dtype: torch.dtype) -> ClipVilForPretraining:
    """Parameters in half precision, buffers in fp32: as DeepSpeed casts a model."""
    model = each.model(device).to(dtype)
    for name, buffer in each.model(device).named_buffers():
        model.get_buffer(name).data = buffer
    return model


def run(
    each: RecordedPass,
    model: ClipVilForPretraining,
    inputs: dict[str, Any],
    scale: float = 1.0,
    rounding: AbstractContextManager[Any] | None = None,
) -> list[Quantity]:
    """One pass, under `rounding`; what is compared with the recorded numbers isn't rounded once more for that."""
    with rounding or nullcontext():
        output = model(**inputs)
        (output.loss * scale).backward()
    gradients = {name: gradient.float() / scale for name, gradient in gradients_of(model).items()}
    return list(each.compare(output, gradients))


def tolerances(each: RecordedPass, device: str, dtype: torch.dtype) -> dict[str, float]:
    """By the quantity's name."""
    squares: dict[str, float] = defaultdict(float)
    for seed in range(DRAWS):
        rounding = RandomRounding(torch.finfo(dtype).eps / 2, device, seed)
        model, inputs = each.model(device), each.inputs(device)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(rounding.rounded(parameter))
        inputs["images"] = rounding.rounded(inputs["images"])
        for quantity in run(each, model, inputs, rounding=rounding):
            squares[quantity.name] += quantity.error**2 / DRAWS
    return {name: SPREAD * square**0.5 for name, square in squares.items()}


def half_precision(folder: Path, device: str, dtype: str, passes: int | None) -> Iterator[Quantity]:
    """The first, or all, recorded passes with parameters and features in fp16 or bf16."""
    for each in read_passes(folder)[:passes]:
        allowed = tolerances(each, device, DTYPES[dtype])
        model = half_model(each, device, DTYPES[dtype])
        for quantity in run(each, model, each.inputs(device), LOSS_SCALE):
            yield quantity._replace(name=f"{dtype} {quantity.name}", tolerance=allowed[quantity.name])
