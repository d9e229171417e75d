"""What a training takes over from the checkpoint that it starts from: flags that shape its model or what that reads.

What was typed counts first, then the recipe, then the checkpoint. Words are the checkpoint's even where a recipe names
a --bert, since others would be refused.
"""

from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers import BertConfig

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.manifest import complete_checkpoints, has_checkpoints, none_whole
from engine.checkpoint.state import describe, describe_folder
from engine.configuration.flags import TrainingConfig
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES

NEEDS = {"sub_feat_num": "sub_sampling", "pos_num": "use_positional_embedding"}  # a flag that only counts with another


def inherit(
    config: TrainingConfig, typed: frozenset[str], in_recipe: frozenset[str], *, only_print: bool = False
) -> str | None:
    """Set the flags that nobody gave as the checkpoint's training had them.

    Args:
        config: not yet checked; changed.
        typed: names of the flags on the command line.
        in_recipe: and of those in the recipe.
        only_print: whether the configuration is only printed, so that the checkpoint needn't be there.

    Returns:
        What to tell, if a checkpoint was found that describes itself and the run doesn't merely go on.

    Raises:
        UserError: if --load, or any checkpoint of a run that is to go on, can't be read, and no --bert says what to
            look at the rest with.
    """
    given = typed | in_recipe
    found, resumes, output = None, False, Path(config.output)
    try:
        if config.resume is not None and has_checkpoints(output):
            found, resumes = _first_readable(output), True
        elif config.start is not None:
            found = describe(config.start)
    except UserError:  # which the checks before a run tell, with whatever else there is
        if not only_print and "bert" not in given:
            raise
    if found is None:
        return None
    source, description = found
    theirs = shaping_flags(description)
    taken = {name: value for name, value in theirs.items() if name not in given}
    for name, value in taken.items():
        setattr(config, name, value)
    if description.vocabulary is not None and "bert" not in (given if resumes else typed):
        config.bert = str(source)
    return None if resumes else told(source, description, config, taken)


def _first_readable(output: Path) -> tuple[Path, ModelDescription]:
    """All checkpoints of a run are of one model; the one to go on from is chosen later, once it is verified.

    Raises:
        UserError: if none can be read.
    """
    for folder in complete_checkpoints(output):
        with suppress(UserError):
            return folder, describe_folder(folder)
    raise none_whole(output)


def shaping_flags(description: ModelDescription) -> dict[str, Any]:
    """The flags that shape a model and what it reads, with the values that it was trained with."""
    visual, reads = description.visual, description.preprocessing
    values: dict[str, Any] = {
        "clip_model_name": next((name for name, shape in SHAPES.items() if shape == visual.backbone), None),
        "sub_sampling": visual.sub_feat_num is not None,
        "sub_feat_num": visual.sub_feat_num,
        "use_positional_embedding": visual.use_positional_embedding,
        "pos_num": visual.pos_num if visual.use_positional_embedding else None,
    }
    names = ("image_size_min", "image_size_max", "orient_after_resize", "max_seq_length")
    values |= {name: getattr(reads, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def told(source: Path, description: ModelDescription, config: TrainingConfig, taken: dict[str, Any]) -> str:
    """What a run has from its checkpoint, in a line, and what it has otherwise, in another."""
    parts = [f"--{name} {as_typed(value)}" for name, value in taken.items()]
    bert = BertConfig.from_dict(description.bert)
    if config.bert == str(source):
        layers, words = bert.num_hidden_layers, len(description.vocabulary or ())
        parts.append(
            f"BERT ({layers} layer{'s' * (layers > 1)} of {bert.hidden_size}, {words:,} word pieces, "
            f"dropout {bert.hidden_dropout_prob:g})"
        )
    lines = [f"from {source}: {', '.join(parts)}"] if parts else []
    if description.vocabulary is None:
        lines.append(f"note: {source} doesn't say what its words are; those of --bert {config.bert} are taken")
    differs = [
        f"--{name} {as_typed(getattr(config, name))} (it had {as_typed(value)})"
        for name, value in (shaping_flags(description) | {"dropout": bert.hidden_dropout_prob}).items()
        if getattr(config, name) not in (None, value) and (name not in NEEDS or getattr(config, NEEDS[name]))
    ]
    if differs:
        lines.append(f"note: this training differs from that of {source}: {', '.join(differs)}")
    return "\n".join(lines)


def as_typed(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
