"""Every image decoded once, and its size compared with the recorded one."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from engine.data.images.decoding import UnreadableImage
from engine.data.images.folder import ImageFolder, ImageSource
from engine.errors import UserError
from engine.progress import Bar


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
            size, recorded = images.measure(img_ids[number]), tuple(sizes[number].tolist())
            if size != recorded:
                found = "{} x {} pixels, recorded are {} x {}".format(*size, *recorded)
                return "", f"{images.where(img_ids[number])} has {found}"
        return "", ""

    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as file, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            found = Bar(pool.map(check, todo), desc="decoding", total=len(todo), unit="image")
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
