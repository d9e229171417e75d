"""The pre-training data: sentences with images to batches.

annotations -> PretrainingDataset[Sample] -> collate -> dict of tensors, images still uint8
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from engine.data.annotations import LabelCount, Sentence, read_all
from engine.data.answers import AnswerTable
from engine.data.images import UnreadableImage, image_path, image_sizes, load_image, missing_images
from engine.data.masking import IGNORE, Generator, mask_tokens, sample_answer
from engine.data.sampler import DealtSampler, EvaluationSampler, Sample, TrainingSampler
from engine.data.transforms import MEAN_COLOR, aspect_ratio_bins, aspect_ratio_group, canvas_size, stack_images
from engine.errors import UserError


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
    orient_after_resize: bool = False
    seed: int = 9595


@dataclass
class Pair:
    """A sentence set beside the image of another one, or of its own."""

    sentence: Sentence  # gives the image and the label
    text: str
    is_matched: bool


class TextEncoder:
    """Sentences to token ids; the special tokens are looked up by name, not by number."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.vocab_size: int = tokenizer.get_vocab_size()
        names = ("[PAD]", "[CLS]", "[SEP]", "[MASK]")
        ids = {name: number for name in names if (number := tokenizer.token_to_id(name)) is not None}
        lacking = [name for name in names if name not in ids]
        if lacking:
            raise UserError(f"the vocabulary lacks {lacking[0]}; give a BERT vocabulary with --bert")
        self.pad_id, self.cls_id, self.sep_id, self.mask_id = ids.values()

    def __call__(self, text: str) -> list[int]:
        """WordPiece ids without special tokens."""
        return self.tokenizer.encode(text.strip(), add_special_tokens=False).ids


class PretrainingDataset(Dataset[dict[str, Any]]):
    """Sentences of one split. Ask with a Sample: the same Sample gives the same example, in any worker on any rank."""

    def __init__(
        self,
        sentences: Sequence[Sentence],
        data_root: Path,
        text: TextEncoder,
        options: PretrainingOptions,
        split: str,
        *,
        progress: bool = False,
    ) -> None:
        self.sentences = sentences
        self.data_root = data_root
        self.text = text
        self.options = options
        self.split = split
        self.sizes = image_sizes(dict.fromkeys(s.img_id for s in sentences), data_root, progress=progress)
        self.can_swap = len(self.sizes) > 1

    def __len__(self) -> int:
        return len(self.sentences)

    def groups(self) -> list[int]:
        """Aspect-ratio group of each sentence's image."""
        bins = aspect_ratio_bins(self.options.aspect_ratio_group_factor)
        by_image = {img_id: aspect_ratio_group(height / width, bins) for img_id, (width, height) in self.sizes.items()}
        return [by_image[sentence.img_id] for sentence in self.sentences]

    def __getitem__(self, sample: Sample) -> dict[str, Any]:
        generator = random.Random(f"{self.options.seed}/{self.split}/{sample.epoch}/{sample.position}")
        features = self.features(self.pair(sample.index, generator), generator)
        return {**features, "epoch": sample.epoch, "position": sample.position}

    def pair(self, index: int, generator: Generator) -> Pair:
        """With probability 0.5 swap the text for a sentence of another image."""
        sentence = self.sentences[index]
        if not self.options.task_matched or generator.random() >= 0.5 or not self.can_swap:
            return Pair(sentence, sentence.text, is_matched=True)
        other = sentence
        while other.img_id == sentence.img_id:
            other = self.sentences[generator.randrange(len(self.sentences))]
        return Pair(sentence, other.text, is_matched=False)

    def features(self, pair: Pair, generator: Generator) -> dict[str, Any]:
        """Token ids, labels and pixels of one pair. An unreadable image comes back black, with no label that counts."""
        length = self.options.max_seq_length
        tokens = self.text(pair.text)[: length - 2]
        masked, labels = tokens, [IGNORE] * len(tokens)
        if self.options.task_mask_lm:
            masked, labels = mask_tokens(
                tokens,
                generator,
                rate=self.options.word_mask_rate,
                mask_id=self.text.mask_id,
                vocab_size=self.text.vocab_size,
            )
        padding = length - 2 - len(tokens)
        features = {
            "uid": pair.sentence.uid,
            "input_ids": [self.text.cls_id, *masked, self.text.sep_id] + [self.text.pad_id] * padding,
            "attention_mask": [1] * (len(tokens) + 2) + [0] * padding,
            "masked_lm_labels": [IGNORE, *labels, IGNORE] + [IGNORE] * padding,
            "matched_label": int(pair.is_matched) if self.options.task_matched else IGNORE,
            "ans": sample_answer(pair.sentence.label, pair.is_matched, generator),
            "unreadable": None,
        }
        try:
            features["image"] = self._pixels(pair.sentence.img_id)
        except UnreadableImage as error:
            width, height = self.sizes[pair.sentence.img_id]
            canvas = canvas_size(width > height, self.options.image_size_min, self.options.image_size_max)
            features.update(
                image=np.zeros((3, canvas[1], canvas[0]), dtype=np.uint8),
                masked_lm_labels=[IGNORE] * length,
                matched_label=IGNORE,
                ans=IGNORE,
                unreadable=str(error),
            )
        return features

    def _pixels(self, img_id: str) -> np.ndarray:
        options = self.options
        return load_image(
            self.data_root / image_path(img_id),
            options.image_size_min,
            options.image_size_max,
            orient_after_resize=options.orient_after_resize,
        )


