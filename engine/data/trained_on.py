"""What a model has seen in training, so that nobody takes a score on it for a score on something new."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.data.images.places import GQA
from engine.data.splits import Split
from engine.errors import UserError


@dataclass(frozen=True)
class TrainedOn:
    """Questions by id, images by 64 bits of a hash of theirs; both sorted int64."""

    question_ids: np.ndarray
    images: np.ndarray

    @classmethod
    def of(cls, split: Split) -> "TrainedOn":
        names, store = split.sentences.image_ids, split.sentences
        ids = store.question_ids if "question_ids" in store.columns else np.empty(0, np.int64)
        return cls(np.unique(ids), np.unique(_hashes(names[code] for code in np.unique(store.images).tolist())))

    def __or__(self, other: "TrainedOn | None") -> "TrainedOn":
        if other is None:
            return self
        return TrainedOn(np.union1d(self.question_ids, other.question_ids), np.union1d(self.images, other.images))

    def check_unseen(self, split: Split, *, images_too: bool = True) -> str:
        """What to say of images of a split that were trained on, where that is no error; "" if none was.

        Args:
            images_too: whether an image that was trained on with other texts is an error.

        Raises:
            UserError: if a question of the split was trained on, or an image.
        """
        other = TrainedOn.of(split)
        questions = int(np.isin(other.question_ids, self.question_ids, assume_unique=True).sum())
        images = int(np.isin(other.images, self.images, assume_unique=True).sum())
        if questions or (images and images_too):
            raise UserError(
                f"{questions:,} of {len(other.question_ids):,} questions and {images:,} of {len(other.images):,} "
                f"images of {split.name} were trained on, so a score on them says little; choose another split, or "
                "pass --allow_trained_on"
            )
        if not images:
            return ""
        return (
            f"{images:,} of {len(other.images):,} images of {split.name} were trained on, with other texts; a score on "
            "unseen images may be lower"
        )

    def to_tensors(self) -> dict[str, Tensor]:
        return {"question_ids": torch.from_numpy(self.question_ids), "images": torch.from_numpy(self.images)}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor] | None) -> "TrainedOn | None":
        """None where a checkpoint doesn't say."""
        return cls(tensors["question_ids"].numpy(), tensors["images"].numpy()) if tensors else None


def _hashes(names: Iterable[str]) -> np.ndarray:
    names = (name.removeprefix(f"{GQA}:") for name in names)  # its numbers are those of Visual Genome's images
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.int64)
