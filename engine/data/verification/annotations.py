"""What is in a split, and what occurs in it twice."""

from collections import Counter
from typing import Any

import numpy as np

from engine.data.annotations.store import AnnotationStore

CHUNK = 1 << 15  # sentences that are hashed at a time


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
