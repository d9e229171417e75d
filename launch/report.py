"""A page about runs that have trained or are training: curves, results, and what differs between them.

    python launch/report.py snap/pretrain/a
    python launch/report.py snap/pretrain/a snap/pretrain/b --output comparison

A run is a folder that a training has written (--output). The page is one HTML file that needs nothing else.
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported
from engine.distributed.ranks import Ranks
from engine.importing import heavy_imports
from engine.report.flags import parse_report


@launch.program
def main(argv: list[str] | None = None) -> None:
    config = parse_report(sys.argv[1:] if argv is None else argv)
    Ranks.check_alone()
    with heavy_imports():
        from engine.report.page import write_report
    write_report(config)


if __name__ == "__main__":
    main()
