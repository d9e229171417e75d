"""Checks of a whole data set, as a training would read it, and estimates of what that training takes."""

import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from engine.config import PrepareVerify
from engine.data.annotation_source import AnnotationSource
from engine.data.annotation_store import AnnotationStore
from engine.data.images import ImageFolder, ImageShape, ImageSource, UnreadableImage, image_path
from engine.data.loading import check_shared_memory, shared_memory_per_worker
from engine.data.pretraining import PretrainingOptions
from engine.data.splits import open_images
from engine.errors import UserError

MOST_PROBLEMS = 1000  # of a kind that are listed; all are counted
TIMED_IMAGES = 64
CHUNK = 1 << 15  # sentences that are hashed at a time
# At most, memory of a loading process for the annotations beside the store; engine.data.benchmark measures it
WORKER_ANONYMOUS_MB = 2


def verify(config: PrepareVerify, sources: dict[str, AnnotationSource], cache: Path) -> dict[str, Any]:
    """Every annotation has its image and answers, every image decodes, sizes agree, nothing occurs twice.

    Returns:
        Counts by split and source, estimates, and "problems", one line each.

    Raises:
        UserError: for what keeps a training from starting: a broken annotation file, a damaged store, no images.
    """
    data_root = Path(config.data_root)
    shape = ImageShape(config.image_size_min, config.image_size_max)
    images = open_images(data_root, config.image_store, shape, config.image_decoder)
    problems: list[str] = []
    splits: dict[str, dict[str, Any]] = {}
    img_ids: dict[str, None] = {}
    store_bytes = most_sentences = 0
    for names, source in sources.items():
        store = source.open(cache, progress=True)
        splits[names] = describe(store, [path.stem for path in source.files])
        repeated, example = repeats(store, store.uid_codes)
        if repeated:
            problems.append(f"{names}: {repeated:,} sentences have the uid of another one, such as {example}")
        count = store.label_count
        if count.unknown:
            share = count.unknown / max(1, int(store.questions.sum()))
            splits[names]["questions_without_known_answer"] = count.unknown
            if not count.known:
                problems.append(f"{names}: no answer is in the answer table (the first is {count.example!r})")
            elif share > 0.5:
                problems.append(f"{names}: {share:.0%} of the questions have no answer in the answer table")
        img_ids |= dict.fromkeys(store.image_ids)
        store_bytes += store.columns.nbytes
        most_sentences = max(most_sentences, len(store))
        print_split(names, splits[names])

    missing = dict.fromkeys(images.missing(img_ids))
    problems += [f"{img_id} is not in {images}" for img_id in list(missing)[:MOST_PROBLEMS]]
    present = [img_id for img_id in img_ids if img_id not in missing]
    checked = {"images": len(img_ids), "missing": len(missing)}
    if config.decode:
        unreadable, other_size, known = check_images(images, present, cache / "verified_images.tsv")
        problems += unreadable[:MOST_PROBLEMS] + other_size[:MOST_PROBLEMS]
        checked |= {"unreadable": len(unreadable), "other_size": len(other_size), "decoded_before": known}
    print(", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in checked.items()))

    estimates = estimate(config, images, present, store_bytes, most_sentences)
    problems += estimates.pop("problems")
    for name, value in estimates.items():
        print(f"{name.replace('_', ' ')}: {value:,}")
    return {"splits": splits, "images": checked, "estimates": estimates, "problems": problems}


def describe(store: AnnotationStore, files: list[str]) -> dict[str, Any]:
    """Counts of a split, by file and category."""
    questions, categories = store.questions, store.category_codes
    sources, first = {}, 0
    for name, last in zip(files, store.columns.header["file_ends"], strict=True):
        counts: Counter[str] = Counter()
        for code, count in zip(*np.unique(categories[first:last], return_counts=True), strict=True):
            counts[store.categories[code]] += int(count)
        sources[name] = dict(counts)
        first = last
    return {
        "sentences": len(store),
        "questions": int(questions.sum()),
        "images": len(store.image_ids),
        "repeated_sentences": repeats(store, _hashes(store))[0],  # of one image; regions are often described alike
        "sources": sources,
    }


def print_split(names: str, found: dict[str, Any]) -> None:
    counts = (f"{found[name]:,} {name.replace('_', ' ')}" for name in ("sentences", "questions", "images"))
    print(f"{names}: {', '.join(counts)}, {found['repeated_sentences']:,} sentences that their image has already")
    for source, categories in found["sources"].items():
        print(f"  {source}: " + ", ".join(f"{category} {count:,}" for category, count in categories.items()))


def repeats(store: AnnotationStore, keys: np.ndarray) -> tuple[int, str]:
    """How many sentences have a key that occurred before, and the uid of the first that others repeat."""
    _, firsts, counts = np.unique(keys, return_index=True, return_counts=True)
    repeated = firsts[counts > 1]
    return int((counts - 1).sum()), store[int(repeated.min())].uid if len(repeated) else ""


def _hashes(store: AnnotationStore) -> np.ndarray:
    """64 bits of each sentence's image and words: two of 10 million collide by chance once in 300,000 data sets."""
    hashes = np.empty(len(store), np.int64)
    images = store.images.tolist()
    for start in range(0, len(store), CHUNK):
        numbers = range(start, min(start + CHUNK, len(store)))
        words = store.take(numbers).token_ids
        hashes[start : start + len(words)] = [hash((images[n], ids)) for n, ids in zip(numbers, words, strict=True)]
    return hashes


def check_images(images: ImageSource, img_ids: Sequence[str], log: Path) -> tuple[list[str], list[str], int]:
    """Decode every image, on all cores, and compare its size with the one that training will take it for.

    What was found good stands in `log` with the file's size and time, so that an interrupted check goes on.

    Returns:
        Problems of decoding, problems of size, and how many images were good already.
    """
    sizes = images.sizes(img_ids)
    good = _read_log(log)
    stamps = {img_id: images.stamp(img_id) for img_id in img_ids}
    todo = [n for n, img_id in enumerate(img_ids) if (img_id, stamps[img_id], *sizes[n].tolist()) not in good]
    unreadable, other_size = [], []

    def check(number: int) -> tuple[str, str]:
        """A problem of decoding, or one of size."""
        try:
            images.load(img_ids[number])
        except UnreadableImage as error:
            return str(error), ""
        if isinstance(images, ImageFolder):  # a store's sizes are those of its records
            path = images.data_root / image_path(img_ids[number])
            recorded = tuple(sizes[number].tolist())
            with Image.open(path) as image:
                if image.size != recorded:
                    found = "{} x {} pixels, recorded are {} x {}".format(*image.size, *recorded)
                    return "", f"{path} has {found}"
        return "", ""

    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = tqdm(pool.map(check, todo), desc="decoding", total=len(todo), unit="image")
            for number, (problem, difference) in zip(todo, found, strict=True):
                if problem:
                    unreadable.append(problem)
                elif difference:
                    other_size.append(difference)
                else:
                    width, height = sizes[number].tolist()
                    file.write(f"{img_ids[number]}\t{stamps[img_ids[number]]}\t{width}\t{height}\n")
    except OSError as error:
        raise UserError(
            f"{log} can't be written ({error.strerror}); free space or choose another --cache_dir"
        ) from None
    return unreadable, other_size, len(img_ids) - len(todo)


def _read_log(log: Path) -> set[tuple[str, str, int, int]]:
    good = set()
    if log.exists():
        for line in log.read_text().splitlines():
            fields = line.split("\t")
            if len(fields) == 4 and fields[2].isdigit() and fields[3].isdigit():  # the last line may be cut off
                good.add((fields[0], fields[1], int(fields[2]), int(fields[3])))
    return good


def estimate(
    config: PrepareVerify, images: ImageSource, img_ids: Sequence[str], store_bytes: int, sentences: int
) -> dict[str, Any]:
    """Memory of this machine's ranks and workers beside the model, and how many images it can load a second."""
    options = PretrainingOptions(image_size_min=config.image_size_min, image_size_max=config.image_size_max)
    workers = config.ranks * config.num_workers
    order_and_groups = sentences * (4 + 1)  # int32 order of the epoch, a byte for the aspect-ratio group
    problems = []
    try:
        check_shared_memory(options, config.batch_size, num_workers=config.num_workers, local_world_size=config.ranks)
    except UserError as error:
        problems.append(str(error))
    found: dict[str, Any] = {
        "annotations_mb_per_machine": round(store_bytes / 2**20, 1),
        "annotations_mb_per_rank": round(order_and_groups / 2**20, 1),
        "annotations_mb_in_all": round(
            (store_bytes + config.ranks * order_and_groups) / 2**20 + workers * WORKER_ANONYMOUS_MB, 1
        ),
        "shm_mb_for_batches": round(workers * shared_memory_per_worker(options, config.batch_size) / 2**20, 1),
        "problems": problems,
    }
    sample = random.Random(0).sample(list(img_ids), min(TIMED_IMAGES, len(img_ids)))
    seconds = []
    for img_id in sample:
        started = time.perf_counter()
        try:
            images.load(img_id)
        except UnreadableImage:
            continue
        seconds.append(time.perf_counter() - started)
    if seconds:
        per_core = 1 / float(np.median(seconds))
        found["images_per_second_per_worker"] = round(per_core, 1)
        found["images_per_second"] = round(per_core * min(workers, len(os.sched_getaffinity(0))), 1)
    return found
