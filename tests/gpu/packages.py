"""Whether everything that the other parts import is there, and imports: one line, and exit code 1 if not."""

import importlib
import sys

PACKAGES = (
    *("torch", "triton", "deepspeed", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "lmdb", "lz4"),
    *("msgpack", "msgpack_numpy", "yaml", "tqdm", "ninja", "pytest", "matplotlib"),
)


def problem(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return name if error.name == name else f"{error.name} (for {name})"
    except Exception as error:  # a broken installation raises anything
        return f"{name} ({type(error).__name__}: {error})"
    return None


def main() -> int:
    missing = [found for name in PACKAGES if (found := problem(name)) is not None]
    print(f"missing: {', '.join(missing)}; put wheels into WHEELS" if missing else "nothing is missing")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
