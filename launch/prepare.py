"""From downloaded files to a verified data set.

    python launch/prepare.py download       the original's data: listed with --dry-run, or fetched, verified, unpacked
    python launch/prepare.py sizes          data/mscoco/width_heigths.json, so that no training reads image headers
    python launch/prepare.py answers        an answer table from the annotations, where there is none
    python launch/prepare.py annotations    the stores that trainings open, built ahead of the first one
    python launch/prepare.py images         all images in one LMDB, resized or as they are
    python launch/prepare.py verify         every annotation, image and size checked; memory and throughput estimated
    python launch/prepare.py demo           the demo's small data set

COMMAND --help tells the flags; --json FILE writes what was found. Whatever interrupts a command, the same one goes on.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # this checkout, installed or not

if __name__ == "__main__":
    from engine.preparation import main  # here, because processes that encode images import this file again

    sys.exit(main(sys.argv[1:], __doc__))
