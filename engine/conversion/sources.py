"""What a conversion reads: one or more files of weights, and the model that they are of."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import BertConfig

from engine.checkpoint.description import ModelDescription, word_pieces
from engine.checkpoint.formats.original import SUFFIX, read_original
from engine.checkpoint.formats.pretrained import ModelFolder
from engine.checkpoint.formats.published import read_bert_weights, read_clip
from engine.checkpoint.manifest import verify
from engine.checkpoint.state import Checkpoint, SavedState
from engine.checkpoint.weights import BACKBONE, HEAD, UNUSED, WORDS, State
from engine.configuration.bert import Splitting, read_bert
from engine.conversion.flags import SOURCES, ConvertConfig
from engine.data.annotations.answers import AnswerTable
from engine.data.trained_on import TrainedOn
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES, ResNetShape
from engine.model.encoder import VisualShape


@dataclass
class Source:
    """What one source holds, by this model's names."""

    name: str
    weights: State
    unused: State = field(default_factory=dict)
    description: ModelDescription | None = None
    bert: BertConfig | None = None
    training: SavedState | None = None  # of optimisers and schedules
    unexpected: list[str] = field(default_factory=list)
    architecture: str = "pretraining"
    trained_on: TrainedOn | None = None


def read_source(kind: str, path: str) -> Source:
    """Read one `--from KIND PATH`.

    Raises:
        UserError: if the kind is unknown, or the file is missing or damaged.
    """
    name = f"{kind} {path}"
    if kind == "lxrt":
        original = read_original(Path(path if path.endswith(".pth") else path + SUFFIX))
        return Source(name, original.state, original.unused, training=original, architecture=original.architecture)
    if kind == "openai-clip":
        state = read_clip(Path(path))
        used = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
        return Source(name, used, {key: tensor for key, tensor in state.items() if key.startswith(UNUSED)})
    if kind == "bert":
        config, _ = read_bert(path)
        weights, unexpected = read_bert_weights(path)
        return Source(name, weights, bert=config, unexpected=unexpected)
    if kind == "deepspeed":
        folder = Path(path)
        verify(folder, progress=True)
        checkpoint = Checkpoint(folder)
        unused = checkpoint.content.get("unused", {})
        description, trained_on = checkpoint.description, checkpoint.trained_on
        return Source(name, checkpoint.weights(), unused, description, training=checkpoint, trained_on=trained_on)
    if kind == "safetensors":
        model = ModelFolder(Path(path))
        return Source(name, model.weights(), model.unused(), model.description, trained_on=model.trained_on)
    raise UserError(f"--from {kind}: one of {', '.join(SOURCES)} is needed")


def describe(sources: Sequence[Source], config: ConvertConfig) -> ModelDescription:
    """The model that the sources are of: what a source says, else what the shapes tell, else BERT base and RN50."""
    state = {key: tensor for source in reversed(sources) for key, tensor in source.weights.items()}
    found = next((source.description for source in sources if source.description is not None), None)
    if found is None:
        architecture = next((s.architecture for s in sources if s.architecture != "pretraining"), "pretraining")
        found = ModelDescription.of(_bert(sources, state, config), _visual(state, config), None, None, architecture)
    if config.bert is not None:
        tokenizer = read_bert(config.bert)[1]
        found = replace(found, vocabulary=word_pieces(tokenizer), splitting=Splitting.of(tokenizer))
    rows = state[f"{HEAD}logit_fc.3.bias"].shape[0] if f"{HEAD}logit_fc.3.bias" in state else None
    named = config.answers is not None or config.label_order is not None
    if rows is not None and (named or found.answers is None):
        found = replace(found, answers=_answers(config, rows))
    return found if rows is not None else replace(found, answers=None)


def _bert(sources: Sequence[Source], state: State, config: ConvertConfig) -> BertConfig:
    if config.bert is not None:
        return read_bert(config.bert)[0]
    if (bert := next((source.bert for source in sources if source.bert is not None), None)) is not None:
        return bert
    if WORDS not in state:
        return BertConfig()
    vocab_size, hidden_size = state[WORDS].shape
    layers = {int(found[1]) for key in state if (found := re.match(r"bert\.encoder\.layer\.(\d+)\.", key))}
    if hidden_size % 64:
        raise UserError(
            f"{hidden_size} channels don't tell the number of attention heads; name the model's BERT with --bert"
        )
    return BertConfig(
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=len(layers),
        num_attention_heads=hidden_size // 64,
        intermediate_size=state["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state["bert.embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=state["bert.embeddings.token_type_embeddings.weight"].shape[0],
    )


def _visual(state: State, config: ConvertConfig) -> VisualShape:
    shape = SHAPES["RN50"]
    first = f"{BACKBONE}visual.layer1.0.conv1.weight"
    if first in state:
        blocks = [
            {key.split(".")[5] for key in state if key.startswith(f"{BACKBONE}visual.layer{stage}.")}
            for stage in (1, 2, 3, 4)
        ]
        a, b, c, d = (max(1, len(found)) for found in blocks)
        shape = ResNetShape((a, b, c, d), state[first].shape[0])
    table = state.get("bert.encoder.visual_pos.x_position_embedding.weight")
    trunk = "bert.encoder.visn_fc.visn_fc.weight" in state
    return VisualShape(
        shape,
        sub_feat_num=config.sub_feat_num or None,
        use_positional_embedding=table is not None or not trunk,
        pos_num=table.shape[0] if table is not None else 25,
    )


def _answers(config: ConvertConfig, rows: int) -> list[str]:
    """The table of the source's head. Where nothing asks for it, its rows have no names."""
    if config.label_order is not None:
        given, answers = f"--label_order {config.label_order}", config.label_order.split(",")
    elif config.answers is not None:
        given, answers = f"--answers {config.answers}", AnswerTable.read(Path(config.answers)).answers
    elif config.new_answers is not None or config.to[0] != "lxrt":
        raise UserError(
            f"the answer head has {rows:,} rows and its file doesn't say for which answers; name their table with "
            "--answers data/lxmert/all_ans.json, or the labels of visual entailment with --label_order"
        )
    else:
        return [f"row {row}" for row in range(rows)]
    if len(answers) != rows:
        raise UserError(f"{given} has {len(answers):,} answers, the head has {rows:,} rows")
    return answers
