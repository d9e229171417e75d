"""What keeps a training from running, all of it in one list.

Every start makes the quick checks. --dry_run adds those that read all annotations, look at images, and count memory.
One rank of each machine makes them; machines.py puts their lists together.
"""

import itertools
import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.pretrained import ModelFolder
from engine.checkpoint.formats.published import check_parts
from engine.checkpoint.manifest import complete_checkpoints
from engine.checkpoint.state import check_words, load_weights, open_checkpoint, read_words
from engine.commands import command
from engine.configuration.bert import unread_pieces
from engine.configuration.deepspeed import monitor_settings, settings_path
from engine.configuration.flags import AUTO, TrainingConfig, of_flags
from engine.configuration.monitors import check_packages, named_tools
from engine.data.annotations.formats.file import AnnotationFile
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.store import AnnotationStore
from engine.data.dataset import ExampleOptions, ImageTextDataset
from engine.data.images.decoding import UnreadableImage
from engine.data.images.folder import ImageSource
from engine.data.shared_memory import check_shared_memory
from engine.data.verification.annotations import question_problems, sentence_problems
from engine.distributed.meeting import no_port
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.printing import note, warn
from engine.provenance.known_draws import check_draws
from engine.provenance.tested import check_versions
from engine.tasks.task import Task
from engine.training.model import describe_model
from engine.training.preflight.deepspeed import configuration_problems
from engine.training.preflight.memory import check_micro_batch, largest_micro_batch, memory_of
from engine.training.preflight.plan import Plan, check_disk, files_of
from engine.training.run_folder import RunFolder

FIRST_SENTENCES = 64  # of each annotation file, whose fields and images a quick check looks at
TOLD_ODDITIES = 5
SAMPLED_IMAGES = 64  # of the training that --dry_run decodes


class Problems(list[str]):
    """One line each."""

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Take what a check raises."""
        try:
            yield
        except UserError as error:
            if str(error) not in self:
                self.append(str(error))


def find_problems(
    config: TrainingConfig,
    task_class: Callable[..., Task[Any]],
    ranks: Ranks,
    settings: dict[str, Any],
    device: torch.device,
    *,
    thorough: bool,
) -> Problems:
    """Those of this machine; nothing is written but the annotation store, if `thorough`."""
    problems, output = Problems(), Path(config.output)
    path = settings_path(config)
    problems += [f"{path} has {problem}" for problem in configuration_problems(settings)]
    with problems.noting():
        check_draws(device if config.sub_sampling else None)
    if ranks.rank == 0:
        warn(check_versions())
        with problems.noting():
            check_output(config, unused=thorough)
        with problems.noting():
            check_port(ranks)
        with problems.noting():
            check_packages(named_tools(config.monitor))
        with problems.noting():
            check_packages(monitor_settings(config).keys() - named_tools(config.monitor), str(path))
    with problems.noting():
        check_workers(config, ranks)
    alone = replace(ranks, local_rank=0, local_world_size=1)  # the other ranks don't take part
    bert = None
    with problems.noting():
        bert, tokenizer = read_words(config.bert, config.do_lower_case)
    if bert is not None and ranks.rank == 0:
        warn(unread_pieces(tokenizer))
    task = None
    with problems.noting():
        task = task_class(config, tokenizer if bert is not None else words_of_none(), alone)
    if task is None:
        return problems
    for split, names in config.splits.items():
        with problems.noting():
            source = task.source(names, split)
            images = task.images(source)
            for part in source.parts:
                for file in dict.fromkeys((part.files[0], part.files[-1])):  # of many shards, the first and the last
                    with problems.noting():
                        check_first_sentences(file, images, missing=config.allow_missing_images)
    description = None
    if bert is not None:
        with problems.noting():
            description = describe_model(config, bert, task)
    if description is not None:
        with problems.noting():
            check_weights(config, task, description, output)
    if thorough and description is not None:
        look_closely(problems, config, task, description, ranks, settings, device)
    return problems


def look_closely(
    problems: Problems,
    config: TrainingConfig,
    task: Task[Any],
    description: ModelDescription,
    ranks: Ranks,
    settings: dict[str, Any],
    device: torch.device,
) -> None:
    """All annotations, a sample of the images, and what is counted: memory and disk."""
    sizes: dict[str, int] = {}  # sentences of each split
    for split, names in config.splits.items():
        with problems.noting():
            source = task.source(names, split)
            store = source.open(task.cache, progress=ranks.rank == 0)
            sizes[split] = len(store)
            if ranks.rank == 0:
                tell_oddities(names, source, store)
    sentences, per_pass = sizes.get("train", 0), float(config.sentences_per_image)  # at most, unless it is read
    with problems.noting():
        task.read_training()
        sentences, per_pass = task.training.split.samples_per_epoch, task.training.sentences_per_pass()
        check_sampled_images(task.training, config.max_unreadable_images)
    with problems.noting():
        task.read_validation()
    if limit := memory_of(config, device):
        about = (config, description, settings, ranks.world_size, limit, per_pass)
        with problems.noting():
            if config.batch_size == AUTO:
                config = replace(config, batch_size=largest_micro_batch(*about))
                config.check(ranks.world_size)
            else:
                check_micro_batch(*about)
    if ranks.rank == 0 and sentences and config.batch_size != AUTO:
        with torch.device("meta"):
            model = description.build()
        model.bert.encoder.visual_model.requires_grad_(not config.freeze_clip)
        task.set_up(model)
        plan = Plan.of(config, task, sentences // config.batch_size // ranks.world_size)
        with problems.noting():
            if told := check_disk(config, Path(config.output), files_of(config, model), plan):
                problems.append(told)


def tell_oddities(names: str, source: AnnotationSource, store: AnnotationStore) -> None:
    """Print what is wrong with annotations and doesn't keep a training from running."""
    with_ids = source.has_question_ids
    odd = question_problems(names, store, source) if with_ids else sentence_problems(names, store, source)
    for oddity in odd[:TOLD_ODDITIES]:
        note(oddity)
    if len(odd) > TOLD_ODDITIES:
        note(f"and {len(odd) - TOLD_ODDITIES:,} more; `{command('prepare')} verify` tells all")


