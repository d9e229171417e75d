"""What a model has seen in training, so that nobody takes a score on it for a score on something new."""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from engine.data.annotations.store import AnnotationStore
from engine.data.images.places import GQA, without_suffix
from engine.data.splits import Split
from engine.errors import UserError

ID_FACTOR = np.uint64(0xD6E8FEB86659FD93)  # any odd number with its bits mixed


def _nothing() -> np.ndarray:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class TrainedOn:
    """Questions and images by 64 bits of a hash of theirs; all sorted int64.

    A question has two hashes, one of its id with its text and one of its id with its image, and is known by either:
    ids such as 1, 2, 3 occur in many files.
    """

    questions: np.ndarray
    images: np.ndarray
    question_ids: np.ndarray = field(default_factory=_nothing)  # from earlier versions, which kept nothing else

    @classmethod
    def of(cls, split: Split) -> "TrainedOn":
        questions, images, _ = _hashes(split.sentences)
        return cls(np.unique(questions), np.unique(images))

    def __or__(self, other: "TrainedOn | None") -> "TrainedOn":
        if other is None:
            return self
        names = ("questions", "images", "question_ids")
        return TrainedOn(**{name: np.union1d(getattr(self, name), getattr(other, name)) for name in names})

    def check_unseen(self, split: Split, *, images_too: bool = True, scored: bool = True) -> str:
        """What to say of a split that was trained on, where that is no error; "" if it wasn't.

        Args:
            images_too: whether an image that was trained on with other texts is an error.
            scored: whether answers are to be scored; where they aren't, nothing is an error.

        Raises:
            UserError: if a question of the split was trained on, or an image.
        """
        hashes, used, spelt = _hashes(split.sentences)
        seen = np.isin(hashes[:, 0], self.questions) | np.isin(hashes[:, 1], self.questions)
        if len(seen):
            seen |= np.isin(split.sentences.question_ids, self.question_ids)
        questions, seen_images = int(seen.sum()), np.isin(used, self.images) | np.isin(spelt, self.images)
        images = len(np.unique(used[seen_images]))
        of_images = f"{images:,} of {len(np.unique(used)):,} images of {split.name}"
        found = f"{questions:,} of {len(seen):,} questions and {of_images}"
        if scored and (questions or (images and images_too)):
            raise UserError(
                f"{found} were trained on, so a score on them says little; choose another split, or pass "
                "--allow_trained_on"
            )
        if questions:
            return f"{found} were trained on"
        if not images:
            return ""
        return f"{of_images} were trained on, with other texts" + "; a score on unseen images may be lower" * scored

    def to_tensors(self) -> dict[str, Tensor]:
        return {name: torch.from_numpy(values) for name, values in vars(self).items()}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor] | None) -> "TrainedOn | None":
        """None where a checkpoint doesn't say."""
        known = {name: values.numpy() for name, values in (tensors or {}).items()}
        return cls(**{"questions": _nothing(), **known}) if known else None


def _hashes(store: AnnotationStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each question, int64 (N, 2), where the store has questions' ids, else (0, 2); of each image, int64 (I,), with
    its name as IMG_1 or IMG_1.jpg may spell it, and as it stands, which earlier versions kept."""
    codes, places = np.unique(store.images, return_inverse=True)
    names = [store.image_ids[code] for code in codes.tolist()]
    images, spelt = _name_hashes(map(without_suffix, names)), _name_hashes(names)
    if "question_ids" not in store.columns:
        return _nothing().reshape(0, 2), images, spelt
    known_by = np.stack([store.text_hashes(), images.view(np.uint64)[places]], axis=1)
    ids = store.question_ids.astype(np.uint64)[:, None]
    return (known_by + ID_FACTOR * ids).view(np.int64), images, spelt


def _name_hashes(names: Iterable[str]) -> np.ndarray:
    names = (name.removeprefix(f"{GQA}:") for name in names)  # its numbers are those of Visual Genome's images
    digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), np.int64)
