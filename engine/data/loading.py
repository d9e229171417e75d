"""From examples to batches: a loader for training and one for evaluation, whatever the task.

ImageTextDataset -> workers -> Collator -> Batch of tensors, images still uint8
"""

import atexit
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.data.dataset import ImageTextDataset
from engine.data.images.transforms import MEAN_COLOR, stack_images
from engine.data.sampler import DealtSampler, EvaluationSampler, TrainingSampler
from engine.data.shared_memory import PREFETCH_FACTOR
from engine.data.waiting import TimedLoader
from engine.distributed.workers import end_workers
from engine.errors import UserError

NO_INPUTS = ("image", "number", "epoch", "position", "unreadable")  # of an example; all else goes to the model


@dataclass
class Batch:
    """One micro-batch of one rank: B sentences of G images.

    `inputs` are the model's keyword arguments: input_ids, token_type_ids, attention_mask (int64, B x L), the task's
    labels, images (uint8, G x 3 x H x W), and sampling_state (int64: seed, epoch, the batch's place in the epoch).
    Where sentences share images, grid_of (int64, B) is the image of each; else G is B.
    """

    inputs: dict[str, Tensor]
    numbers: list[int]  # of the sentences, in their split
    unreadable: list[str]

    def __len__(self) -> int:
        return len(self.numbers)

    def pin_memory(self) -> "Batch":
        self.inputs = {name: tensor.pin_memory() for name, tensor in self.inputs.items()}
        return self

    def to(self, device: torch.device) -> "Batch":
        self.inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return self


class CopiedAhead:
    """A loader's batches on a device. A GPU gets each one on a stream of its own, while the one before it is computed.

    For that it reads one batch ahead, which a run that ends early leaves untrained. Elsewhere it reads none ahead.
    """

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[Batch]:
        if self.device.type != "cuda":
            yield from (batch.to(self.device) for batch in self.batches)
            return
        batches, stream = iter(self.batches), torch.cuda.Stream(self.device)
        following = self._copy(next(batches, None), stream)
        while following is not None:
            batch = following
            compute = torch.cuda.current_stream(self.device)
            compute.wait_stream(stream)  # here, where it has no copy but this batch's to wait for
            for tensor in batch.inputs.values():
                tensor.record_stream(compute)  # its memory isn't given to a later copy before it has been computed on
            following = self._copy(next(batches, None), stream)
            yield batch

    def _copy(self, batch: Batch | None, stream: torch.cuda.Stream) -> Batch | None:
        with torch.cuda.stream(stream):
            return None if batch is None else batch.to(self.device)


@dataclass(frozen=True)
class Collator:
    """Examples to a Batch; the model's cell sampling draws from the data set's seed."""

    dataset: ImageTextDataset

    def __call__(self, examples: list[dict[str, Any]]) -> Batch:
        names = [name for name in examples[0] if name not in NO_INPUTS]
        packed = self.dataset.pack({name: np.array([example[name] for example in examples]) for name in names})
        inputs = {name: torch.from_numpy(array) for name, array in packed.items()}
        inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        numbers = [example["number"] for example in examples]
        if self.dataset.options.sentences_per_image > 1:
            changes = np.diff(self.dataset.sentences.images[numbers], prepend=-1) != 0
            inputs["grid_of"] = torch.from_numpy(changes.cumsum() - 1)
            examples = [example for example, another_image in zip(examples, changes, strict=True) if another_image]
        inputs["images"] = torch.from_numpy(stack_images([example["image"] for example in examples], MEAN_COLOR))
        state = [self.dataset.options.seed, examples[0]["epoch"], examples[0]["position"]]
        inputs["sampling_state"] = torch.tensor(state)
        return Batch(inputs, numbers, [example["unreadable"] for example in examples if example["unreadable"]])


def training_loader(
    dataset: ImageTextDataset,
    batch_size: int,
    *,
    accumulation: int,
    num_workers: int,
    rank: int,
    world_size: int,
    same_order: bool,
    start_method: str = "fork",
) -> TimedLoader[Batch]:
    """This rank's share of the shuffled, grouped micro-batches; its batch_sampler takes `set_epoch`.

    Raises:
        UserError: if an epoch is too short for one optimiser step.
    """
    sampler = TrainingSampler(
        dataset.groups(),
        batch_size,
        seed=dataset.options.seed,
        images=dataset.sentences.images,
        sentences_per_image=dataset.options.sentences_per_image,
        weights=dataset.split.weights,
        rank=rank,
        world_size=world_size,
        same_order_each_epoch=same_order,
    )
    if len(sampler) < accumulation:
        needed = batch_size * world_size * accumulation
        raise UserError(
            f"{dataset.split.name} has {sampler.samples} sentences, but one optimiser step takes {needed} (batches of "
            f"{batch_size} x {world_size} ranks x accumulation {accumulation}); lower --batchSize or add data"
        )
    return _loader(dataset, sampler, num_workers, start_method, pin_memory=_has_gpu())


def evaluation_loader(
    dataset: ImageTextDataset,
    batch_size: int,
    *,
    num_workers: int,
    rank: int,
    world_size: int,
    start_method: str = "fork",
) -> TimedLoader[Batch]:
    """This rank's share of a split in which every sentence comes exactly once.

    Its batches aren't pinned: that takes a thread, and another loader's workers may still have to be forked.
    """
    sampler = EvaluationSampler(dataset.groups(), batch_size, rank=rank, world_size=world_size)
    return _loader(dataset, sampler, num_workers, start_method, pin_memory=False)


def _has_gpu() -> bool:
    """Whether batches go to a GPU; DS_ACCELERATOR may keep them from one that is there."""
    from deepspeed.accelerator import get_accelerator  # here, since preparing data needs no DeepSpeed

    return bool(get_accelerator().device_name() != "cpu")


def _loader(
    dataset: ImageTextDataset, sampler: DealtSampler, num_workers: int, start_method: str, *, pin_memory: bool
) -> TimedLoader[Batch]:
    """A loader whose workers run already, without work, and stay for all epochs.

    They are forked here, while the process is young: in a child that is forked while a thread of autograd enters or
    leaves Python, CPython can wait for ever for a lock that nobody holds any more.
    """
    # torch would say for each loader, twice, what the preflight checks say once (check_workers).
    warnings.filterwarnings("ignore", "This DataLoader will create", module=r"torch\.utils\.data")
    loader: TimedLoader[Batch] = TimedLoader(
        dataset,
        num_workers=num_workers,
        start_method=start_method,
        batch_sampler=sampler,
        collate_fn=Collator(dataset),
        pin_memory=pin_memory,
        persistent_workers=num_workers > 0,
        prefetch_factor=PREFETCH_FACTOR if num_workers else None,
        generator=torch.Generator(),  # else each epoch's start would take a number from the one that dropout draws from
    )
    if num_workers:
        sampler.paused = True
        try:
            iter(loader)
        finally:  # so that it runs before torch's own, which gives each worker in turn 5 s to end by itself
            atexit.register(end_workers)
        sampler.paused = False
    return loader
