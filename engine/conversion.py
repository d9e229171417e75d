"""From one format of weights to another, with an account of every key.

A conversion reads one or more sources, the first that has a tensor gives it, holds the result against the model that it
describes, and writes one target.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from transformers import BertConfig, set_seed

from engine.checkpoint.answers import match_answers
from engine.checkpoint.description import ModelDescription, word_pieces
from engine.checkpoint.manifest import verify
from engine.checkpoint.original import SUFFIX, read_original, write_original
from engine.checkpoint.pretrained import ModelFolder, save_pretrained
from engine.checkpoint.saving import Checkpoints
from engine.checkpoint.state import (
    CONTENT,
    Checkpoint,
    SavedState,
    restore_optimizers,
    restore_schedule,
)
from engine.checkpoint.weights import (
    BACKBONE,
    HEAD,
    UNUSED,
    WORDS,
    LoadReport,
    State,
    compare,
    load_state,
    read_bert,
    read_bert_weights,
    read_clip,
)
from engine.config import ConvertConfig, OptimizationConfig, deepspeed_settings
from engine.data.answers import AnswerTable
from engine.data.trained_on import TrainedOn
from engine.distributed import Ranks, join, pick_device
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES, ResNetShape
from engine.model.encoder import VisualShape
from engine.trainer import build_engine

SOURCES = ("lxrt", "openai-clip", "bert", "deepspeed", "safetensors")
TARGETS = ("lxrt", "safetensors", "deepspeed")


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
        found = replace(found, vocabulary=word_pieces(read_bert(config.bert)[1]))
    rows = state[f"{HEAD}logit_fc.3.bias"].shape[0] if f"{HEAD}logit_fc.3.bias" in state else None
    if rows is not None and (config.answers is not None or found.answers is None):
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
    if config.answers is None:
        if config.new_answers is not None or config.to[0] != "lxrt":
            raise UserError(
                f"the answer head has {rows:,} rows and its file doesn't say for which answers; name their table with "
                "--answers data/lxmert/all_ans.json"
            )
        return [f"row {row}" for row in range(rows)]
    answers = AnswerTable.read(Path(config.answers)).answers
    if len(answers) != rows:
        raise UserError(f"--answers {config.answers} has {len(answers):,} answers, the head has {rows:,} rows")
    return answers


def merge(sources: Sequence[Source]) -> tuple[State, State, list[str]]:
    """Weights and unused parts, and a line for each source that says how much it gave."""
    weights: State = {}
    unused: State = {}
    lines = []
    for source in sources:
        new = [key for key in source.weights if key not in weights]
        new_unused = [key for key in source.unused if key not in unused]
        weights.update({key: source.weights[key] for key in new})
        unused.update({key: source.unused[key] for key in new_unused})
        lines.append(f"{source.name}: {len(new)} tensors, {len(new_unused)} that no model here uses")
    return weights, unused, lines


def table(report: LoadReport, unexpected: Sequence[str]) -> str:
    """What became of the keys, those first that need a look."""
    kinds = {
        "matched": report.matched,
        "missing": report.missing,
        "unexpected": [*report.unexpected, *unexpected],
        "mismatched": report.mismatched,
    }
    lines = [f"{name:<12}{len(keys):>7}" for name, keys in kinds.items()]
    lines += [f"{name}: {key}" for name, keys in kinds.items() if name != "matched" for key in keys]
    return "\n".join(lines)


def convert(config: ConvertConfig) -> None:
    """Read, compare, print, write.

    Raises:
        UserError: for keys that are missing, unexpected or of another shape and not allowed, and for what can't be read
            or written.
    """
    kind, path = config.to
    target = Path(f"{path}{SUFFIX}" if kind == "lxrt" and not path.endswith(".pth") else path)
    if kind not in TARGETS:
        raise UserError(f"--to {kind}: one of {', '.join(TARGETS)} is needed")
    if target.exists():
        raise UserError(f"--to {kind} {target} is there already; remove it or choose another place")
    sources = [read_source(*source) for source in config.sources]
    weights, unused, lines = merge(sources)
    description = describe(sources, config)
    if config.new_answers is not None and description.answers is not None:
        answers = AnswerTable.read(Path(config.new_answers)).answers
        weights = match_answers(weights, description.answers, answers)
        description = replace(description, answers=answers)
    set_seed(config.seed)
    model = description.build()
    report = compare(model, weights, "")
    unexpected = [key for source in sources for key in source.unexpected]
    print("\n".join([*lines, "", table(report, unexpected)]), flush=True)
    _check(report, unexpected, config)
    for key in (*report.unexpected, *(line.split(" ")[0] for line in report.mismatched)):
        del weights[key]
    load_state(model, weights, "the sources", may_miss=("",))
    state = {key: tensor for key, tensor in model.state_dict().items()}

    if kind == "lxrt":
        _write_lxrt(target, {**state, **unused}, config, description.architecture)
    elif kind == "safetensors":
        origins = ", ".join(f"{kind} {Path(path).name}" for kind, path in config.sources)  # no paths of this machine
        trained_on = next((source.trained_on for source in sources if source.trained_on is not None), None)
        save_pretrained(target, state, unused, description, origins, trained_on=trained_on)
    else:
        training = next((source.training for source in sources if source.training is not None), None)
        _write_deepspeed(target, model, unused, description, training)
    print(f"wrote {target}")


def _check(report: LoadReport, unexpected: Sequence[str], config: ConvertConfig) -> None:
    counts = {
        "missing": len(report.missing),
        "unexpected": len(report.unexpected) + len(unexpected),
        "mismatched": len(report.mismatched),
    }
    refused = [name for name, count in counts.items() if count and not getattr(config, f"allow_{name}")]
    if refused:
        found = ", ".join(f"{counts[name]} {name}" for name in refused)
        flags = " ".join(f"--allow_{name}" for name in refused)
        raise UserError(f"{found} keys, listed above; nothing was written. {flags} takes the rest all the same")


def _write_lxrt(target: Path, state: State, config: ConvertConfig, architecture: str) -> None:
    lacking = [part for part in UNUSED if not any(key.startswith(part) for key in state)]
    if lacking:
        print(
            f"without {', '.join(part.removeprefix(BACKBONE) for part in lacking)}: the original's pre-training loads "
            "this, its VQA fine-tuning asks for them as well; another --from lxrt FILE or openai-clip FILE adds them"
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_original(target, state, prefix=config.module_prefix, architecture=architecture)
    except (OSError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise UserError(f"{target} can't be written ({reason}); free space or choose another place") from None


def _write_deepspeed(
    target: Path,
    model: torch.nn.Module,
    unused: State,
    description: ModelDescription,
    training: SavedState | None,
) -> None:
    """A checkpoint as a run of one rank writes it, for --load."""
    ranks = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)
    pick_device(ranks)
    join(ranks)
    config = OptimizationConfig()
    engine = build_engine(model, config, deepspeed_settings(config, 1), batches_per_epoch=1)
    if training is not None:
        names = [name for name, _ in engine.module.named_parameters()]
        adamw = [name for name in names if not name.startswith(BACKBONE)]
        found = {
            "adamw": all(training.moment_keys(name) for name in adamw),
            "sgd": any(training.moment_keys(name) for name in names if name.startswith(BACKBONE)),
            "schedule": training.scheduler is not None,
        }
        restore_optimizers(engine, training, [name for name in ("adamw", "sgd") if found[name]])
        if found["schedule"]:
            restore_schedule(engine, training)
        print("state of " + (", ".join(name for name in found if found[name]) or "no optimiser"))
    target.parent.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(engine, target.parent)
    content = {"description": description.to_dict(), "unused": unused}
    checkpoints.save(target.name, 0, {CONTENT: content}, weights_file=False)
    checkpoints.finish()
    torch.distributed.destroy_process_group()
