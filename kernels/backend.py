"""Which implementation of a kernel runs: Triton's on a GPU, its PyTorch twin everywhere else.

The environment variable KERNELS_BACKEND overrides this:

    unset, or auto   Triton for tensors on a GPU; the twin, with one warning, where Triton is missing or broken
    triton           Triton or an error. With TRITON_INTERPRET=1 its interpreter runs the kernels on CPU tensors
    torch            the twin on any device

The kernels take `triton` and `tl` from here, so that their files can be imported where Triton can't.
"""

import functools
import os
import sys
import warnings
from types import SimpleNamespace

import torch

CHOICES = ("auto", "triton", "torch")
LAUNCH = {"enable_fp_fusion": True}  # of every kernel: Triton's default changes with 3.10, and with it the last bits

import_problem: str | None = None
try:
    import triton
    import triton.language as tl
except Exception as error:  # a broken installation raises anything, OSError and AttributeError included
    import_problem = f"{type(error).__name__}: {error}"
    sys.modules["triton"] = None  # type: ignore[assignment]  # torch tries as well, and gets over ImportError alone
    triton = SimpleNamespace(jit=lambda function=None, **options: function or triton.jit)
    tl = SimpleNamespace(constexpr=None)


@torch.compiler.assume_constant_result  # torch.compile doesn't look inside
def use_triton(device_type: str, dtype: torch.dtype | None = None) -> bool:
    """Whether tensors on this type of device ("cuda", "cpu", ...) are for Triton; those of fp64 never are.

    Raises:
        ValueError: KERNELS_BACKEND has no such value, or asks for Triton on a device where it can't run.
        RuntimeError: KERNELS_BACKEND asks for Triton, and Triton is missing or broken.
    """
    choice = os.environ.get("KERNELS_BACKEND") or "auto"
    if choice not in CHOICES:
        raise ValueError(f"KERNELS_BACKEND={choice} is none of {', '.join(CHOICES)}")
    if choice == "torch" or dtype == torch.float64 or (choice == "auto" and device_type != "cuda"):
        return False
    asked = choice == "triton"
    interpreted = import_problem is None and triton.knobs.runtime.interpret
    if asked and import_problem is None and device_type != "cuda" and not interpreted:
        raise ValueError(
            f"KERNELS_BACKEND=triton, but the tensors are on {device_type}; unset it or move them to a GPU"
        )
    problem = import_problem or (None if interpreted else _driver_problem())
    if asked and problem is not None:
        raise RuntimeError(f"KERNELS_BACKEND=triton, but Triton doesn't work here ({problem}); mend it or unset this")
    if problem is not None:
        _warn(problem)
    return problem is None


@functools.cache
def _driver_problem() -> str | None:
    """What keeps Triton from launching kernels; its driver needs a GPU and, for the first launch, a C compiler."""
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


@functools.cache
def _warn(problem: str) -> None:
    warnings.warn(f"Triton doesn't work here ({problem}): the slower PyTorch implementation runs instead", stacklevel=4)
