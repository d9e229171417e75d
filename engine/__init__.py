"""The CLIP-ViL training engine, and models that it has trained: `engine.load_pretrained(FOLDER)`."""

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.inference.pretrained import load_pretrained

__all__ = ["__version__", "load_pretrained"]
__version__ = "0.3.0"  # below 0.9: see "Packaging" in docs/decisions.md

# Said by DeepSpeed on standard output, the first as soon as it is imported: that there is no GPU (each program says
# what it runs on), and that it doesn't know our optimiser (tests/test_ranks.py does).
_NO_NEWS = ("Setting accelerator to CPU", "untested optimizer")
logging.getLogger("DeepSpeed").addFilter(lambda record: not any(part in record.getMessage() for part in _NO_NEWS))


def __getattr__(name: str) -> Any:
    """Programs import this package before their flags are checked, so torch waits until a model is asked for."""
    if name != "load_pretrained":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from engine.inference.pretrained import load_pretrained

    return load_pretrained
