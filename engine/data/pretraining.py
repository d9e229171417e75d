"""The pre-training data: sentences with images to batches.

annotation store -> PretrainingDataset[Sample] -> collate -> dict of tensors, images still uint8
"""

import atexit
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.data.annotation_source import AnnotationSource
from engine.data.annotation_store import AnnotationStore
from engine.data.answers import AnswerTable
from engine.data.columns import SharedColumns
from engine.data.image_store import ImageStore
from engine.data.images import Decoder, ImageFolder, ImageShape, ImageSource, UnreadableImage
from engine.data.masking import IGNORE, Generator, mask_tokens, sample_answer
from engine.data.sampler import DealtSampler, EvaluationSampler, Sample, TrainingSampler
from engine.data.text import TextEncoder, Vocabulary
from engine.data.transforms import MEAN_COLOR, aspect_ratio_bins, aspect_ratio_group, canvas_size, stack_images
from engine.errors import UserError
from engine.workers import end_workers, outlive_signals

PREFETCH_FACTOR = 2  # batches that a worker prepares ahead
SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True)
class PretrainingOptions:
    """How sentences become examples; the flags of the same names."""

    task_mask_lm: bool = True
    task_matched: bool = True
    word_mask_rate: float = 0.15
    max_seq_length: int = 20
    image_size_min: int = 384
    image_size_max: int = 640
    aspect_ratio_group_factor: int = 5
    seed: int = 9595


def open_images(data_root: Path, image_store: str | None, shape: ImageShape, decoder: Decoder) -> ImageSource:
    """The images of the folders, or of an LMDB where one is named."""
    if image_store is None:
        return ImageFolder(data_root, shape, decoder)
    return ImageStore(Path(image_store), data_root, shape, decoder)


@dataclass(frozen=True)
class Split:
    """Sentences and the sizes of their images, in memory that all processes of the machine share."""

    name: str
    sentences: AnnotationStore
    sizes: SharedColumns  # width and height in pixels, by image code
    summary: str  # one line on what was found


def read_split(
    names: str,
    data_root: Path,
    encoder: TextEncoder,
    answers: AnswerTable,
    images: ImageSource,
    cache: Path,
    *,
    allow_missing_images: bool = False,
    progress: bool = False,
) -> Split:
    """The sentences of a comma-separated list of annotation files.

    Raises:
        UserError: for missing or broken files, images without a file (unless allowed), labels that the answer
            table doesn't know at all.
    """
    files = tuple(data_root / "lxmert" / f"{name}.json" for name in names.split(",") if name)
    sentences = AnnotationSource(files, encoder, answers).open(cache, progress=progress)
    img_ids = sentences.image_ids
    missing = set(images.missing(img_ids))
    if missing and not allow_missing_images:
        first = next(img_id for img_id in img_ids if img_id in missing)
        raise UserError(
            f"{len(missing):,} of {len(img_ids):,} images of {names} are not in {images}, the first is {first}; "
            "add them, or pass --allow_missing_images to leave them out"
        )
    count = sentences.label_count
    if count.unknown and not count.known:
        raise UserError(
            f"none of the {count.unknown} answered questions of {names} has an answer in "
            f"{data_root}/lxmert/all_ans.json (the first answer is {count.example!r}); the table belongs to other data"
        )
    present = np.array([img_id not in missing for img_id in img_ids], dtype=bool)
    sizes = np.ones((len(img_ids), 2), np.int32)
    sizes[present] = images.sizes([img_id for img_id in img_ids if img_id not in missing], progress=progress)
    if missing:
        sentences = sentences.select(present[sentences.images])
    summary = f"{names}: {len(sentences):,} sentences, {len(img_ids) - len(missing):,} images"
    if missing:
        summary += f", {len(missing):,} images without a file left out"
    if count.unknown:
        summary += f", {count.unknown:,} questions whose answers are not in the table (such as {count.example!r})"
    return Split(names, sentences, SharedColumns.of({"width": sizes[:, 0], "height": sizes[:, 1]}), summary)


class Pair(NamedTuple):
    """A sentence's image and label beside its own text, or that of another sentence."""

    number: int  # of the sentence that gives the image and the label
    text_number: int

    @property
    def is_matched(self) -> bool:
        return self.number == self.text_number


