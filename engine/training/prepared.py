"""Everything that a training needs, made in its order. What is missing or wrong is told before work starts.

1. task             its data: annotations, answers, image sizes
2. start            --resume auto: the run's own newest checkpoint, else --load, else the task's choice, else
                    --fromScratch, else CLIP and BERT
3. model            built, then filled with these weights
4. engine           DeepSpeed ZeRO-2 around model, optimisers and schedules
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from deepspeed import DeepSpeedEngine
from torch import nn
from transformers import BertConfig, set_seed

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.restoring import restore_all, restore_parts
from engine.checkpoint.space import Files
from engine.checkpoint.state import Checkpoint, SavedState, check_words, read_words
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import AUTO, TrainingConfig
from engine.data.loading import Batch, evaluation_loader, training_loader
from engine.data.shared_memory import check_shared_memory
from engine.data.trained_on import TrainedOn
from engine.data.waiting import TimedLoader
from engine.distributed.device import agree_on_threads, pick_device, pick_kernels
from engine.distributed.joining import join
from engine.distributed.launchers import end_with_launcher
from engine.distributed.meeting import Meeting
from engine.distributed.ranks import Ranks
from engine.distributed.sharing import share_on_node
from engine.model.compilation import compile_layers
from engine.printing import warn
from engine.tasks.task import Task
from engine.training.engine import build_engine
from engine.training.loop import TrainState
from engine.training.model import build_model, describe_model, tokens_of
from engine.training.observers.saver import Saver
from engine.training.preflight.machines import check
from engine.training.preflight.plan import Plan, check_disk, files_of
from engine.training.reports.console import say_first
from engine.training.run_folder import RunFolder
from engine.training.start import check_agreement, check_same_data, find_start, settle_micro_batch


@dataclass
class Prepared:
    """A training that has joined the others and has taken no step."""

    config: TrainingConfig
    settings: dict[str, Any]  # DeepSpeed's
    device: torch.device
    meeting: Meeting
    folder: RunFolder
    task: Task[Any]
    description: ModelDescription
    trained_on: TrainedOn
    digests: dict[str, str]  # of the data to train on
    batches: TimedLoader[Batch]
    validation_batches: TimedLoader[Batch] | None
    plan: Plan
    files: Files
    engine: DeepSpeedEngine
    resumed: Checkpoint | None  # what the run goes on from
    loaded: SavedState | None  # that, or what --load names
    came_from: str | None  # whose weights it has

    def restore(self, saver: Saver) -> TrainState:
        """Give the optimisers what their checkpoint has of them, as far as the flags say, and the run its place.

        Its files are closed then; else those that --keep deletes would stay on the disk.
        """
        state, resumed, loaded = TrainState(), self.resumed, self.loaded
        self.resumed = self.loaded = None
        if resumed is not None:
            restore_all(self.engine, resumed)
            state = saver.restore(resumed)
            saver.reporter.say(f"going on from {resumed.folder}, after step {state.step}")
        elif loaded is not None:
            adam, schedule = not self.config.not_load_adam_optimizer, not self.config.not_load_scheduler
            restore_parts(self.engine, loaded, adam=adam, schedule=schedule)
            if schedule and self.engine.global_rank == 0:
                tell_rate(self.engine, loaded)
        return state

    def leave(self) -> None:
        """Once every rank has done its work."""
        self.meeting.end()
        dist.destroy_process_group()
        self.folder.leave()


def prepare(
    config: TrainingConfig,
    task_class: Callable[..., Task[Any]],
    ranks: Ranks,
    settings: dict[str, Any],
    *,
    dry_run: bool = False,
) -> Prepared:
    """Look for problems, read, build and join.

    Args:
        config: checked.
        settings: DeepSpeed's, from engine.configuration.deepspeed.
        dry_run: look closely, and leave --output as it is.

    Raises:
        UserError: with what is missing or wrong.
    """
    end_with_launcher()
    device = pick_device(ranks, fp16=config.fp16, deterministic=config.deterministic)
    kernels = pick_kernels(device)
    meeting = Meeting(ranks, config.start_timeout)
    check(config, task_class, ranks, settings, device, meeting, thorough=dry_run)
    folder = RunFolder(Path(config.output))
    bert, tokenizer = read_words(config.bert, config.do_lower_case)
    task = task_class(config, tokenizer, ranks)
    task.read()
    description = describe_model(config, bert, task)
    if config.batch_size == AUTO:
        settle_micro_batch(config, description, settings, ranks, device, task.training.sentences_per_pass())
        settings = deepspeed_settings(config, ranks.world_size)
    batches, validation_batches = make_loaders(config, task, ranks)
    digests = share_on_node(ranks, "digests", task.training.digests)

    resumed, loaded = find_start(config, folder, ranks, claim=not dry_run)
    start = loaded if loaded is not None else task.pretrained()
    trained_on = TrainedOn.of(task.training.split)
    if start is not None:
        trained_on |= start.trained_on
        check_words(start, description)
        task.check_answers(start)
        description = replace(description, answers=task.answers or task.kept_answers(start))
    if resumed is not None:
        check_same_data(resumed, len(task.training), task.answers, digests)
    task.check_start(trained_on)
    if ranks.rank == 0 and not dry_run:
        folder.write_config(config)
    model = build_model(config, description, start, task)
    plan, files = Plan.of(config, task, len(batches)), files_of(config, model)
    if ranks.rank == 0 and not dry_run:
        warn(check_disk(config, folder.path, files, plan))

    join(meeting)
    check_agreement(start, config.batch_size, digests)
    computed_on = agree_on_threads(device)
    if ranks.rank == 0:
        say_first(summary(config, bert, task, model, computed_on, kernels))
    engine = build_engine(model, config, settings, len(batches))
    if config.compile:
        told = compile_layers(model.bert.encoder, config.batch_size, tokens_of(config))
        if ranks.rank == 0:
            print(told, flush=True)
    set_seed(config.seed + ranks.rank)  # dropout differs between ranks; weights are the same already
    return Prepared(
        *(config, settings, device, meeting, folder, task, description, trained_on, digests, batches),
        *(validation_batches, plan, files, engine, resumed, loaded, start.source if start is not None else None),
    )


def tell_rate(engine: DeepSpeedEngine, loaded: SavedState) -> None:
    """Say where the schedules go on: at the end of those of --load, nothing is learnt any more."""
    rate = engine.lr_scheduler.get_last_lr()[0]
    print(f"the schedules go on from {loaded.source}; AdamW's rate is now {rate:.3g}", flush=True)
    if not rate:
        warn("at a rate of 0 the transformer learns nothing; add --not_load_scheduler to begin the schedules anew")


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


def summary(
    config: TrainingConfig, bert: BertConfig, task: Task[Any], model: nn.Module, computed_on: str, kernels: str
) -> str:
    """One line: what is trained on which data, where it runs, how it computes, and what makes up a step."""
    dataset, count = task.training, task.ranks.world_size
    trained, all_of_them = parameter_counts(model)
    layers = f"{bert.num_hidden_layers} layer{'s' * (bert.num_hidden_layers > 1)}"
    line = f"{config.clip_model_name} and {layers} of {bert.hidden_size}, "
    line += f"{trained / 1e6:.1f}M parameters trained"
    line += f" of {all_of_them / 1e6:.1f}M, " if trained < all_of_them else ", "
    line += f"{len(dataset):,} sentences of {dataset.split.num_images:,} images; "
    line += f"{count} rank{'s' * (count > 1)} on {computed_on}, {config.precision}, kernels of {kernels}, "
    line += f"{config.batch_size} x {config.gradient_accumulation_steps} x {count} samples per step"
    if config.sentences_per_image > 1:
        line += f", {dataset.sentences_per_pass():.1f} of them for each pass of an image"
    return line


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """Values that are trained, and all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return sum(size for size, is_trained in sizes if is_trained), sum(size for size, _ in sizes)
