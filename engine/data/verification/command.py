"""prepare.py verify: a whole data set checked as a training would read it, and what that training takes."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers.hf_argparser import HfArg

from engine.data.annotations.commands import PrepareAnnotations, annotation_sources, cache_folder
from engine.data.annotations.formats.table import places_of
from engine.data.annotations.questions.file import files_of
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.store import AnnotationStore
from engine.data.dataset import ExampleOptions, lost_words
from engine.data.images.decoding import ImageShape
from engine.data.images.folder import not_found
from engine.data.preparation import Summary, print_problems
from engine.data.splits import open_images
from engine.data.verification.annotations import (
    describe,
    lacking,
    print_split,
    question_problems,
    repeated_questions,
    sentence_problems,
    without_table,
)
from engine.data.verification.estimates import estimate
from engine.data.verification.images import check_images
from engine.printing import note

MOST_PROBLEMS = 1000  # of a kind that are listed; all are counted


@dataclass
class PrepareVerify(PrepareAnnotations):
    """Check the whole data set, and estimate what a training on it takes."""

    image_store: str | None = HfArg(default=None, help="LMDB to check instead of the image folders")
    image_decoder: Literal["pillow", "simplejpeg"] = HfArg(default="pillow", help="as in training")
    image_size_min: int = HfArg(default=384, help="short side of the padded image, in pixels")
    image_size_max: int = HfArg(default=640, help="long side of the padded image, in pixels")
    max_seq_length: int = HfArg(default=20, help="as in training: tokens per sentence, [CLS] and [SEP] included")
    batch_size: int = HfArg(aliases=["--batchSize"], default=32, help="samples per GPU and pass, for the estimates")
    num_workers: int = HfArg(aliases=["--numWorkers"], default=4, help="loading processes per rank, for the estimates")
    ranks: int = HfArg(default=8, help="ranks on this machine, for the estimates")
    decode: bool = HfArg(default=True, help="decode every image; what was decoded before and is unchanged is skipped")


def prepare_verify(config: PrepareVerify) -> Summary:
    found = verify(config, annotation_sources(config), cache_folder(config))
    print_problems(found["problems"])
    print(f"{len(found['problems']):,} problems" if found["problems"] else "no problems")
    return found


def verify(config: PrepareVerify, sources: dict[str, AnnotationSource], cache: Path) -> dict[str, Any]:
    """Every annotation has its image and answers, every image decodes, sizes agree, nothing occurs twice.

    Returns:
        Counts by split and source, estimates, and "problems", one line each.

    Raises:
        UserError: for what keeps a training from starting: a broken annotation file, a damaged store, no images.
    """
    data_root = Path(config.data_root)
    shape = ImageShape(config.image_size_min, config.image_size_max)
    places = places_of(file for source in sources.values() for file in source.files)
    images = open_images(data_root, config.image_store, shape, config.image_decoder, places)
    problems: list[str] = []
    splits: dict[str, dict[str, Any]] = {}
    img_ids: dict[str, None] = {}
    of_tasks: dict[str, tuple[AnnotationStore, AnnotationSource]] = {}
    store_bytes: Counter[str] = Counter()  # by task, "" for pre-training; a training opens those of one
    most_sentences = 0
    for names, source in sources.items():
        store = source.open(cache, progress=True)
        splits[names] = describe(store, source)
        if source.has_question_ids:
            problems += question_problems(names, store, source)
            of_tasks[names] = store, source
            note(lacking(names, store, source))
        else:
            problems += sentence_problems(names, store, source)
            note(without_table(names, store, source))
        img_ids |= dict.fromkeys(store.image_ids)
        store_bytes[next((file.folder for file in files_of(source.parts)), "")] += store.columns.nbytes
        most_sentences = max(most_sentences, len(store))
        print_split(names, splits[names])
        note(lost_words(names, store, config.max_seq_length, source.encoder.vocabulary.unk_id))
    problems += repeated_questions(of_tasks)

    missing = dict.fromkeys(images.missing(img_ids))
    problems += [f"{told} is not in {images}" for told in not_found(images, list(missing)[:MOST_PROBLEMS])]
    present = [img_id for img_id in img_ids if img_id not in missing]
    checked = {"images": len(img_ids), "missing": len(missing)}
    if config.decode:
        unreadable, other_size, known = check_images(images, present, cache / "verified_images.tsv")
        problems += unreadable[:MOST_PROBLEMS] + other_size[:MOST_PROBLEMS]
        checked |= {"unreadable": len(unreadable), "other_size": len(other_size), "decoded_before": known}
    print(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in checked.items()))

    estimates = estimate(
        ExampleOptions(image_size_min=config.image_size_min, image_size_max=config.image_size_max),
        images,
        present,
        store_bytes=max(store_bytes.values()),
        sentences=most_sentences,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
        ranks=config.ranks,
    )
    problems += estimates.pop("problems")
    for name, value in estimates.items():
        print(f"{name.replace('_', ' ')}: {value:,}")
    return {"splits": splits, "images": checked, "estimates": estimates, "problems": problems}
