"""What a training on a data set takes: memory beside the model, and how many images a machine can load."""

import os
import random
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.data.dataset import ExampleOptions
from engine.data.images.decoding import UnreadableImage
from engine.data.images.folder import ImageSource
from engine.data.shared_memory import check_shared_memory, shared_memory_per_worker
from engine.errors import UserError

TIMED_IMAGES = 64
# At most, memory of a loading process for the annotations beside the store; engine.benchmark.data measures it
WORKER_ANONYMOUS_MB = 2


def estimate(
    options: ExampleOptions,
    images: ImageSource,
    img_ids: Sequence[str],
    *,
    store_bytes: int,
    sentences: int,
    batch_size: int,
    num_workers: int,
    ranks: int,
) -> dict[str, Any]:
    """Memory of this machine's ranks and workers beside the model, and how many images it can load a second."""
    workers = ranks * num_workers
    order_and_groups = sentences * (4 + 1)  # int32 order of the epoch, a byte for the aspect-ratio group
    problems = []
    try:
        check_shared_memory(options, batch_size, num_workers=num_workers, local_world_size=ranks)
    except UserError as error:
        problems.append(str(error))
    found: dict[str, Any] = {
        "annotations_mb_per_machine": round(store_bytes / 2**20, 1),
        "annotations_mb_per_rank": round(order_and_groups / 2**20, 1),
        "annotations_mb_in_all": round(
            (store_bytes + ranks * order_and_groups) / 2**20 + workers * WORKER_ANONYMOUS_MB, 1
        ),
        "shm_mb_for_batches": round(workers * shared_memory_per_worker(options, batch_size) / 2**20, 1),
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
