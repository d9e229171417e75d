"""One split: the sentences of some annotation files, with their images."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from engine.data.annotations.columns import SharedColumns
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.store import AnnotationStore
from engine.data.images.decoding import Decoder, ImageShape
from engine.data.images.folder import ImageFolder, ImageSource
from engine.data.images.lmdb_store import ImageStore
from engine.errors import UserError


def open_images(data_root: Path, image_store: str | None, shape: ImageShape, decoder: Decoder) -> ImageSource:
    """The images of the folders, or of an LMDB where one is named."""
    if image_store is None:
        return ImageFolder(data_root, shape, decoder)
    return ImageStore(Path(image_store), data_root, shape, decoder)


def annotation_files(folder: Path, names: str) -> tuple[Path, ...]:
    """The files of a comma-separated list of names.

    Raises:
        UserError: if one isn't there, with the names of those that are.
    """
    files = tuple(folder / f"{name}.json" for name in names.split(",") if name)
    if not files:
        raise UserError(f"{names!r} names no file in {folder}")
    for file in files:
        if not file.is_file():
            found = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "nothing"
            raise UserError(
                f"{file} is missing; {folder} holds {found}. See 'Real data' in README.md for where to get the files"
            )
    return files


@dataclass(frozen=True)
class Split:
    """Sentences and the sizes of their images, in memory that all processes of the machine share."""

    name: str
    sentences: AnnotationStore
    sizes: SharedColumns  # width and height in pixels, by image code
    summary: str  # one line on what was found
    digests: dict[str, str] = field(default_factory=dict)  # sha256 of each file, by its name

    @property
    def num_images(self) -> int:
        """Images that have a sentence."""
        return int(np.count_nonzero(np.bincount(self.sentences.images)))

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
    allow_missing_images: bool = False,
    categories: Sequence[str] | None = None,
    most_images: int | None = None,
    progress: bool = False,
) -> Split:
    """The sentences of a source, with the sizes of their images.

    Args:
        categories: those whose sentences count; None for all.
        most_images: sentences of the first images alone, in the order of the files; None for all.

    Raises:
        UserError: for missing or broken files, categories that there aren't, images without a file (unless allowed),
            labels that the answer table doesn't know at all.
    """
    name = source.name
    digests = source.digests()
    sentences = source.open(cache, digests=digests, progress=progress)
    if categories is not None:
        sentences = sentences.select(of_categories(sentences, categories, name))
    if most_images is not None:
        sentences = sentences.select(of_first_images(sentences, most_images))
    names = sentences.image_ids
    used = np.zeros(len(names), dtype=bool)
    used[sentences.images] = True
    img_ids = [names[code] for code in np.flatnonzero(used).tolist()]
    missing = set(images.missing(img_ids))
    if missing and not allow_missing_images:
        first = next(img_id for img_id in img_ids if img_id in missing)
        raise UserError(
            f"{len(missing):,} of {len(img_ids):,} images of {name} are not in {images}, the first is {first}; "
            "add them, or pass --allow_missing_images to leave them out"
        )
    count = sentences.label_count
    if count.unknown and not count.known:
        raise UserError(
            f"none of the {count.unknown} answered questions of {name} has an answer in {source.answers.name} (the "
            f"first answer is {count.example!r}); the table belongs to other data"
        )
    present = used.copy()
    present[used] = [img_id not in missing for img_id in img_ids]
    sizes = np.ones((len(names), 2), np.int32)
    sizes[present] = images.sizes([img_id for img_id in img_ids if img_id not in missing], progress=progress)
    if missing:
        sentences = sentences.select(present[sentences.images])
    summary = f"{name}: {len(sentences):,} sentences, {len(img_ids) - len(missing):,} images"
    if missing:
        summary += f", {len(missing):,} images without a file left out"
    if count.unknown:
        summary += f", {count.unknown:,} questions whose answers are not in the table (such as {count.example!r})"
    columns = SharedColumns.of({"width": sizes[:, 0], "height": sizes[:, 1]})
    hashes = {file.name: digest for file, digest in zip(source.files, digests, strict=True)}
    return Split(name, sentences, columns, summary, hashes)


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