def words_of_none() -> Tokenizer:
    """In place of a vocabulary that can't be read, so that the rest can be looked at."""
    return Tokenizer(WordLevel({word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"))}))


def check_output(config: TrainingConfig, *, unused: bool) -> None:
    """Raises UserError if --output holds another run, or can't be written.

    Args:
        unused: whether a run that is still using it is a reason, too; a start waits for one to leave.
    """
    output = Path(config.output)
    folder = RunFolder(output)
    folder.check(resume=config.resume is not None)
    if unused:
        folder.check_unused()
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UserError(f"--output {output} can't be written: {there} allows no files in it; choose another folder")


def check_port(ranks: Ranks) -> None:
    """Raises UserError if the port where the ranks of one machine will meet is taken; those of several have met."""
    opened_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    if "MASTER_PORT" not in os.environ or opened_by_torchrun or ranks.world_size != ranks.local_world_size:
        return
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            free.bind(("", int(os.environ["MASTER_PORT"])))
        except OSError:
            raise no_port(os.environ["MASTER_PORT"]) from None


def check_workers(config: TrainingConfig, ranks: Ranks) -> None:
    """Raises UserError if the batches of loading workers don't fit into /dev/shm. More workers than cores are told."""
    cores = len(os.sched_getaffinity(0))
    if ranks.rank == 0 and config.num_workers > cores:
        print(
            f"note: each rank has {config.num_workers} loading workers (--num_workers), and this machine {cores} "
            f"cores; --num_workers {max(1, cores // ranks.local_world_size)} gives each worker one of its own",
            flush=True,
        )
    if config.batch_size != AUTO:
        check_shared_memory(
            of_flags(ExampleOptions, config),
            config.batch_size,
            num_workers=config.num_workers,
            local_world_size=ranks.local_world_size,
        )


def check_first_sentences(file: AnnotationFile, images: ImageSource, *, missing: bool) -> None:
    """Raises UserError if an annotation file doesn't begin as it should, or none of its first images is there.

    Args:
        missing: whether images may be.
    """
    img_ids = [texts.img_id for texts in itertools.islice(file.texts(), FIRST_SENTENCES)]
    if img_ids and not missing and len(images.missing(img_ids)) == len(img_ids):
        flag = "--data_root at the folder that holds mscoco/" if file.place is None else "--image_root at their folder"
        raise UserError(
            f"none of the first images of {file.path} is in {images}, the first is {img_ids[0]} "
            f"({images.sought(img_ids[0])}); add the images, or point {flag}"
        )


def check_weights(config: TrainingConfig, task: Task[Any], description: ModelDescription, output: Path) -> None:
    """Raises UserError if what the training starts from isn't there, or doesn't fit its model or its answers."""
    if config.resume is not None and complete_checkpoints(output):
        return  # the run's own, compared once it is opened
    given = open_checkpoint(config.load, optimizers=False, verified=False) if config.load is not None else None
    if (saved := given or task.pretrained(verified=False)) is None:
        if not config.from_scratch:
            check_parts(bert=config.bert, clip_weights=config.clip_weights, clip_model_name=config.clip_model_name)
        return
    check_words(saved, description)
    task.check_answers(saved)
    if isinstance(given, ModelFolder) and not (config.not_load_adam_optimizer and config.not_load_scheduler):
        raise UserError(
            f"--load {given.source} holds weights alone, no state of optimisers and schedules; add "
            "--not_load_adam_optimizer --not_load_scheduler, or name a checkpoint such as Epoch03"
        )
    description = replace(description, answers=task.answers or task.kept_answers(saved))
    with torch.device("meta"):
        model = description.build()
    load_weights(model, saved, description.answers, without=task.unused())


def check_sampled_images(dataset: ImageTextDataset, tolerated: int) -> None:
    """Raises UserError if so many of some images can't be decoded that all together will end the training."""
    images = sorted(set(dataset.sentences.images[:: max(1, len(dataset) // 4096)].tolist()))
    sample = random.Random(0).sample(images, min(SAMPLED_IMAGES, len(images)))
    broken = []
    for code in sample:
        try:
            dataset.images.load(dataset.sentences.image_ids[code])
        except UnreadableImage as error:
            broken.append(str(error))
    expected = len(broken) * len(dataset.sentences.image_ids) / max(1, len(sample))
    if expected > tolerated:
        raise UserError(
            f"{len(broken)} of {len(sample)} images that were tried can't be read, such as {broken[0]}; "
            f"`{command('prepare')} verify` finds all of them, and --max_unreadable_images {tolerated} are tolerated"
        )
