"""Pre-train CLIP-ViL.

    deepspeed --num_gpus 8 launch/pretrain.py --recipe rn50_stage_one

1. configuration    flags over recipe over defaults, checked before anything is read
2. data             annotations, answer table, image sizes
3. start            --resume auto: the run's own newest checkpoint, else --load, else --fromScratch, else CLIP and BERT
4. model            built, then filled with these weights
5. engine           DeepSpeed ZeRO-2 around model, optimisers and schedules; a checkpoint may continue their state
6. training         epochs of micro-batches; a checkpoint and a validation after each
"""

import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from tokenizers import Tokenizer
from torch.utils.data import DataLoader
from transformers import BertConfig, set_seed

from engine.arguments import parse, to_yaml
from engine.checkpoint.description import ModelDescription
from engine.checkpoint.saving import Checkpoints
from engine.checkpoint.state import SavedState, load_weights, restore_all, restore_parts
from engine.checkpoint.weights import pretrained_parts, read_bert
from engine.config import PretrainConfig, deepspeed_settings
from engine.data.answers import AnswerTable
from engine.data.images import ImageShape
from engine.data.pretraining import (
    Batch,
    PretrainingDataset,
    PretrainingOptions,
    check_shared_memory,
    evaluation_loader,
    open_images,
    read_split,
    training_loader,
)
from engine.data.text import TextEncoder
from engine.distributed import (
    Ranks,
    end_with_launcher,
    exit_with,
    has_lost_a_rank,
    join,
    leave,
    pick_device,
    pick_kernels,
)
from engine.errors import UserError
from engine.metrics import Metrics
from engine.model.clip_resnet import SHAPES, STRIDE
from engine.model.encoder import VisualShape, check_grid
from engine.model.pretraining import ClipVilForPretraining
from engine.preemption import Preemption
from engine.reporter import Reporter
from engine.run_folder import RunFolder, check_agreement, find_start
from engine.saver import Saver
from engine.sharing import share_on_node
from engine.trainer import Observer, TrainState, build_engine, train
from engine.validator import Validator

RECIPES = Path(__file__).parent / "recipes"


def read_data(
    config: PretrainConfig, tokenizer: Tokenizer, ranks: Ranks
) -> tuple[PretrainingDataset, PretrainingDataset | None, AnswerTable]:
    """Training data, validation data where --valid names any, and the answers."""
    data_root = Path(config.data_root)
    answers = AnswerTable.read(
        data_root / "lxmert" / "all_ans.json", config.qa_sets.split(",") if config.qa_sets else None
    )
    options = PretrainingOptions(
        task_mask_lm=config.task_mask_lm,
        task_matched=config.task_matched,
        word_mask_rate=config.word_mask_rate,
        max_seq_length=config.max_seq_length,
        image_size_min=config.image_size_min,
        image_size_max=config.image_size_max,
        aspect_ratio_group_factor=config.aspect_ratio_group_factor,
        seed=config.seed,
    )
    shape = ImageShape(config.image_size_min, config.image_size_max, config.orient_after_resize)
    images = open_images(data_root, config.image_store, shape, config.image_decoder)
    encoder = TextEncoder(tokenizer)

    def split(names: str) -> PretrainingDataset:
        first = ranks.rank == 0
        found = share_on_node(
            ranks,
            names,
            lambda: read_split(
                names,
                data_root,
                encoder,
                answers,
                images,
                Path(config.cache_dir or data_root / "cache"),
                allow_missing_images=config.allow_missing_images,
                progress=first,
            ),
        )
        if first:
            print(found.summary, flush=True)
        return PretrainingDataset(found, images, encoder.vocabulary, options)

    return split(config.train), split(config.valid) if config.valid else None, answers


