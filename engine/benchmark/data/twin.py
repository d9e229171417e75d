"""The original's scheme of sharing annotations, to measure the store against."""

import itertools
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.store import AnnotationStore, Sentence

STRINGS = ("sent", "img_id", "uid")
CHECKED = 5000  # items


class Item(NamedTuple):
    """What the original keeps of a sentence."""

    sent: str
    img_id: str
    uid: str
    label: dict[int, float] | None


class Twin:
    """The original's `--compress_data`: characters as int32 in mapped files, the rest in Python's lists.

    Its array package, sharearray, hands out np.memmap objects of files in /dev/shm; a file that was just written is
    in memory as well.
    """

    def __init__(self, items: Iterable[Item], folder: Path) -> None:
        self.labels: list[dict[int, float] | None] = []
        self.ends: dict[str, list[int]] = {name: [] for name in STRINGS}
        self.characters: dict[str, np.ndarray] = {}
        characters = {name: bytearray() for name in STRINGS}
        for item in items:
            self.labels.append(item.label)
            for name, string in zip(STRINGS, item[:3], strict=True):
                characters[name] += string.encode("utf-32-le")
                self.ends[name].append(len(characters[name]) // 4)
        for name, data in characters.items():
            path = folder / f"{name}.npy"
            np.save(path, np.frombuffer(data, np.int32))
            self.characters[name] = np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Any]:
        item: dict[str, Any] = {"label": self.labels[number]}
        for name in STRINGS:
            ends = self.ends[name]
            part = self.characters[name][ends[number - 1] if number else 0 : ends[number]]
            item[name] = "".join([chr(character) for character in part])
        return item


def read_items(source: AnnotationSource) -> Iterator[Item]:
    """Items as the original would read them."""
    for texts in source.files[0].texts():
        labels = texts.labels or itertools.repeat(None)
        for index, (text, scores) in enumerate(zip(texts.texts, labels, strict=False)):
            label = None if scores is None else source.answers.label(scores)
            yield Item(text, texts.img_id, f"{texts.img_id}_{texts.category}_{index:03d}", label)


def check_same(store: AnnotationStore, with_text: AnnotationStore, twin: Twin, source: AnnotationSource) -> None:
    """No speed claim on a red test: raises AssertionError unless all ways of access give what the twin gives."""
    numbers = random.Random(0).sample(range(len(twin)), min(len(twin), CHECKED))
    for number, img_id, token_ids, label in zip(numbers, *store.take(numbers), strict=True):
        item = Item(**twin[number])
        full = Sentence(item.uid, item.img_id, tuple(source.encoder(item.sent)), item.label, item.sent)
        same = with_text[number] == full and store[number] == full._replace(text=None)
        if not same or (img_id, token_ids, label) != (full.img_id, full.token_ids, full.label):
            raise AssertionError(f"item {number}: {full} was expected, the stores gave {store[number]}")
