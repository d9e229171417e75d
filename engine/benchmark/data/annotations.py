"""Measurements of the annotation store. Each function runs in a process of its own."""

import gc
import itertools
import os
import random
import shutil
import socket
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engine.benchmark.data.measuring import (
    MB,
    Results,
    in_process,
    median_ratio,
    own_memory,
    peak_memory,
    restart_peak,
    side_by_side,
)
from engine.benchmark.data.twin import Twin, check_same, read_items
from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.columns import SharedColumns
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.store import AnnotationStore
from engine.data.images.decoding import ImageShape
from engine.data.images.folder import ImageFolder, ImageSource
from engine.synthetic.lxmert import annotation_source

if TYPE_CHECKING:
    from engine.data.loading import Batch  # takes torch, which other measurements do without

BATCH = 32
SHAPE = ImageShape(384, 640)
TWIN_ITEMS = 500_000  # at most; each costs the same
ACCESSES = 20_000  # of each kind in a round
WORKER_ACCESSES = 50_000


def measure_build(data_root: Path, cache: Path, texts: list[str], rounds: int) -> Results:
    """From the JSON to an open store, with hashes, checksums and fsync; beside it the tokeniser's own batch call.

    The stores stay in `cache`: one without text, one with.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the builder has one core, so the tokeniser gets one
    source = annotation_source(data_root)
    items = 0
    growths: list[float] = []
    peaks: list[float] = []
    cpu: list[float] = []

    def build() -> None:
        nonlocal items
        gc.collect()
        shutil.rmtree(cache, ignore_errors=True)
        restart_peak()
        before, cpu_start = peak_memory(), time.process_time()
        items = len(source.open(cache, progress=not peaks))
        cpu.append(time.process_time() - cpu_start)
        peaks.append(peak_memory())
        growths.append(peaks[-1] - before)

    def tokenize() -> None:
        for first in range(0, len(texts), 1000):
            source.encoder.tokenizer.encode_batch(texts[first : first + 1000], add_special_tokens=False)

    seconds = side_by_side({"build": build, "tokenizer": tokenize}, rounds)
    build_each = [second / items for second in seconds["build"]]
    tokenizer_each = [second / len(texts) for second in seconds["tokenizer"]]
    tokenizer_rate = 1 / statistics.median(tokenizer_each)
    size = _size(cache)
    replace(source, with_text=True).open(cache, progress=True)
    return {
        "bytes_per_item_without_text": size / items,
        "bytes_per_item_with_text": (_size(cache) - size) / items,
        "store_mb": size / MB,
        "build_items_per_second": 1 / statistics.median(build_each),
        "build_items_per_second_wanted": min(40_000, 3 * tokenizer_rate),
        "build_items_per_cpu_second": items / statistics.median(cpu),
        "tokenizer_batch_items_per_second": tokenizer_rate,
        "build_ratio_to_tokenizer_batch": median_ratio(tokenizer_each, build_each),
        "build_peak_mb": size / MB + max(growths),
        "build_peak_mb_over_store": max(growths),
        "build_peak_mb_absolute": max(peaks),
    }


def _size(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.glob("*.store"))


def measure_access(
    store: AnnotationStore,
    with_text: AnnotationStore,
    tenth: AnnotationStore,
    data_root: Path,
    folder: Path,
    seed: int,
    rounds: int,
) -> Results:
    """The store beside the twin, which holds the same items, or the first TWIN_ITEMS of them."""
    source = annotation_source(data_root)
    gc.collect()
    before = own_memory()
    twin = Twin(itertools.islice(read_items(source), TWIN_ITEMS), folder)
    gc.collect()
    twin_private = own_memory() - before
    check_same(store, with_text, twin, source)

    numbers = random.Random(seed).choices(range(len(store)), k=min(ACCESSES, 2 * len(store)))
    twin_numbers = [number % len(twin) for number in numbers]  # the same where the twin holds all
    batches = _batches(numbers)

    def each(items: AnnotationStore | Twin, numbers: list[int]) -> None:
        for number in numbers:
            items[number]

    def take() -> None:
        for batch in batches:
            store.take(batch)

    ways = {"single": lambda: each(store, numbers), "batch": take, "twin": lambda: each(twin, twin_numbers)}
    seconds = side_by_side(ways, rounds, "access")
    microseconds = {way: 1e6 * statistics.median(times) / len(numbers) for way, times in seconds.items()}
    return {
        "access_us_single": microseconds["single"],
        "access_us_batch32": microseconds["batch"],
        "twin_access_us": microseconds["twin"],
        "access_ratio_single": median_ratio(seconds["twin"], seconds["single"]),
        "access_ratio_batch32": median_ratio(seconds["twin"], seconds["batch"]),
        "twin_items": len(twin),
        "twin_bytes_per_item_shared": sum(array.nbytes for array in twin.characters.values()) / len(twin),
        "twin_private_bytes_per_item": twin_private * MB / len(twin),
        "worker_anonymous_mb": in_process("fork", worker_growth, store, seed),
        "worker_anonymous_mb_spawn": in_process("spawn", worker_growth, store, seed),
        "worker_anonymous_mb_tenth": in_process("fork", worker_growth, tenth, seed),
        "twin_worker_anonymous_mb": in_process("fork", worker_growth, twin, seed),
        "attach_ms": 1e3 * statistics.median(attach(store) for _ in range(100)),
    }


def worker_growth(items: AnnotationStore | Twin, seed: int) -> float:
    """MB of memory of its own that a worker gets by random accesses, singly and, to a store, in batches too."""
    numbers = random.Random(seed).choices(range(len(items)), k=WORKER_ACCESSES)
    batches = _batches(numbers)
    for number in numbers[:100]:
        items[number]
    gc.collect()
    before = own_memory()
    for number in numbers:
        items[number]
    if isinstance(items, AnnotationStore):
        for batch in batches:
            items.take(batch)
    return own_memory() - before


def _batches(numbers: list[int]) -> list[list[int]]:
    return [numbers[first : first + BATCH] for first in range(0, len(numbers), BATCH)]


def attach(store: AnnotationStore) -> float:
    """Seconds from a descriptor that waits in a socket to the first item, as in all ranks but a machine's first."""
    sender, receiver = socket.socketpair()
    with sender, receiver:
        socket.send_fds(sender, [b"store"], [store.columns.descriptor])
        start = time.perf_counter()
        _, descriptors, *_ = socket.recv_fds(receiver, 5, 1)
        AnnotationStore(SharedColumns(descriptors[0]))[0]
        return time.perf_counter() - start


