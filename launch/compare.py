"""What differs between two runs: flags, settings, versions, code, data, machines; and their results side by side.

    python launch/compare.py snap/pretrain/a snap/pretrain/b

A run is a folder that a training has written (--output), or a run.json from one.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

import launch  # noqa: F401  says what isn't installed, before anything else is imported
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.provenance.compare import compare, read_run


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="compare.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="two folders of runs, or run.json files")
    options, others = parser.parse_known_args(sys.argv[1:] if argv is None else argv)
    with telling_errors():
        if others:
            raise UserError(f"unknown flag {others[0]}; see --help")
        if len(options.runs) != 2:
            raise UserError(f"two runs are compared, and {len(options.runs)} were given; see --help")
        Ranks.check_alone()
        print(compare(*map(read_run, options.runs)))


if __name__ == "__main__":
    main()
