"""Imports of what is large: torch, DeepSpeed and transformers take a program's first seconds; and what isn't there."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from engine.errors import UserError


@contextmanager
def heavy_imports() -> Iterator[None]:
    """Import without garbage collection: all that is imported stays, and looking through it takes a fifth of the time.

    Later collections leave it out, too, in this process and in workers that it forks.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
        atexit.register(gc.unfreeze)  # else Triton's bindings tell at the end that all of their objects have leaked


def check_packages(what: str, *packages: str) -> None:
    """Raises UserError, naming all of the packages that something needs and that aren't installed; imports none."""
    missing = [package for package in packages if find_spec(package.replace("-", "_")) is None]
    if missing:
        raise UserError(f"{what} needs {' and '.join(missing)}; run `pip install {' '.join(missing)}`")
