"""prepare.py images: one LMDB of all images. prepare.py sizes: their sizes, once for all starts."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.hf_argparser import HfArg

from engine.data.annotations.commands import annotation_files_of, read_texts
from engine.data.annotations.formats.table import places_of
from engine.data.images.decoding import UNREADABLE_SIZE, ImageShape
from engine.data.images.folder import ImageFolder
from engine.data.images.places import (
    COCO_SPLITS,
    GENOME_FOLDER,
    OWN_FOLDER,
    TASK_FOLDERS,
    image_path,
    sizes_file,
)
from engine.data.images.writer import write_image_store
from engine.data.preparation import PrepareConfig, QuestionFilesConfig, Summary, print_problems
from engine.errors import UserError
from engine.files import write_json


@dataclass
class PrepareImages(QuestionFilesConfig):
    """Write the annotations' images to one LMDB, or complete it."""

    image_store: str | None = HfArg(default=None, help="folder of the LMDB; DATA_ROOT/images.lmdb if not given")
    resize: str | None = HfArg(
        default=None, help="short and long side, as in 384x640; the files as they are if not given"
    )
    quality: int = HfArg(default=95, help="JPEG quality of resized images")
    workers: int | None = HfArg(default=None, help="processes that encode; one a core if not given")


@dataclass
class PrepareSizes(PrepareConfig):
    """Write mscoco/width_heigths.json and its like for tasks' own images, or complete them, for all images."""


def prepare_images(config: PrepareImages) -> Summary:
    """One LMDB of the images that the annotations name."""
    data_root = Path(config.data_root)
    store = Path(config.image_store or data_root / "images.lmdb")
    resize = None
    if config.resize is not None:
        sides = re.fullmatch(r"(\d+)x(\d+)", config.resize)
        if sides is None:
            raise UserError(f"--resize {config.resize}: short and long side are needed, as in 384x640")
        resize = (int(sides[1]), int(sides[2]))
    workers = config.workers if config.workers is not None else len(os.sched_getaffinity(0))
    img_ids = list(dict.fromkeys(texts.img_id for texts in read_texts(config)))
    places = places_of(annotation_files_of(config))
    options: dict[str, Any] = {"resize": resize, "quality": config.quality, "workers": workers, "places": places}
    found = write_image_store(store, img_ids, data_root, **options, progress=True)
    print(f"{store}: {found.written:,} images written, {found.bytes:,} bytes; {found.skipped_existing:,} were there")
    print_problems(found.unreadable)
    return {
        "image_store": str(store),
        "written": found.written,
        "there_already": found.skipped_existing,
        "bytes_written": found.bytes,
        "problems": found.unreadable,
    }


def prepare_sizes(config: PrepareSizes) -> Summary:
    """`width_heigths.json` in the original's format: (height, width) under the name of (width, height).

    COCO's and Visual Genome's images have one such file, and each task's own images have another.
    """
    data_root = Path(config.data_root)
    ids = {Path("mscoco", split): "{}" for split in COCO_SPLITS} | {GENOME_FOLDER: "{}"}
    ids |= {folder: f"{word}:{{}}" for word, folder in TASK_FOLDERS.items()}
    img_ids = sorted(
        form.format(path.stem) for folder, form in ids.items() for path in (data_root / folder).glob("*.jpg")
    )
    if not img_ids:
        folders = ", ".join(str(data_root / folder) for folder in ids)
        raise UserError(
            f"there is no image in {folders}; point --data_root at the data (sizes of images in {OWN_FOLDER}/ need no "
            "file: trainings keep them in their cache)"
        )
    sizes = ImageFolder(data_root, ImageShape(1, 1)).sizes(img_ids, progress=True).tolist()
    problems, entries = [], dict[Path, dict[str, list[int]]]()
    for img_id, (width, height) in zip(img_ids, sizes, strict=True):
        path, of_file = image_path(img_id), entries.setdefault(data_root / sizes_file(img_id), {})
        if (width, height) == UNREADABLE_SIZE:
            problems.append(f"{data_root / path} is unreadable")
        else:
            of_file[f"data/{path.as_posix()}"] = [height, width]
    for file, of_file in entries.items():
        write_json(file, of_file)
        print(f"{file}: {len(of_file):,} images")
    print_problems(problems)
    return {
        "files": {str(file): len(of_file) for file, of_file in entries.items()},
        "images": sum(map(len, entries.values())),
        "problems": problems,
    }
