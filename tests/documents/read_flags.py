"""Run a module, or a program, until its flags are read: python read_flags.py MODULE_OR_PROGRAM FLAGS"""

import os
import runpy
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
parse_args: Any = ArgumentParser.parse_args


def parse_and_end(parser: ArgumentParser, args: Sequence[str] | None = None, namespace: Any = None) -> Namespace:
    """argparse's own, which ends the process with code 2 if a flag or a value is wrong."""
    parse_args(parser, args, namespace)
    print("the flags were read", flush=True)
    os._exit(0)


if __name__ == "__main__":
    ArgumentParser.parse_args = parse_and_end  # type: ignore[method-assign]
    sys.argv.pop(0)
    if sys.argv[0].endswith(".py"):
        runpy.run_path(str(ROOT / sys.argv[0]), run_name="__main__")
    else:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    sys.exit(1)  # it has read none
