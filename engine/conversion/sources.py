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
from engine.checkpoint.state import Checkpoint, SavedState, open_checkpoint
from engine.checkpoint.weights import BACKBONE, HEAD, UNUSED, WORDS, State
from engine.configuration.bert import Splitting, read_bert
from engine.conversion.flags import SOURCES, ConvertConfig
from engine.data.annotations.answers import AnswerTable
from engine.data.trained_on import TrainedOn
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES, ResNetShape
from engine.model.encoder import VisualShape

OURS: dict[str, type[Checkpoint | ModelFolder]] = {"deepspeed": Checkpoint, "safetensors": ModelFolder}
KINDS = {
    "deepspeed": "a training state, in DeepSpeed's shards",
    "safetensors": "a model to predict with, in safetensors",
    "lxrt": "a file of the original's form",
}


@dataclass
class Source:
    """What one source holds, by this model's names."""

    kind: str
    path: str  # of a run's folder, that of the checkpoint in it
    weights: State
    unused: State = field(default_factory=dict)
    description: ModelDescription | None = None
    bert: BertConfig | None = None
    training: SavedState | None = None  # of optimisers and schedules
    unexpected: list[str] = field(default_factory=list)
    architecture: str = "pretraining"
    trained_on: TrainedOn | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.path}"


def read_source(kind: str, path: str) -> Source:
    """Read one `--from KIND PATH`.

    Raises:
        UserError: if the kind is unknown, or the file is missing or damaged.
    """
    if kind == "lxrt":
        original = read_original(Path(path if path.endswith(".pth") else path + SUFFIX))
        return Source(
            kind, path, original.state, original.unused, training=original, architecture=original.architecture
        )
    if kind == "openai-clip":
        state = read_clip(Path(path))
        used = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
        return Source(kind, path, used, {key: tensor for key, tensor in state.items() if key.startswith(UNUSED)})
    if kind == "bert":
        config, _ = read_bert(path)
        weights, unexpected = read_bert_weights(path)
        return Source(kind, path, weights, bert=config, unexpected=unexpected)
    if kind in OURS:
        return read_ours(kind, path)
    raise UserError(f"--from {kind}: one of {', '.join(SOURCES)} is needed")


def read_ours(kind: str, path: str) -> Source:
    """Of a checkpoint of this engine, or of a run's folder.

    Raises:
        UserError: if it is missing, damaged, or of another kind.
    """
    saved = open_checkpoint(path, optimizers=False)
    if not isinstance(saved, OURS[kind]):
        theirs = next((name for name, form in OURS.items() if isinstance(saved, form)), "lxrt")
        raise UserError(
            f"{saved.source} is not of kind {kind}, but {KINDS[theirs]}; give --from {theirs} {saved.source}"
        )
    return Source(
        *(kind, saved.source, saved.weights(), saved.unused()),
        description=saved.description,
        training=saved if isinstance(saved, Checkpoint) else None,
        trained_on=saved.trained_on,
    )


def describe(sources: Sequence[Source], config: ConvertConfig) -> ModelDescription:
    """The model that the sources are of: what a source says, else what the shapes tell, else BERT base and RN50."""
    state = {key: tensor for source in reversed(sources) for key, tensor in source.weights.items()}
    found = next((source.description for source in sources if source.description is not None), None)
    if found is None:
        architecture = next((s.architecture for s in sources if s.architecture != "pretraining"), "pretraining")
        found = ModelDescription.of(_bert(sources, state, config), _visual(state, config), None, None, architecture)
    if config.bert is not None:
        tokenizer = read_bert(config.bert, config.do_lower_case)[1]
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
