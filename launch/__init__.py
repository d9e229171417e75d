"""Programs: each parses its flags and calls the engine. Importing this says what isn't installed.

It also starts a program anew where Python doesn't take text and file names for UTF-8, as some locales ask: words and
paths would come out as others.
"""

import functools
import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

NEEDED = [
    *("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy"),
    *("PIL", "lmdb", "lz4", "msgpack", "msgpack_numpy", "yaml", "tqdm"),
]
HOME = Path(__file__).resolve().parents[1]


def program(main: Callable[P, R]) -> Callable[P, R | None]:
    """What every program does around its own `main`: it answers --version, refuses old libraries, and tells errors."""

    @functools.wraps(main)
    def run(*arguments: P.args, **named: P.kwargs) -> R | None:
        from engine.distributed.leaving import telling_errors

        with telling_errors():
            if "--version" not in sys.argv[1:]:
                from engine.provenance.tested import check_versions

                check_versions()
                return main(*arguments, **named)
            if os.environ.get("RANK", "0") == "0":
                from engine.provenance.environment import version_lines

                print("\n".join(version_lines()))
        return None

    return run


def lies_beside(name: str) -> bool:
    """Whether Python finds a package of ours where this one is."""
    origin = getattr(find_spec(name), "origin", None)
    return origin is not None and Path(origin).resolve().parents[1] == HOME


if missing := [name for name in NEEDED if find_spec(name) is None]:
    print(
        f"error: {sys.executable} lacks {', '.join(missing)}; run `make setup` and `source .venv/bin/activate` in a "
        "checkout, or `pip install` the checkout or the wheel into that Python, without --no-deps",
        file=sys.stderr,
    )
    sys.exit(2)

# `python -m` looks first into the folder that one is in, which may have an `engine` of its own.
if not all(map(lies_beside, ("engine", "kernels", "ds_configs"))):
    sys.path.insert(0, str(HOME))

if sys.getfilesystemencoding() != "utf-8":
    # The option also holds with -I and -E; the variable is for what this process starts.
    arguments = [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, "PYTHONUTF8": "1"})
