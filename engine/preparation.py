"""The commands of launch/prepare.py, each from its flags to a summary."""

import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from engine.arguments import parse_command
from engine.config import (
    AnnotationFilesConfig,
    PrepareAnnotations,
    PrepareAnswers,
    PrepareConfig,
    PrepareDemo,
    PrepareDownload,
    PrepareImages,
    PrepareSizes,
    PrepareVerify,
)
from engine.data import download
from engine.data.annotation_source import AnnotationSource
from engine.data.annotations import AnnotationFile, Texts
from engine.data.answers import AnswerTable, normalise_answer
from engine.data.demo import write_demo
from engine.data.image_writer import write_image_store
from engine.data.images import (
    COCO_SPLITS,
    GENOME_FOLDER,
    SIZES_FILE,
    UNREADABLE_SIZE,
    ImageFolder,
    ImageShape,
    image_path,
)
from engine.data.splits import annotation_files
from engine.errors import UserError
from engine.files import check_writable, write_json

Summary = dict[str, Any]


def main(argv: list[str], usage: str) -> int:
    """Run one command.

    Returns:
        0, 1 if the data have problems, 2 for what the user can mend at once, 130 after Ctrl-C.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(usage.strip())
        return 0 if argv else 2
    started = time.monotonic()
    name, *flags = argv
    try:
        if name not in COMMANDS:
            raise UserError(f"there is no command {name}; choose one of {', '.join(COMMANDS)}")
        config_class, command = COMMANDS[name]
        config = parse_command(config_class, f"prepare.py {name}", flags)
        if config.json is not None:
            check_writable(Path(config.json))  # before the work, which may take hours
        summary = command(config)
        summary["seconds"] = round(time.monotonic() - started, 1)
        if config.json is not None:
            write_json(Path(config.json), summary, indent=2)
    except UserError as error:
        print(f"\nprepare.py {name}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nprepare.py {name}: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 1 if summary.get("problems") else 0


def prepare_annotations(config: PrepareAnnotations) -> Summary:
    """The stores of both splits, with what is in them."""
    summary = {}
    for names, source in annotation_sources(config).items():
        store = source.open(cache_folder(config), progress=True)
        summary[names] = {
            "sentences": len(store),
            "images": len(store.image_ids),
            "bytes": store.columns.nbytes,
            "bytes_per_sentence": round(store.columns.nbytes / max(1, len(store)), 1),
        }
        print("{}: {sentences:,} sentences, {images:,} images, {bytes:,} bytes".format(names, **summary[names]))
    return {"stores": summary}


def annotation_sources(config: PrepareAnnotations) -> dict[str, AnnotationSource]:
    """What the stores of a training are made of, by split."""
    from engine.checkpoint.weights import read_bert  # brings DeepSpeed, which other commands can do without
    from engine.data.text import TextEncoder

    folder = Path(config.data_root) / "lxmert"
    answers = AnswerTable.read(folder / "all_ans.json", config.qa_sets.split(",") if config.qa_sets else None)
    encoder = TextEncoder(read_bert(config.bert)[1])
    return {
        names: AnnotationSource(annotation_files(folder, names), encoder, answers, config.with_text)
        for names in config.splits
    }


def cache_folder(config: PrepareAnnotations) -> Path:
    return Path(config.cache_dir or Path(config.data_root) / "cache")


def read_texts(config: AnnotationFilesConfig) -> Iterator[Texts]:
    """All sentences of both splits, file by file, with progress."""
    folder = Path(config.data_root) / "lxmert"
    for path in dict.fromkeys(path for names in config.splits for path in annotation_files(folder, names)):
        size = path.stat().st_size if path.exists() else None
        with tqdm(total=size, desc=f"reading {path.stem}", unit="B", unit_scale=True) as bar:
            yield from AnnotationFile(path).texts(bar)


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
    found = write_image_store(
        store, img_ids, data_root, resize=resize, quality=config.quality, workers=workers, progress=True
    )
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
    """`width_heigths.json` in the original's format: (height, width) under the name of (width, height)."""
    data_root = Path(config.data_root)
    folders = [data_root / "mscoco" / split for split in COCO_SPLITS] + [data_root / GENOME_FOLDER]
    img_ids = sorted(path.stem for folder in folders for path in folder.glob("*.jpg"))
    if not img_ids:
        raise UserError(f"there is no image in {', '.join(map(str, folders))}; point --data_root at the data")
    sizes = ImageFolder(data_root, ImageShape(1, 1)).sizes(img_ids, progress=True).tolist()
    problems, entries = [], {}
    for img_id, (width, height) in zip(img_ids, sizes, strict=True):
        path = image_path(img_id)
        if (width, height) == UNREADABLE_SIZE:
            problems.append(f"{data_root / path} is unreadable")
        else:
            entries[f"data/{path.as_posix()}"] = [height, width]
    write_json(data_root / SIZES_FILE, entries)
    print(f"{data_root / SIZES_FILE}: {len(entries):,} images")
    print_problems(problems)
    return {"file": str(data_root / SIZES_FILE), "images": len(entries), "problems": problems}


