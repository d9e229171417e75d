"""Whether everything that the other parts import is installed: one line, and exit code 1 if not."""

import importlib.util
import sys

PACKAGES = (
    *("torch", "triton", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "lmdb", "lz4"),
    *("msgpack", "msgpack_numpy", "yaml", "tqdm", "ninja", "hjson", "pydantic", "cpuinfo", "pytest", "matplotlib"),
)


def main() -> int:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    print(f"missing: {', '.join(missing)}; put their wheels into WHEELS" if missing else "nothing is missing")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
