"""One split: the sentences of some annotation files, with their images."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.annotations.columns import SharedColumns
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.store import AnnotationStore
from engine.data.images.decoding import Decoder, ImageShape
from engine.data.images.folder import SOUGHT, ImageFolder, ImageSource, not_found
from engine.data.images.lmdb_store import ImageStore
from engine.data.images.places import Place
from engine.data.sampler import Weights
from engine.data.sizes import SizeCache
from engine.errors import UserError
from engine.printing import counted


def open_images(
    data_root: Path,
    image_store: str | None,
    shape: ImageShape,
    decoder: Decoder,
    places: Mapping[str, Place] | None = None,
) -> ImageSource:
    """The images of the folders, or of an LMDB where one is named.

    Args:
        places: those of one's own images, by the name that their ids begin with.
    """
    if image_store is None:
        return ImageFolder(data_root, shape, decoder, places or {})
    return ImageStore(Path(image_store), data_root, shape, decoder)


@dataclass(frozen=True)
class Split:
    """Sentences and the sizes of their images, in memory that all processes of the machine share."""

    name: str
    sentences: AnnotationStore
    sizes: SharedColumns  # width and height in pixels, by image code
    summary: str  # one line on what was found
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of each file, by its name
    weights: Weights | None = None  # how often sentences come in an epoch; None where all come once

    @property
    def num_images(self) -> int:
        """Images that have a sentence."""
        return int(np.count_nonzero(np.bincount(self.sentences.images)))

    @property
    def samples_per_epoch(self) -> int:
        return len(self.sentences) if self.weights is None else self.weights.samples_per_epoch

    def describe(self) -> dict[str, Any]:
        """What tells these data from others: their files, what the store was made of, and how many there are."""
        return {
            "files": self.digests,
            "store": self.sentences.columns.header["key"],
            "sentences": len(self.sentences),
            "images": self.num_images,
        }


def read_split(
    source: AnnotationSource,
    images: ImageSource,
    cache: Path,
    *,
    allow_missing_images: bool | None = None,
    categories: Sequence[str] | None = None,
    most_images: int | None = None,
    answered_only: bool = False,
    answers_needed: bool = True,
    progress: bool = False,
) -> Split:
    """The sentences of a source, with the sizes of their images.

    Args:
        allow_missing_images: whether sentences whose image has no file are left out; None where no flag allows it.
        categories: those whose sentences count; None for all.
        most_images: sentences of the first images alone, in the order of the files; None for all.
        answered_only: whether questions without an answer in the answer table are left out.
        answers_needed: whether an answer table that knows none of the answers is an error.

    Raises:
        UserError: for missing or broken files, categories that there aren't, images without a file (unless allowed),
            labels that the answer table doesn't know at all.
    """
    name = source.name
    digests = source.digests()
    sentences = source.open(cache, digests=digests, progress=progress)
    if categories is not None:
        sentences = sentences.select(of_categories(sentences, categories, name))
    if answered_only:
        sentences = sentences.select(sentences.answered)
    if most_images is not None:
        sentences = sentences.select(of_first_images(sentences, most_images))
    names = sentences.image_ids
    used = np.zeros(len(names), dtype=bool)
    used[sentences.images] = True
    img_ids = [names[code] for code in np.flatnonzero(used).tolist()]
    missing = dict.fromkeys(images.missing(img_ids))
    if missing and not allow_missing_images:
        flag = "pass --allow_missing_images to leave them out"
        raise UserError(
            f"{len(missing):,} of {len(img_ids):,} images of {name} are not in {images}, the first is "
            f"{first_missing(images, list(missing))}; "
            f"add them, or {'remove their texts' if allow_missing_images is None else flag}"
        )
    count = sentences.label_count
    if answers_needed and count.unknown and not count.known and len(source.answers):
        raise UserError(
            f"none of the {count.unknown} answered questions of {name} has an answer in {source.answers.name} (the "
            f"first answer is {count.example!r}); the table belongs to other data"
        )
    present = used.copy()
    present[used] = [img_id not in missing for img_id in img_ids]
    sizes = np.ones((len(names), 2), np.int32)
    size_cache = SizeCache(cache, sentences.columns.header["key"], images, len(names))
    known = size_cache.read()
    there = [img_id for img_id in img_ids if img_id not in missing]
    sizes[present] = images.sizes(there, known=known[present], progress=progress)
    size_cache.keep(known, sizes)
    if missing:
        sentences = sentences.select(present[sentences.images])
    summary = f"{name}: {counted(len(sentences), 'sentence')}, {counted(len(there), 'image')}"
    summary += told_left_out(sentences, len(missing))
    if count.unknown and len(source.answers):
        summary += (
            f", {counted(count.unknown, 'question')} whose answers are not in the table (such as {count.example!r})"
        )
        summary += " left out" if answered_only else ""
    return Split(
        name,
        sentences,
        SharedColumns.of({"width": sizes[:, 0], "height": sizes[:, 1]}),
        summary,
        digests_by_name(source, digests),
        weights_of(source, sentences),
    )


def first_missing(images: ImageSource, missing: Sequence[str]) -> str:
    """Of images that aren't there, where the first few were looked for, and how many more there are."""
    told = ", then ".join(not_found(images, missing[:SOUGHT]))
    return told + (f", and {len(missing) - SOUGHT:,} more" if len(missing) > SOUGHT else "")


def told_left_out(sentences: AnnotationStore, missing: int) -> str:
    """What a split's summary says of rows, texts and images that no part of it is of; "" if there are none."""
    told = ""
    if sentences.dropped:
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in sentences.dropped.items())
        told = f"; rows or texts left out: {reasons}"
    return told + (f", {counted(missing, 'image')} without a file left out" if missing else "")


def digests_by_name(source: AnnotationSource, digests: Sequence[str]) -> dict[str, str]:
    """That of each file; one for all shards of a part."""
    found, left = {}, iter(digests)
    for part in source.parts:
        of_part = [next(left) for _ in part.files]
        name = part.files[0].path.name if len(of_part) == 1 else part.name
        found[name] = of_part[0] if len(of_part) == 1 else hashlib.sha256("".join(of_part).encode()).hexdigest()
    return found


def weights_of(source: AnnotationSource, sentences: AnnotationStore) -> Weights | None:
    """How often the sentences of each part come in an epoch; None where all come once."""
    if all(part.weight == 1 for part in source.parts):
        return None
    parts = np.searchsorted(source.part_ends(sentences), sentences.places, side="right").astype(np.uint16)
    return Weights(tuple(part.weight for part in source.parts), parts)


def of_categories(sentences: AnnotationStore, categories: Sequence[str], name: str) -> np.ndarray:
    """Which sentences belong to one of these categories, bool (len,).

    Raises:
        UserError: if none does, with the categories that there are.
    """
    known = sentences.categories
    chosen = np.isin(sentences.category_codes, [known.index(category) for category in categories if category in known])
    if not chosen.any():
        raise UserError(
            f"{name} has no sentences of --limit_source {','.join(categories)}; its categories are {', '.join(known)}"
        )
    return chosen


def of_first_images(sentences: AnnotationStore, most: int) -> np.ndarray:
    """Which sentences belong to the first images that occur, bool (len,)."""
    codes, firsts = np.unique(sentences.images, return_index=True)
    return np.isin(sentences.images, codes[np.argsort(firsts)[:most]])
