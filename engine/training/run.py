"""A training from its flags, which program.py has checked, to its last checkpoint, whatever the task.

1. task             its data: annotations, answers, image sizes
2. start            --resume auto: the run's own newest checkpoint, else --load, else the task's choice, else
                    --fromScratch, else CLIP and BERT
3. model            built, then filled with these weights
4. engine           DeepSpeed ZeRO-2 around model, optimisers and schedules; a checkpoint may continue their state
5. training         epochs of micro-batches; a checkpoint and a validation after each
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from torch import nn
from transformers import BertConfig, set_seed

from engine.checkpoint.description import ModelDescription, Preprocessing
from engine.checkpoint.formats.published import pretrained_parts
from engine.checkpoint.restoring import restore_all, restore_parts
from engine.checkpoint.saving import Checkpoints
from engine.checkpoint.space import Files, check_space
from engine.checkpoint.state import SavedState, load_weights
from engine.configuration.bert import read_bert
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import AUTO, TrainingConfig, of_flags
from engine.data.loading import Batch, evaluation_loader, training_loader
from engine.data.shared_memory import check_shared_memory
from engine.data.trained_on import TrainedOn
from engine.data.waiting import StallWatch, TimedLoader
from engine.distributed.device import agree_on_threads, pick_device, pick_kernels
from engine.distributed.joining import join
from engine.distributed.launchers import end_with_launcher
from engine.distributed.meeting import Meeting
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES, STRIDE
from engine.model.compilation import compile_layers
from engine.model.encoder import VisualShape, check_grid
from engine.tasks.task import Judge, Task
from engine.training.engine import build_engine
from engine.training.loop import Observer, TrainState, train
from engine.training.metrics import Metrics
from engine.training.observers.conclusion import Conclusion
from engine.training.observers.console import say_first
from engine.training.observers.reporter import Reporter
from engine.training.observers.saver import Saver
from engine.training.observers.validator import ModelKeeper, Validator
from engine.training.preemption import Preemption
from engine.training.run_folder import RunFolder
from engine.training.start import check_agreement, find_start, settle_micro_batch


def make_loaders(
    config: TrainingConfig, task: Task[Any], ranks: Ranks
) -> tuple[TimedLoader[Batch], TimedLoader[Batch] | None]:
    """This rank's micro-batches; the workers of both loaders run from here on.

    The training's come last: on a GPU a thread pins their batches as soon as they run, and nobody may be forked then.
    """
    check_shared_memory(
        task.training.options,
        config.batch_size,
        num_workers=config.num_workers,
        local_world_size=ranks.local_world_size,
    )
    shares: dict[str, Any] = {
        "num_workers": config.num_workers,
        "start_method": config.worker_start_method,
        "rank": ranks.rank,
        "world_size": ranks.world_size,
    }
    validation = evaluation_loader(task.validation, config.batch_size, **shares) if task.validation else None
    batches = training_loader(
        task.training,
        config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        same_order=config.same_order_each_epoch,
        **shares,
    )
    return batches, validation


def describe_model(config: TrainingConfig, bert: BertConfig, task: Task[Any]) -> ModelDescription:
    """The model's shape.

    Raises:
        UserError: if the images' grid or the sentences don't fit it.
    """
    if config.dropout is not None:
        bert.hidden_dropout_prob = bert.attention_probs_dropout_prob = config.dropout
    visual = VisualShape(
        backbone=SHAPES[config.clip_model_name],
        sub_feat_num=config.sub_feat_num if config.sub_sampling else None,
        use_positional_embedding=config.use_positional_embedding,
        pos_num=config.pos_num,
        freeze_batch_norm=config.freeze_batch_norm,
    )
    for height, width in (
        (config.image_size_min, config.image_size_max),
        (config.image_size_max, config.image_size_min),
    ):
        check_grid(visual, height, width, STRIDE)
    if config.max_seq_length > bert.max_position_embeddings:
        raise UserError(
            f"--max_seq_length {config.max_seq_length} is more than the {bert.max_position_embeddings} positions of "
            f"{config.bert}; lower it"
        )
    tokenizer, preprocessing = task.encoder.tokenizer, of_flags(Preprocessing, config)
    return ModelDescription.of(bert, visual, task.answers, tokenizer, task.architecture, preprocessing)


def tokens_of(config: TrainingConfig) -> int:
    """Words and cells of a training's sequence."""
    cells = (config.image_size_min // STRIDE) * (config.image_size_max // STRIDE)
    return config.max_seq_length + (config.sub_feat_num if config.sub_sampling else cells)


def build_model(
    config: TrainingConfig, description: ModelDescription, saved: SavedState | None, task: Task[Any]
) -> Any:
    """The model with its starting weights, the same on every rank."""
    set_seed(config.seed)
    model = description.build()
    if saved is not None:
        reports = [load_weights(model, saved, description.answers, without=task.unused())]
    elif config.from_scratch:
        reports = []
    else:
        reports = pretrained_parts(
            model, bert=config.bert, clip_weights=config.clip_weights, clip_model_name=config.clip_model_name
        )
    if task.ranks.rank == 0:
        print("\n".join(str(report) for report in reports) or "random weights", flush=True)
    model.bert.encoder.visual_model.requires_grad_(not config.freeze_clip)
    model.bert.encoder.activation_checkpointing = config.activation_checkpointing
    model.bert.encoder.sub_sampling_in_evaluation = config.sub_sampling_in_evaluation
    task.set_up(model)
    return model


def check_disk(config: TrainingConfig, folder: Path, model: Any, task: Task[Any], batches_per_epoch: int) -> str:
    """What to say of a disk that is too small for all checkpoints, or ""; UserError if it is for those that stay."""
    itemsize = 4 if config.precision == "fp32" else 2
    backbone_moments = 2 if config.use_adam_for_visual else int(config.sgd_momentum > 0)
    files = Files.of(model, itemsize=itemsize, backbone_moments=backbone_moments)
    steps_per_epoch = max(1, batches_per_epoch // config.gradient_accumulation_steps)
    steps = min(config.max_steps or sys.maxsize, steps_per_epoch * config.last_epoch)
    epochs = -(-steps // steps_per_epoch)
    saves = epochs + (steps // config.save_step if config.save_step else 0)
    weights_files = epochs * task.epoch_weights + 3 * task.best_and_last  # BEST, LAST, and one that replaces it
    return check_space(folder, files, saves=saves, keep=config.keep, weights_files=weights_files)


def summary(
    config: TrainingConfig, bert: BertConfig, task: Task[Any], model: nn.Module, computed_on: str, kernels: str
) -> str:
    """One line: what is trained on which data, where it runs, how it computes, and what makes up a step."""
    dataset, count, layers = task.training, task.ranks.world_size, bert.num_hidden_layers
    trained, all_of_them = parameter_counts(model)
    line = f"{config.clip_model_name} and {layers} layer{'s' * (layers > 1)} of {bert.hidden_size}, "
    line += f"{trained / 1e6:.1f}M parameters trained"
    line += f" of {all_of_them / 1e6:.1f}M, " if trained < all_of_them else ", "
    line += f"{len(dataset):,} sentences of {np.count_nonzero(np.bincount(dataset.sentences.images)):,} images; "
    line += f"{count} rank{'s' * (count > 1)} on {computed_on}, {config.precision}, kernels of {kernels}, "
    line += f"{config.batch_size} x {config.gradient_accumulation_steps} x {count} samples per step"
    if config.sentences_per_image > 1:
        line += f", {dataset.sentences_per_pass():.1f} of them for each pass of an image"
    return line


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Values that are trained, and all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)


def run(config: TrainingConfig, task_class: Callable[..., Task[Any]], ranks: Ranks, settings: dict[str, Any]) -> None:
    """Train to the end.

    Args:
        config: checked.
        settings: DeepSpeed's, from engine.configuration.deepspeed.
    """
    end_with_launcher()
    device = pick_device(ranks, fp16=config.fp16, deterministic=config.deterministic)
    kernels = pick_kernels(device)
    meeting = Meeting(ranks, config.start_timeout)
    folder = RunFolder(Path(config.output))
    folder.check(resume=config.resume is not None)
    bert, tokenizer = read_bert(config.bert)
    task = task_class(config, tokenizer, ranks)
    description = describe_model(config, bert, task)
    if config.batch_size == AUTO:
        settle_micro_batch(config, description, settings, ranks, device, task.training.sentences_per_pass())
        settings = deepspeed_settings(config, ranks.world_size)
    batches, validation_batches = make_loaders(config, task, ranks)

    resumed, loaded = find_start(config, folder, ranks, len(task.training))
    start = loaded if loaded is not None else task.pretrained()
    trained_on = TrainedOn.of(task.training.split)
    if start is not None:
        trained_on |= start.trained_on
    task.check_start(start, trained_on)
    if ranks.rank == 0:
        folder.write_config(config)
    model = build_model(config, description, start, task)
    if ranks.rank == 0 and (told := check_disk(config, folder.path, model, task, len(batches))):
        print(f"warning: {told}", flush=True)

    join(meeting)
    check_agreement(resumed, config.batch_size, folder.path)
    computed_on = agree_on_threads(device)
    if ranks.rank == 0:
        say_first(summary(config, bert, task, model, computed_on, kernels))
    engine = build_engine(model, config, settings, len(batches))
    if config.compile:
        told = compile_layers(model.bert.encoder, config.batch_size, tokens_of(config))
        if ranks.rank == 0:
            print(told, flush=True)
    set_seed(config.seed + ranks.rank)  # dropout differs between ranks; weights are the same already
    metrics = Metrics(device)
    judge = task.judge() if validation_batches is not None else Judge()
    reporter = Reporter(engine, config, batches, metrics, chance=task.chance())
    checkpoints = Checkpoints(engine, folder.path, keep=config.keep)
    saver = Saver(
        *(engine, config, batches, description, reporter, checkpoints, Preemption(), trained_on),
        weights_files=task.epoch_weights,
    )
    conclusion = Conclusion(saver, task, folder.path, judge.metric)
    reporter.listeners.append(conclusion)
    keeper = ModelKeeper(saver, folder.path, description, trained_on) if task.best_and_last else None
    observers: list[Observer] = [reporter, saver]
    if validation_batches is not None:
        observers.append(Validator(reporter, saver, validation_batches, judge, keeper))
    if keeper is not None:
        observers.append(keeper)
    observers.append(conclusion)

    state = TrainState()
    if resumed is not None:
        restore_all(engine, resumed)
        state = saver.restore(resumed)
        reporter.say(f"going on from {resumed.folder}, after step {state.step}")
    elif loaded is not None:
        restore_parts(engine, loaded, adam=not config.not_load_adam_optimizer, schedule=not config.not_load_scheduler)
    del resumed, loaded, start  # else their files stay mapped, and those that --keep deletes on the disk
    loaders = [batches] if validation_batches is None else [batches, validation_batches]
    StallWatch(loaders, ranks.rank, lambda: state.step)
    train(engine, batches, state, config, metrics, observers)
    meeting.end()
    dist.destroy_process_group()
    folder.leave()
