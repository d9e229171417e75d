"""Flags of the original's that are none here: always so, another program's, or not built. Each says what to use.

docs/from_the_original.md tells the same for a reader. A flag that a program takes itself isn't looked up here.
"""

import argparse
from collections.abc import Mapping
from typing import Any

from engine.commands import command
from engine.errors import UserError

FINE_TUNING = f"it is for fine-tuning on questions, which {command('finetune')} --task vqa and --task gqa do"
PRE_TRAINING = f"it is pre-training's, which {command('pretrain')} does; fine-tuning always answers questions"
PREDICT = f"{command('predict')} --task vqa"
WEIGHTS = "pre-training takes weights alone with --load {value} --not_load_scheduler --not_load_adam_optimizer"
PATCHES = "the backbone is a CLIP ResNet (--clip_model_name); a ViT, which reads patches, isn't built"

# Flag -> (accepted values, reason for refusing others, which may name its {value} and other flags' in braces).
# The first value is what holds without the flag. A flag without a value counts as "true".
ORIGINAL: dict[str, tuple[tuple[str, ...], str]] = {
    "use_clip": (("true",), "the backbone is always a CLIP ResNet"),
    "visualbert_style": (("true",), "one encoder always reads words and image together"),
    "input_raw_images": (("true",), "features are always computed from images"),
    "vqa_style_transform": (("true",), "images are always resized by their short side"),
    "add_zero_padding": (("true",), "images are always padded to one size"),
    "distributed": (("true",), "DeepSpeed always runs the ranks; start one with --num_gpus 1"),
    "multiGPU": (("true",), "DeepSpeed always runs the ranks"),
    "tqdm": (("true",), "progress is always shown"),
    "compress_data": (("true",), "annotations are always in the shared store"),
    "use_separate_optimizer_for_visual": (
        ("true",),
        "the backbone always has its own; --use_adam_for_visual makes that AdamW, too",
    ),
    "drop_boxes": (("true", "false"), "no boxes are read"),
    "reset_pos_embedding": (("true", "false"), "it resizes a table that only a ViT has"),
    "optim": (("bert",), "AdamW always trains the transformer"),
    "llayers": (("12",), "the number of layers is that of the --bert configuration"),
    "xlayers": (("0",), "there are no cross-modality layers"),
    "rlayers": (("0",), "there are no object-relationship layers"),
    "taskObjPredict": (("false",), "objects are not predicted; --taskMaskLM, --taskMatched and --taskQA are there"),
    "visualLosses": (
        ("obj,attr,feat", "obj,attr", "obj", "attr", "feat", ""),
        "objects are not predicted, so none is used",
    ),
    "objMaskRate": (("0.0", "0", "0."), "objects are not masked"),
    "fp16_opt_level": (("O1",), "fp16 always keeps fp32 masters and batch norm, as O1 did"),
    "vilt_style": (("false",), PATCHES),
    "use_vit": (("false",), PATCHES),
    "use_max_pooling": (("false",), "no recorded numbers tell how it is to be; --sub_sampling makes sequences shorter"),
    "dynamic_padding": (("false",), "images are always padded to one size, --image_size_min x --image_size_max"),
    "pad_square": (("false",), "give --image_size_min and --image_size_max the same value for a square canvas"),
    "separate_image": (("false",), "a batch always holds each sentence with its image"),
    "use_h5_file": (
        ("false",),
        f"features are computed from images; `{command('prepare')} images` puts these in one file, for --image_store",
    ),
    "use_lmdb": (
        ("false",),
        f"`{command('prepare')} images` writes an LMDB, and --image_store data/images.lmdb reads it",
    ),
    "start_epoch": (("0",), "--resume auto finds the epoch, and the place in it, by itself"),
    "skip_training": (
        ("false",),
        f"a fine-tuned model is scored by {PREDICT} --load {{load}} --test {{valid}}",
    ),
    "test": (
        ("",),
        f"answers and scores come from {PREDICT} --load {{load}} --test {{test}} --output {{output}}",
    ),
    "loadLXMERT": (("",), WEIGHTS),
    "loadLXMERTQA": (("",), WEIGHTS),
    "mceLoss": (("false",), FINE_TUNING),
    "loss_scale": (("1", "1.0"), FINE_TUNING),
    "taskMatched": (("false",), PRE_TRAINING),
    "taskMaskLM": (("false",), PRE_TRAINING),
    "taskQA": (("true",), PRE_TRAINING),
    "limit_source": (("",), PRE_TRAINING),
    "qaSets": (("",), PRE_TRAINING),
    "wordMaskRate": (("0.15",), PRE_TRAINING),
}
SNAKE_CASE = {
    "visualLosses": "visual_losses",
    "objMaskRate": "obj_mask_rate",
    "multiGPU": "multi_gpu",
    "taskObjPredict": "task_obj_predict",
}


def add_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Have a parser take what its program doesn't declare itself; the names of these flags."""
    names = [name for name in ORIGINAL if f"--{name}" not in parser._option_string_actions]
    for name in names:
        values, reason = ORIGINAL[name]
        aliases = [f"--{name}"] + ([f"--{SNAKE_CASE[name]}"] if name in SNAKE_CASE else [])
        told = f"accepted: {reason}" if values[0] == "true" else argparse.SUPPRESS
        parser.add_argument(*aliases, dest=name, nargs="?", const="true", default=values[0], help=told)
    return names


def check_flags(names: list[str], arguments: Mapping[str, Any]) -> None:
    """Raises UserError for the first flag whose value means something that isn't so here, with what to use."""
    for name in names:
        values, reason = ORIGINAL[name]
        value = str(arguments[name])
        if value.lower() not in {accepted.lower() for accepted in values}:
            given = {key: other for key, other in arguments.items() if other not in (None, "")}
            shown = "" if value == "true" else f" {value}"
            advice = reason.format_map({"load": "MODEL", "valid": "minival", **given, "value": value})
            raise UserError(f"--{name}{shown} is not supported: {advice}; leave the flag out")
