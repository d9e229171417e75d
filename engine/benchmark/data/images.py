"""Measurements of the ways from a JPEG file to a batch. `measure_images` runs in a process of its own."""

import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from engine.benchmark.data.measuring import Results, median_ratio, side_by_side
from engine.data.images.decoding import ImageShape
from engine.data.images.folder import ImageFolder, ImageSource
from engine.data.images.lmdb_store import ImageStore
from engine.data.images.places import image_path
from engine.data.images.transforms import resize_and_pad, stack_images
from engine.data.images.writer import write_image_store
from engine.progress import Bar
from engine.synthetic.lxmert import write_photos

BATCH, WORKER_BATCH = 32, 8
SHAPE = ImageShape(384, 640)
MEAN, STD = (  # CLIP's
    torch.tensor(values).reshape(3, 1, 1)
    for values in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)


@dataclass(frozen=True)
class Uint8Batches:
    """Batches as they travel to the device, which normalises them; also a data set of given ones."""

    source: ImageSource
    batches: Sequence[Sequence[str]] = ()

    def __call__(self, img_ids: Sequence[str]) -> Tensor:
        return torch.from_numpy(stack_images([self.source.load(img_id) for img_id in img_ids]))

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Tensor:
        return self(self.batches[number])


def float_batch(data_root: Path, img_ids: Sequence[str]) -> Tensor:
    """The original's way: each image to float32, normalised where it is loaded."""
    images = []
    for img_id in img_ids:
        with Image.open(data_root / image_path(img_id)) as image:
            pixels = torch.from_numpy(resize_and_pad(image, SHAPE.min_size, SHAPE.max_size))
        images.append(pixels.float().div_(255).sub_(MEAN).div_(STD))
    return torch.stack(images)


def measure_images(data_root: Path, count: int, seed: int, rounds: int) -> Results:
    """Images per second of one process with one thread, by path, and what a second worker and more add."""
    torch.set_num_threads(1)
    img_ids = write_photos(data_root, count, seed)
    raw, resized = data_root / "raw", data_root / "resized"
    options: dict[str, Any] = {"quality": 95, "workers": 0, "progress": False}
    write_image_store(raw, img_ids, data_root, resize=None, **options)
    write_image_store(resized, img_ids, data_root, resize=(SHAPE.min_size, SHAPE.max_size), **options)
    ways: dict[str, Callable[[Sequence[str]], Tensor]] = {
        "float": partial(float_batch, data_root),
        "folder": Uint8Batches(ImageFolder(data_root, SHAPE)),
        "lmdb_raw": Uint8Batches(ImageStore(raw, data_root, SHAPE)),
        "lmdb_resized": Uint8Batches(ImageStore(resized, data_root, SHAPE)),
    }
    if find_spec("simplejpeg"):
        ways["simplejpeg"] = Uint8Batches(ImageFolder(data_root, SHAPE, "simplejpeg"))

    batches = [img_ids[first : first + BATCH] for first in range(0, count, BATCH)]
    made = {name: way(batches[0]) for name, way in ways.items()}
    torch.testing.assert_close(made["folder"].float().div(255).sub(MEAN).div(STD), made["float"])
    if not torch.equal(made["folder"], made["lmdb_raw"]):
        raise AssertionError("the image store gives other pixels than the folder")

    all_batches = {name: partial(_each, way, batches) for name, way in ways.items()}
    seconds = side_by_side(all_batches, rounds, "images")
    workers = min(4, len(os.sched_getaffinity(0)))
    repeated = [img_ids[n % count :][:WORKER_BATCH] for n in range(0, max(64, 4 * count), WORKER_BATCH)]
    data_set = Uint8Batches(ImageFolder(data_root, SHAPE), repeated)
    rates: dict[int, list[float]] = {1: [], workers: []}
    for number in Bar([*rates] * rounds, desc="workers", leave=False):
        rates[number].append(worker_rate(data_set, number))
    return {
        **{f"images_per_second_{name}": count / statistics.median(times) for name, times in seconds.items()},
        "uint8_ratio": median_ratio(seconds["float"], seconds["folder"]),
        "bytes_per_image_float": made["float"].nbytes // len(batches[0]),
        "bytes_per_image_uint8": made["folder"].nbytes // len(batches[0]),
        "photo_kb": sum((data_root / image_path(img_id)).stat().st_size for img_id in img_ids) / count / 1e3,
        "workers": workers,
        "workers_ratio": median_ratio(rates[workers], rates[1]),
        "images_per_second_one_worker": statistics.median(rates[1]),
    }


def _each(way: Callable[[Sequence[str]], Tensor], batches: Sequence[Sequence[str]]) -> None:
    for batch in batches:
        way(batch)


def worker_rate(data_set: Any, workers: int) -> float:
    """Images per second from loading workers, since each of them has delivered once."""
    batches = iter(DataLoader(data_set, batch_size=None, num_workers=workers))
    for _ in range(workers):
        next(batches)
    start = time.perf_counter()
    count = sum(len(next(batches)) for _ in range(len(data_set) - workers))
    return count / (time.perf_counter() - start)
