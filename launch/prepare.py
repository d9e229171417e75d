"""From downloaded files to a verified data set.

    python launch/prepare.py download       the original's data: listed with --dry-run, or fetched, verified, unpacked
    python launch/prepare.py sizes          width_heigths.json beside the images, so that no training reads headers
    python launch/prepare.py answers        an answer table from the annotations, or with --task the list of a task
    python launch/prepare.py gqa            GQA's official question files in LXMERT's form, with an answer table
    python launch/prepare.py annotations    the stores that trainings open, built ahead of the first one
    python launch/prepare.py images         all images in one LMDB, resized or as they are
    python launch/prepare.py verify         every annotation, image and size checked; memory and throughput estimated
    python launch/prepare.py inspect FILE   what is in a table, shards or a dataset, with a sheet of its pictures
    python launch/prepare.py demo           the demo's small data set

annotations, images and verify take the files of the tasks to fine-tune on as well: --vqa train,nominival,minival,test,
--gqa train,valid,testdev,submit, --snli_ve train,dev,test.
COMMAND --help tells the flags; --json FILE writes what was found. Whatever interrupts a command, the same one goes on.
--version tells all versions, for a report of a bug.
"""

import sys
from pathlib import Path

if not __package__:  # a file that is started, of this checkout, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import launch  # says what isn't installed, before anything else is imported


@launch.program
def main(argv: list[str] | None = None) -> int:
    # Here, because processes that encode images import this file again.
    from engine.data.annotations.commands import (
        PrepareAnnotations,
        PrepareAnswers,
        prepare_annotations,
        prepare_answers,
    )
    from engine.data.annotations.questions.official_gqa import PrepareGqa, prepare_gqa
    from engine.data.downloads.command import PrepareDownload, prepare_download
    from engine.data.images.commands import PrepareImages, PrepareSizes, prepare_images, prepare_sizes
    from engine.data.inspection.command import PrepareInspect, prepare_inspect
    from engine.data.preparation import Command, run_command
    from engine.data.verification.command import PrepareVerify, prepare_verify
    from engine.synthetic.command import PrepareDemo, prepare_demo

    commands: dict[str, Command] = {
        "download": (PrepareDownload, prepare_download),
        "sizes": (PrepareSizes, prepare_sizes),
        "answers": (PrepareAnswers, prepare_answers),
        "gqa": (PrepareGqa, prepare_gqa),
        "annotations": (PrepareAnnotations, prepare_annotations),
        "images": (PrepareImages, prepare_images),
        "verify": (PrepareVerify, prepare_verify),
        "inspect": (PrepareInspect, prepare_inspect),
        "demo": (PrepareDemo, prepare_demo),
    }
    return run_command(commands, sys.argv[1:] if argv is None else argv, str(__doc__))


if __name__ == "__main__":
    sys.exit(main())
