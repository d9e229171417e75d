"""Programs: each parses its flags and calls the engine. Importing this says what isn't installed.

It also starts a program anew where Python doesn't take text and file names for UTF-8, as some locales ask: words and
paths would come out as others.
"""

import os
import sys
from importlib.util import find_spec

NEEDED = [
    *("torch", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy"),
    *("PIL", "lmdb", "lz4", "msgpack", "msgpack_numpy", "yaml", "tqdm"),
]

if missing := [name for name in NEEDED if find_spec(name) is None]:
    print(
        f"error: {sys.executable} lacks {', '.join(missing)}; run `make setup` and `source .venv/bin/activate`, or "
        "install this checkout into that Python with `pip install --editable .`",
        file=sys.stderr,
    )
    sys.exit(2)

if sys.getfilesystemencoding() != "utf-8":
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, "PYTHONUTF8": "1"})
