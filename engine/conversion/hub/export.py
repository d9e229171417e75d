"""`--to hub`: a folder that transformers loads where this engine isn't installed.

config.json                what kind of model it is, its sizes, and its answers
model.safetensors          fp32 weights and buffers under the engine's names; above --max_shard_size several files
modeling_clip_vil.py       the model in plain PyTorch
processing_clip_vil.py     images and texts to its inputs
preprocessor_config.json   what images are resized to
tokenizer.json, tokenizer_config.json
README.md                  a model card
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from huggingface_hub import save_torch_state_dict
from transformers import BertConfig, BertTokenizer

from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.pretrained import CARD, CONFIG, whole_folder
from engine.checkpoint.weights import State
from engine.configuration.bert import Splitting
from engine.conversion.hub import modeling_clip_vil as modeling
from engine.conversion.hub import processing_clip_vil as processing
from engine.conversion.hub.card import model_card
from engine.model.encoder import CLIP_MEAN, CLIP_STD

FILES = (modeling, processing)
PREPROCESSOR = "preprocessor_config.json"
# The model's class by its architecture here, and the Auto class that is meant for it beside AutoModel.
CLASSES: dict[str, tuple[Any, str]] = {
    "pretraining": (modeling.ClipVilForPretraining, "AutoModelForPreTraining"),
    "question_answering": (modeling.ClipVilForQuestionAnswering, "AutoModelForVisualQuestionAnswering"),
}
BERT = (
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings", "type_vocab_size"),
    *("layer_norm_eps", "initializer_range"),
)


def hub_config(description: ModelDescription) -> Any:
    """The ClipVilConfig of a model."""
    bert, visual = BertConfig.from_dict(description.bert), description.visual
    model, auto = CLASSES[description.architecture]
    answers = description.answers
    labels: dict[str, Any] = {}
    if answers is not None:
        labels = {"id2label": dict(enumerate(answers)), "label2id": {each: row for row, each in enumerate(answers)}}
    config = modeling.ClipVilConfig(
        **{name: getattr(bert, name) for name in BERT},
        backbone_layers=visual.backbone.layers,
        backbone_width=visual.backbone.width,
        sub_feat_num=visual.sub_feat_num,
        pos_num=visual.pos_num if visual.use_positional_embedding else None,
        has_answer_head=answers is not None,
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
        **labels,
        architectures=[model.__name__],
        dtype="float32",
    )
    name = _reference(model)
    config.auto_map = {"AutoConfig": _reference(modeling.ClipVilConfig), "AutoModel": name, auto: name}
    return config


def hub_model(description: ModelDescription, state: State) -> Any:
    """The model of the exported code, in evaluation mode. It shares the memory of `state`."""
    import torch

    with torch.device("meta"):
        model = CLASSES[description.architecture][0](hub_config(description))
    model.load_state_dict(state, assign=True)
    return model.eval()


def hub_tokenizer(description: ModelDescription) -> Any:
    """transformers' BertTokenizer that splits words as the description's does."""
    backend, longest = description.tokenizer(), description.preprocessing.max_seq_length
    return BertTokenizer(vocab=backend.get_vocab(), model_max_length=longest, **asdict(Splitting.of(backend)))


def save_hub(
    folder: Path,
    state: State,
    description: ModelDescription,
    sources: Sequence[tuple[str, str]],
    *,
    max_shard_size: str,
    license: str | None,
) -> None:
    """Write the folder, whole or not at all.

    Args:
        sources: kinds and paths, for the model card.
        license: the model's, as hubs abbreviate it; None leaves it to the reader of the card.

    Raises:
        UserError: if there is something already, or it can't be written.
    """
    reads = asdict(description.preprocessing)
    pixels = processing.ClipVilImageProcessor(
        **{name: reads[name] for name in ("image_size_min", "image_size_max", "orient_after_resize")},
        image_mean=CLIP_MEAN,
        image_std=CLIP_STD,
    ).to_dict()
    pixels["auto_map"] = {
        "AutoImageProcessor": _reference(processing.ClipVilImageProcessor),
        "AutoProcessor": _reference(processing.ClipVilProcessor),
    }
    with whole_folder(folder) as unfinished:
        hub_config(description).to_json_file(unfinished / CONFIG)
        (unfinished / PREPROCESSOR).write_text(json.dumps(pixels, indent=1) + "\n")
        (unfinished / CARD).write_text(model_card(folder.name, state, description, sources, license), encoding="utf-8")
        for module in FILES:
            shutil.copy(str(module.__file__), unfinished)
        hub_tokenizer(description).save_pretrained(unfinished)
        save_torch_state_dict(state, unfinished, max_shard_size=max_shard_size)


def _reference(member: Any) -> str:
    """A class as config.json names it: the file's name and its own."""
    return f"{member.__module__.rsplit('.', 1)[1]}.{member.__name__}"
