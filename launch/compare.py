"""What differs between two runs: flags, settings, versions, code, data, machines; and their results side by side.

    python launch/compare.py snap/pretrain/a snap/pretrain/b

A run is a folder that a training has written (--output), or a run.json from one.
"""

import argparse
import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.commands import usage
from engine.configuration.parsing import Parser
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.provenance.compare import compare, read_run


@launch.program
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=usage(str(__doc__)), formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="two folders of runs, or run.json files")
    runs = parser.parse_args(sys.argv[1:] if argv is None else argv).runs
    if len(runs) != 2:
        raise UserError(f"two runs are compared, and {len(runs)} were given; see --help")
    Ranks.check_alone()
    print(compare(*map(read_run, runs)))


if __name__ == "__main__":
    main()
