"""Sentences with images as examples; what each task makes of them stands in engine/tasks."""

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.data.annotations.store import AnnotationStore
from engine.data.annotations.text import Vocabulary
from engine.data.images.decoding import UnreadableImage
from engine.data.images.folder import ImageSource
from engine.data.images.transforms import aspect_ratio_bins, aspect_ratio_group, canvas_size
from engine.data.sampler import Sample, passes_per_image
from engine.data.splits import Split


@dataclass(frozen=True)
class ExampleOptions:
    """How sentences and images become examples; the flags of the same names."""

    max_seq_length: int = 20
    image_size_min: int = 384
    image_size_max: int = 640
    aspect_ratio_group_factor: int = 5
    sentences_per_image: int = 1
    seed: int = 9595

    def sample_bytes(self) -> int:
        """Of one example in a batch."""
        pixels = 3 * self.image_size_min * self.image_size_max
        return pixels // self.sentences_per_image + 4 * 8 * self.max_seq_length  # four tensors of int64


class ImageTextDataset:
    """Sentences of one split. Ask with a Sample: the same Sample gives the same example, in any worker on any rank."""

    cuts_texts = True  # those that are longer than max_seq_length, at the same place each time

    def __init__(self, split: Split, images: ImageSource, vocabulary: Vocabulary, options: ExampleOptions) -> None:
        self.split = split
        self.sentences = split.sentences
        self.images = images
        self.vocabulary = vocabulary
        self.options = options
        self._latest: tuple[str, dict[str, Any]] = ("", {})  # image that was loaded, and its pixels

    def lost_words(self) -> str:
        """What to say of words that the model doesn't get to see, or ""."""
        longest = self.options.max_seq_length if self.cuts_texts else None
        return lost_words(self.split.name, self.sentences, longest, self.vocabulary.unk_id)

    def __len__(self) -> int:
        return len(self.sentences)

    def groups(self) -> np.ndarray:
        """Aspect-ratio group of each sentence's image, shape (len,)."""
        bins = aspect_ratio_bins(self.options.aspect_ratio_group_factor)
        by_image = aspect_ratio_group(self.split.sizes["height"] / self.split.sizes["width"], bins)
        return by_image.astype(np.min_scalar_type(len(bins)))[self.sentences.images]

    def digests(self) -> dict[str, str]:
        """sha256 of what decides, beside flags, which sample comes when and what it is; pixels aren't among it."""
        found = {**self.sentences.digests(), "groups": hashlib.sha256(self.groups().data).hexdigest()}
        if self.split.weights is not None:
            found["parts"] = hashlib.sha256(self.split.weights.parts.data).hexdigest()
        return found

    def sentences_per_pass(self) -> float:
        """Mean number of sentences that share a pass of their image through the backbone."""
        if self.options.sentences_per_image == 1:
            return 1.0
        sentences, passes = passes_per_image(self.sentences.images, self.options.sentences_per_image)
        return float(sentences.sum() / passes.sum())

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Examples of a whole batch, as DataLoader asks for them."""
        examples = self.examples(samples)
        for example, sample in zip(examples, samples, strict=True):
            example.update(number=sample.index, epoch=sample.epoch, position=sample.position)
        return examples

    def examples(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """The task's part of examples: inputs and labels as numbers or arrays, `image`, and `unreadable`."""
        raise NotImplementedError

    def pack(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What becomes of a batch's inputs and labels, (B, ...) each, on the way to the model."""
        return inputs

    def words(self, token_ids: Sequence[int]) -> dict[str, Any]:
        """A text between [CLS] and [SEP], cut or padded to the length of all."""
        length, words = self.options.max_seq_length, self.vocabulary
        tokens = token_ids[: length - 2]
        padding = length - 2 - len(tokens)
        return {
            "input_ids": [words.cls_id, *tokens, words.sep_id] + [words.pad_id] * padding,
            "attention_mask": [1] * (len(tokens) + 2) + [0] * padding,
        }

    def pixels(self, number: int, img_id: str) -> dict[str, Any]:
        """A sentence's image; one that can't be read comes black, and `unreadable` says why.

        Sentences that share an image follow each other, so it is loaded once.
        """
        if img_id != self._latest[0]:
            self._latest = (img_id, self._load(number, img_id))
        return self._latest[1]

    def _load(self, number: int, img_id: str) -> dict[str, Any]:
        try:
            return {"image": self.images.load(img_id), "unreadable": None}
        except UnreadableImage as error:
            return {"image": self._black(number), "unreadable": str(error)}

    def is_landscape(self, number: int) -> bool:
        """Whether a sentence's image is broader than high."""
        image = self.sentences.image(number)
        return bool(self.split.sizes["width"][image] > self.split.sizes["height"][image])

    def _black(self, number: int) -> np.ndarray:
        """An empty canvas of the size that the sentence's image would have."""
        options = self.options
        width, height = canvas_size(self.is_landscape(number), options.image_size_min, options.image_size_max)
        return np.zeros((3, height, width), dtype=np.uint8)


def lost_words(name: str, sentences: AnnotationStore, max_seq_length: int | None, unk_id: int | None) -> str:
    """What share of a split's sentences is cut and of its word pieces is unknown, and what helps; "" if none is.

    Args:
        max_seq_length: [CLS] and [SEP] included; None where no sentence is cut.
        unk_id: of the vocabulary, if it has one.
    """
    longest = sys.maxsize if max_seq_length is None else max_seq_length - 2
    count = sentences.count_words(longest, unk_id)
    told = []
    if count.longer:
        told.append(
            f"{count.longer:,} of {count.sentences:,} sentences ({count.longer / count.sentences:.1%}) are cut at "
            f"--max_seq_length {max_seq_length}, which a training may raise"
        )
    if count.unknown:
        told.append(
            f"{count.unknown:,} of {count.pieces:,} word pieces ({count.unknown / count.pieces:.1%}) are unknown to "
            "the vocabulary ([UNK]), which comes from --bert of the training"
        )
    return f"{name}: {'; '.join(told)}" if told else ""