def make_loaders(
    config: PretrainConfig, training: PretrainingDataset, validation: PretrainingDataset | None, ranks: Ranks
) -> tuple[DataLoader[Batch], DataLoader[Batch] | None]:
    """This rank's micro-batches; the workers of both loaders run from here on."""
    check_shared_memory(
        training.options,
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
    batches = training_loader(
        training,
        config.batch_size,
        accumulation=config.gradient_accumulation_steps,
        same_order=config.same_order_each_epoch,
        **shares,
    )
    return batches, evaluation_loader(validation, config.batch_size, **shares) if validation else None


def describe_model(
    config: PretrainConfig, bert: BertConfig, tokenizer: Tokenizer, answers: AnswerTable
) -> ModelDescription:
    """The model's shape.

    Raises:
        UserError: if the images' grid or the sentences don't fit it.
    """
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
    return ModelDescription.of(bert, visual, answers.answers if config.task_qa else None, tokenizer)


def build_model(
    config: PretrainConfig, description: ModelDescription, saved: SavedState | None, ranks: Ranks
) -> ClipVilForPretraining:
    """The model with its starting weights, the same on every rank."""
    set_seed(config.seed)
    model = description.build()
    if saved is not None:
        reports = [load_weights(model, saved, description.answers)]
    elif config.from_scratch:
        reports = []
    else:
        reports = pretrained_parts(
            model, bert=config.bert, clip_weights=config.clip_weights, clip_model_name=config.clip_model_name
        )
    if ranks.rank == 0:
        print("\n".join(str(report) for report in reports) or "random weights", flush=True)
    return model


def run(config: PretrainConfig, ranks: Ranks) -> None:
    end_with_launcher()
    settings = deepspeed_settings(config, ranks.world_size)
    device = pick_device(ranks)
    kernels = pick_kernels(device)
    folder = RunFolder(Path(config.output))
    folder.check(resume=config.resume is not None)
    bert, tokenizer = read_bert(config.bert)
    training, validation, answers = read_data(config, tokenizer, ranks)
    batches, validation_batches = make_loaders(config, training, validation, ranks)
    description = describe_model(config, bert, tokenizer, answers)

    resumed, start = find_start(config, folder, ranks, len(training))
    if ranks.rank == 0:
        folder.write_config(config)
    model = build_model(config, description, start, ranks)

    join(ranks)
    check_agreement(resumed)
    if ranks.rank == 0:
        samples = f"{config.batch_size} x {config.gradient_accumulation_steps} x {ranks.world_size} samples per step"
        on = f"{ranks.world_size} ranks on {device.type}, {config.precision}, kernels of {kernels}"
        print(f"{on}, {samples}", flush=True)
    engine = build_engine(model, config, settings, len(batches))
    set_seed(config.seed + ranks.rank)  # dropout differs between ranks; weights are the same already
    metrics = Metrics(device)
    reporter = Reporter(engine, config, batches, metrics)
    checkpoints = Checkpoints(engine, folder.path, keep=config.keep)
    saver = Saver(engine, config, batches, description, reporter, checkpoints, Preemption())
    observers: list[Observer] = [reporter, saver]
    if validation_batches is not None:
        observers.append(Validator(reporter, saver, validation_batches))

    state = TrainState()
    if resumed is not None:
        restore_all(engine, resumed)
        state = saver.restore(resumed)
        reporter.say(f"going on from {resumed.folder}, after step {state.step}")
    elif start is not None:
        restore_parts(engine, start, adam=not config.not_load_adam_optimizer, schedule=not config.not_load_scheduler)
    del resumed, start  # else their files stay mapped, and those that --keep deletes on the disk
    train(engine, batches, state, config, metrics, observers)
    dist.destroy_process_group()


def main(argv: list[str] | None = None) -> None:
    ranks = Ranks.from_environment()
    try:
        config, arguments = parse(PretrainConfig, sys.argv[1:] if argv is None else argv, RECIPES)
        config.check(ranks.world_size)
        if not arguments.print_config:
            run(config, ranks)
        elif ranks.rank == 0:
            deepspeed_settings(config, ranks.world_size)
            print(to_yaml(config), end="")
    except UserError as error:
        exit_with(error)
    except RuntimeError as error:
        if not has_lost_a_rank(error):
            raise
        leave(f"rank {ranks.rank} ends, another one is gone", code=1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
