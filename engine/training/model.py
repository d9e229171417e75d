"""The model of a training: its shape from the flags and the task, and its starting weights."""

from typing import Any

from transformers import BertConfig, set_seed

from engine.checkpoint.description import ModelDescription, Preprocessing
from engine.checkpoint.formats.published import pretrained_parts
from engine.checkpoint.state import SavedState, load_weights
from engine.configuration.flags import TrainingConfig, of_flags
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES, grid_side
from engine.model.encoder import VisualShape, check_grid
from engine.tasks.task import Task


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
        check_grid(visual, height, width)
    if config.max_seq_length > bert.max_position_embeddings:
        raise UserError(
            f"--max_seq_length {config.max_seq_length} is more than the {bert.max_position_embeddings} positions of "
            f"{config.bert}; lower it"
        )
    tokenizer, reads = task.encoder.tokenizer, of_flags(Preprocessing, config)
    return ModelDescription.of(bert, visual, task.answers, tokenizer, task.architecture, reads, task.fine_tuned_on)


def tokens_of(config: TrainingConfig) -> int:
    """Words and cells of a training's sequence."""
    cells = grid_side(config.image_size_min) * grid_side(config.image_size_max)
    return config.max_seq_length + (config.sub_feat_num if config.sub_sampling else cells)


def build_model(
    config: TrainingConfig, description: ModelDescription, saved: SavedState | None, task: Task[Any]
) -> Any:
    """The model with its starting weights, the same on every rank."""
    set_seed(config.seed)
    model = description.build()
    if saved is not None:
        reports = [load_weights(model, saved, description.answers, without=task.unused())]
        if task.answers is None and description.answers is not None:
            reports[0].notes.append("the answer head stays as it is, as this training answers no questions")
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
