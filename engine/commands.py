"""What starts the programs of launch/: files of a checkout, or the commands and modules that pip installed.

Messages that tell somebody what to type next take these, so that it works as typed, from the folder that one is in.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
IN_CHECKOUT = (ROOT / "setup.py").is_file()


def program_name() -> str:
    """The program that runs, as it was typed: prepare.py or clipvil-prepare."""
    return Path(sys.argv[0]).name


def folder_of_files() -> Path | None:
    """The programs' files, by the path that one has to type; None where they are commands and modules."""
    started = Path(sys.argv[0])
    if IN_CHECKOUT and Path.cwd() == ROOT:
        return Path("launch")
    is_file = started.suffix == ".py" and sys.modules["__main__"].__spec__ is None
    return started.parent if is_file and started.resolve().parent == ROOT / "launch" else None


def command(name: str) -> str:
    """What starts a program in one process: `python launch/prepare.py` or `clipvil-prepare`."""
    folder = folder_of_files()
    return f"python {folder / name}.py" if folder else f"clipvil-{name}"


def program_words(name: str, *, with_launcher: bool) -> list[str]:
    """What names a program, behind a launcher or alone. `-m` and a module follow what starts Python as well."""
    if folder := folder_of_files():
        return [f"{folder / name}.py"]
    return ["-m", f"launch.{name}"] if with_launcher else [f"clipvil-{name}"]


def own_words() -> list[str]:
    """What names the program that runs: the file or command that was typed, or `-m` and its module."""
    spec = sys.modules["__main__"].__spec__
    return ["-m", spec.name] if spec and spec.origin == sys.argv[0] else [sys.argv[0]]


def usage(text: str) -> str:
    """A program's docstring, which shows a checkout's commands, with those that are there."""
    if folder := folder_of_files():
        return text.strip().replace("launch/", f"{folder}/")
    text = re.sub(r"python launch/(\w+)\.py", r"clipvil-\1", text)
    return re.sub(r"launch/(\w+)\.py", r"--module launch.\1", text).strip()