@dataclass
class Batch:
    """One micro-batch of one rank.

    `inputs` are the model's keyword arguments: input_ids, token_type_ids, attention_mask, masked_lm_labels
    (int64, B x L), matched_label, ans (int64, B), images (uint8, B x 3 x H x W), sampling_state (int64: seed, epoch)
    and first_image (the batch's place in the epoch).
    """

    inputs: dict[str, Any]
    uids: list[str]
    unreadable: list[str]

    def __len__(self) -> int:
        return len(self.uids)

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
        uids = [example["uid"] for example in examples]
        return Batch(inputs, uids, [example["unreadable"] for example in examples if example["unreadable"]])


def read_split(
    names: str, data_root: Path, answers: AnswerTable, *, allow_missing_images: bool = False, progress: bool = False
) -> tuple[list[Sentence], str]:
    """The sentences of a comma-separated list of annotation files, and one line on what was found.

    Raises:
        UserError: for missing or broken files, images without a file (unless allowed), labels that the answer
            table doesn't know at all.
    """
    count = LabelCount()
    files = [name for name in names.split(",") if name]
    sentences = read_all(files, data_root / "lxmert", answers, count, progress=progress)
    img_ids = list(dict.fromkeys(sentence.img_id for sentence in sentences))
    missing = missing_images(img_ids, data_root)
    if missing and not allow_missing_images:
        raise UserError(
            f"{len(missing)} of {len(img_ids)} images of {names} have no file, the first is "
            f"{data_root / image_path(missing[0])}; put them there, or pass --allow_missing_images to leave them out"
        )
    if count.unknown and not count.known:
        raise UserError(
            f"none of the {count.unknown} answered questions of {names} has an answer in "
            f"{data_root}/lxmert/all_ans.json (the first answer is {count.example!r}); the table belongs to other data"
        )
    if missing:
        absent = set(missing)
        sentences = [sentence for sentence in sentences if sentence.img_id not in absent]
    summary = f"{names}: {len(sentences):,} sentences, {len(img_ids) - len(missing):,} images"
    if missing:
        summary += f", {len(missing):,} images without a file left out"
    if count.unknown:
        summary += f", {count.unknown:,} questions whose answers are not in the table (such as {count.example!r})"
    return sentences, summary


def training_loader(
    dataset: PretrainingDataset,
    batch_size: int,
    *,
    accumulation: int,
    num_workers: int,
    rank: int,
    world_size: int,
    same_order: bool,
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
            f"{dataset.split} has {len(dataset)} sentences, but one optimiser step takes {needed} (batches of "
            f"{batch_size} x {world_size} ranks x accumulation {accumulation}); lower --batchSize or add data"
        )
    return _loader(dataset, sampler, num_workers)


def evaluation_loader(
    dataset: PretrainingDataset, batch_size: int, *, num_workers: int, rank: int, world_size: int
) -> DataLoader[Batch]:
    """This rank's share of a split in which every sentence comes exactly once."""
    return _loader(
        dataset, EvaluationSampler(dataset.groups(), batch_size, rank=rank, world_size=world_size), num_workers
    )


def _loader(dataset: PretrainingDataset, sampler: DealtSampler, num_workers: int) -> DataLoader[Batch]:
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
        multiprocessing_context="fork" if num_workers else None,  # Python 3.14 would copy the data to each worker
    )
    if num_workers:
        sampler.paused = True
        iter(loader)
        sampler.paused = False
    return loader