@dataclass(frozen=True)
class ListedImages(ImageFolder):
    """A folder of which only the list of names is there; the images are black."""

    listing: tuple[str, ...] = ()

    def missing(self, img_ids: Iterable[str]) -> list[str]:
        present = set(self.listing)
        return [img_id for img_id in img_ids if img_id not in present]

    def load(self, img_id: str) -> np.ndarray:
        return np.zeros((3, self.shape.min_size, self.shape.max_size), np.uint8)


def measure_warm_start(data_root: Path, cache: Path, listing: tuple[str, ...], rounds: int) -> Results:
    """What launch/pretrain.py does with the data when the store exists, up to the first batch; and digests of them."""
    source = annotation_source(data_root)
    store = source.open(cache)
    images = ListedImages(data_root, SHAPE, listing=listing)

    def start() -> None:
        answers = AnswerTable.read(data_root / "lxmert" / "all_ans.json")
        read_first_batch(replace(source, answers=answers), images, cache)

    timed = side_by_side({"start": start, "digests": store.digests}, rounds, "warm start")
    seconds, digests = (statistics.median(timed[name]) for name in ("start", "digests"))
    return {"warm_start_seconds": seconds, "digests_over_warm_start": digests / seconds}


def read_first_batch(source: AnnotationSource, images: ImageSource, cache: Path) -> "Batch":
    """As a training reads it, in the process itself."""
    from engine.data.loading import training_loader
    from engine.data.splits import read_split
    from engine.tasks.pretraining import PretrainingDataset, PretrainingOptions

    split = read_split(source, images, cache)
    dataset = PretrainingDataset(split, images, source.encoder.vocabulary, PretrainingOptions())
    loader = training_loader(dataset, BATCH, accumulation=1, num_workers=0, rank=0, world_size=1, same_order=False)
    return next(iter(loader))