class PretrainingDataset(Dataset[dict[str, Any]]):
    """Sentences of one split. Ask with a Sample: the same Sample gives the same example, in any worker on any rank."""

    def __init__(self, split: Split, images: ImageSource, vocabulary: Vocabulary, options: PretrainingOptions) -> None:
        self.split = split
        self.sentences = split.sentences
        self.images = images
        self.vocabulary = vocabulary
        self.options = options
        codes = self.sentences.images
        self.can_swap = bool(len(codes)) and bool((codes != codes[0]).any())

    def __len__(self) -> int:
        return len(self.sentences)

    def groups(self) -> np.ndarray:
        """Aspect-ratio group of each sentence's image, shape (len,)."""
        bins = aspect_ratio_bins(self.options.aspect_ratio_group_factor)
        by_image = aspect_ratio_group(self.split.sizes["height"] / self.split.sizes["width"], bins)
        return by_image.astype(np.min_scalar_type(len(bins)))[self.sentences.images]

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        return self.__getitems__([sample])[0]

    def __getitems__(self, samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Examples of a whole batch, as DataLoader asks for them."""
        options = self.options
        generators = [
            random.Random(f"{options.seed}/{self.split.name}/{sample.epoch}/{sample.position}") for sample in samples
        ]
        pairs = [self.pair(sample.index, generator) for sample, generator in zip(samples, generators, strict=True)]
        examples = self.features(pairs, generators)
        for example, sample in zip(examples, samples, strict=True):
            example.update(number=sample.index, epoch=sample.epoch, position=sample.position)
        return examples

    def pair(self, number: int, generator: Generator) -> Pair:
        """With probability 0.5 swap the text for a sentence of another image."""
        if not self.options.task_matched or generator.random() >= 0.5 or not self.can_swap:
            return Pair(number, number)
        image, other = self.sentences.image(number), number
        while self.sentences.image(other) == image:
            other = generator.randrange(len(self.sentences))
        return Pair(number, other)

    def features(self, pairs: Sequence[Pair], generators: Sequence[Generator]) -> list[dict[str, Any]]:
        """Token ids, labels and pixels of each pair, drawn with its generator.

        An unreadable image comes back black, with no label that counts.
        """
        examples = []
        for pair, generator, img_id, text, label in zip(
            pairs, generators, *self.sentences.take([pair.number for pair in pairs]), strict=True
        ):
            example = self._words(text if pair.is_matched else self.sentences.token_ids(pair.text_number), generator)
            example["matched_label"] = int(pair.is_matched) if self.options.task_matched else IGNORE
            example["ans"] = sample_answer(label, pair.is_matched, generator)
            example["unreadable"] = None
            try:
                example["image"] = self.images.load(img_id)
            except UnreadableImage as error:
                example.update(
                    image=self._black(pair.number),
                    masked_lm_labels=[IGNORE] * self.options.max_seq_length,
                    matched_label=IGNORE,
                    ans=IGNORE,
                    unreadable=str(error),
                )
            examples.append(example)
        return examples

    def _words(self, token_ids: Sequence[int], generator: Generator) -> dict[str, Any]:
        """The text's part of an example: masked, between [CLS] and [SEP], padded."""
        options, vocabulary = self.options, self.vocabulary
        tokens = token_ids[: options.max_seq_length - 2]
        masked, labels = list(tokens), [IGNORE] * len(tokens)
        if options.task_mask_lm:
            masked, labels = mask_tokens(
                tokens, generator, rate=options.word_mask_rate, mask_id=vocabulary.mask_id, vocab_size=vocabulary.size
            )
        padding = options.max_seq_length - 2 - len(tokens)
        return {
            "input_ids": [vocabulary.cls_id, *masked, vocabulary.sep_id] + [vocabulary.pad_id] * padding,
            "attention_mask": [1] * (len(tokens) + 2) + [0] * padding,
            "masked_lm_labels": [IGNORE, *labels, IGNORE] + [IGNORE] * padding,
        }

    def _black(self, number: int) -> np.ndarray:
        """An empty canvas of the size that the sentence's image would have."""
        image = self.sentences.image(number)
        landscape = bool(self.split.sizes["width"][image] > self.split.sizes["height"][image])
        width, height = canvas_size(landscape, self.options.image_size_min, self.options.image_size_max)
        return np.zeros((3, height, width), dtype=np.uint8)


@dataclass
class Batch:
    """One micro-batch of one rank.

    `inputs` are the model's keyword arguments: input_ids, token_type_ids, attention_mask, masked_lm_labels
    (int64, B x L), matched_label, ans (int64, B), images (uint8, B x 3 x H x W), sampling_state (int64: seed, epoch)
    and first_image (the batch's place in the epoch).
    """

    inputs: dict[str, Any]
    numbers: list[int]  # of the sentences, in their split
    unreadable: list[str]

    def __len__(self) -> int:
        return len(self.numbers)

    def pin_memory(self) -> "Batch":
        self.inputs = {k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in self.inputs.items()}
        return self

    def to(self, device: torch.device) -> "Batch":
        self.inputs = {
            k: v.to(device, non_blocking=True) if isinstance(v, Tensor) else v for k, v in self.inputs.items()
        }
        return self


@dataclass(frozen=True)
class Collator:
    """Examples to a Batch; `seed` is the one that the model's cell sampling draws from."""

    seed: int

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        names = ("input_ids", "attention_mask", "masked_lm_labels", "matched_label", "ans")
        inputs: dict[str, Any] = {name: torch.tensor([example[name] for example in examples]) for name in names}
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        inputs["images"] = torch.from_numpy(stack_images([example["image"] for example in examples], MEAN_COLOR))
        inputs["sampling_state"] = torch.tensor([self.seed, examples[0]["epoch"]])
        inputs["first_image"] = examples[0]["position"]
        numbers = [example["number"] for example in examples]
        return Batch(inputs, numbers, [example["unreadable"] for example in examples if example["unreadable"]])


def training_loader(
    dataset: PretrainingDataset,
    batch_size: int,
    *,
    accumulation: int,
    num_workers: int,
    rank: int,
    world_size: int,
    same_order: bool,
    start_method: str = "fork",
) -> DataLoader[Batch]:
    """This rank's share of the shuffled, grouped micro-batches; its batch_sampler takes `set_epoch`.

    Raises:
        UserError: if an epoch is too short for one optimiser step.
    """
    sampler = TrainingSampler(
        dataset.groups(),
        batch_size,
        seed=dataset.options.seed,
        rank=rank,
        world_size=world_size,
        same_order_each_epoch=same_order,
    )
    if len(sampler) < accumulation:
        needed = batch_size * world_size * accumulation
        raise UserError(
            f"{dataset.split.name} has {len(dataset)} sentences, but one optimiser step takes {needed} (batches of "
            f"{batch_size} x {world_size} ranks x accumulation {accumulation}); lower --batchSize or add data"
        )
    return _loader(dataset, sampler, num_workers, start_method)


def evaluation_loader(
    dataset: PretrainingDataset,
    batch_size: int,
    *,
    num_workers: int,
    rank: int,
    world_size: int,
    start_method: str = "fork",
) -> DataLoader[Batch]:
    """This rank's share of a split in which every sentence comes exactly once."""
    sampler = EvaluationSampler(dataset.groups(), batch_size, rank=rank, world_size=world_size)
    return _loader(dataset, sampler, num_workers, start_method)


def _loader(
    dataset: PretrainingDataset, sampler: DealtSampler, num_workers: int, start_method: str
) -> DataLoader[Batch]:
    """A loader whose workers run already, without work, and stay for all epochs.

    They are forked here, while the process is young: in a child that is forked while a thread of autograd enters or
    leaves Python, CPython can wait for ever for a lock that nobody holds any more.
    """
    loader: DataLoader[Batch] = DataLoader(
        dataset,  # type: ignore[arg-type]  # the collator makes Batches
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=Collator(dataset.options.seed),
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH_FACTOR if num_workers else None,
        multiprocessing_context=start_method if num_workers else None,
        worker_init_fn=outlive_signals,
        generator=torch.Generator(),  # else each epoch's start would take a number from the one that dropout draws from
    )
    if num_workers:
        atexit.register(end_workers)
        sampler.paused = True
        iter(loader)
        sampler.paused = False
    return loader


def shared_memory_per_worker(options: PretrainingOptions, batch_size: int) -> int:
    """Bytes of batches that one worker may have in /dev/shm: those it prepares ahead, and the one in use."""
    pixels = 3 * options.image_size_min * options.image_size_max
    words = 4 * 8 * options.max_seq_length  # four tensors of int64
    return (PREFETCH_FACTOR + 1) * batch_size * (pixels + words)


def check_shared_memory(
    options: PretrainingOptions,
    batch_size: int,
    *,
    num_workers: int,
    local_world_size: int,
    folder: Path | None = None,
) -> None:
    """Batches travel from workers through /dev/shm; where it is too small, a worker would die in the midst of training.

    Raises:
        UserError: with the number of workers that would fit.
    """
    folder = folder or SHARED_MEMORY
    per_worker = shared_memory_per_worker(options, batch_size)
    try:
        space = os.statvfs(folder)
    except OSError:
        return  # a machine that has no such folder shares memory in another way
    free = space.f_bavail * space.f_frsize
    needed = num_workers * local_world_size * per_worker
    if needed > free:
        fitting = free // (per_worker * local_world_size)
        raise UserError(
            f"{folder} has {free >> 20:,} MB free, but {num_workers} workers of {local_world_size} ranks may put "
            f"{(needed >> 20) + 1:,} MB of batches there; enlarge it (docker run --shm-size={(needed >> 30) + 1}g, or "
            f"mount -o remount,size=...) or lower --num_workers to {fitting}"
        )
