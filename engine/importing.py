"""Imports of what is large: torch, DeepSpeed and transformers take a program's first seconds."""

import atexit
import gc
from collections.abc import Iterator
from contextlib import contextmanager


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