def prepare_answers(config: PrepareAnswers) -> Summary:
    """[{"ans": answer, "dsets": [category, ...]}, ...], the most frequent first."""
    if config.min_count < 1:
        raise UserError(f"--min_count {config.min_count}: at least 1 is needed")
    output = Path(config.output or Path(config.data_root) / "lxmert" / "all_ans.json")
    if output.exists() and not config.force:
        raise UserError(f"{output} is there already; name another --output, or replace it with --force")
    counts: Counter[str] = Counter()
    categories: dict[str, set[str]] = {}
    questions = 0
    for texts in read_texts(config):
        for scores in texts.labels or ():
            questions += 1
            for answer in {normalise_answer(answer) for answer in scores}:
                counts[answer] += 1
                categories.setdefault(answer, set()).add(texts.category)
    kept = sorted(
        (answer for answer, count in counts.items() if count >= config.min_count), key=lambda a: (-counts[a], a)
    )
    if not kept:
        raise UserError(f"none of {len(counts):,} answers occurs with {config.min_count} questions; lower --min_count")
    write_json(output, [{"ans": answer, "dsets": sorted(categories[answer])} for answer in kept])
    print(f"{output}: {len(kept):,} of {len(counts):,} answers, from {questions:,} questions")
    return {"file": str(output), "answers": len(kept), "different_answers": len(counts), "questions": questions}


def prepare_demo(config: PrepareDemo) -> Summary:
    """The demo's data set."""
    write_demo(
        Path(config.data_root),
        train_scenes=config.train_scenes,
        valid_scenes=config.valid_scenes,
        seed=config.seed,
        progress=True,
    )
    return {"data_root": config.data_root, "train_scenes": config.train_scenes, "valid_scenes": config.valid_scenes}


def prepare_download(config: PrepareDownload) -> Summary:
    """The original's data, or what would be fetched of them."""
    data_root = Path(config.data_root)
    chosen = download.choose(config.only)
    if not config.dry_run:
        return download.download(chosen, data_root, unpack=config.unpack, remove_zip=config.remove_zip)
    rows = download.plan(data_root, chosen)
    download.print_plan(rows, data_root, unpack=config.unpack)
    return {
        "files": {
            row.resource.name: {
                "url": row.resource.url,
                "bytes": row.resource.size,
                "sha256": row.resource.sha256,
                "target": row.resource.target,
                "state": row.state,
            }
            for row in rows
        }
    }


def prepare_verify(config: PrepareVerify) -> Summary:
    from engine.data.verification import verify

    found = verify(config, annotation_sources(config), cache_folder(config))
    print_problems(found["problems"])
    print(f"{len(found['problems']):,} problems" if found["problems"] else "no problems")
    return found


def print_problems(problems: Iterable[str], most: int = 10) -> None:
    """The first few; --json has all."""
    problems = list(problems)
    for problem in problems[:most]:
        print(f"problem: {problem}")
    if len(problems) > most:
        print(f"... and {len(problems) - most:,} more problems; --json FILE lists all")


COMMANDS: dict[str, tuple[type[PrepareConfig], Callable[[Any], Summary]]] = {
    "download": (PrepareDownload, prepare_download),
    "sizes": (PrepareSizes, prepare_sizes),
    "answers": (PrepareAnswers, prepare_answers),
    "annotations": (PrepareAnnotations, prepare_annotations),
    "images": (PrepareImages, prepare_images),
    "verify": (PrepareVerify, prepare_verify),
    "demo": (PrepareDemo, prepare_demo),
}
