"""Tensors from files into a model, and a report of every key that didn't match."""

import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertTokenizer
from transformers.utils import logging as transformers_logging

from engine.checkpoint.torchscript import is_torchscript, read_torchscript
from engine.errors import UserError

State = dict[str, Tensor]
BACKBONE = "bert.encoder.visual_model."
HEAD = "answer_head."
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
# Parts of the original and of CLIP that are never used and not built here.
UNUSED = (
    *(f"{BACKBONE}{name}" for name in ("visual.attnpool.", "transformer.", "token_embedding.", "ln_final.")),
    *(f"{BACKBONE}{name}" for name in ("positional_embedding", "text_projection", "logit_scale")),
    *("bert.encoder.visn_fc.box_fc.", "bert.encoder.visn_fc.box_layer_norm."),
)


@dataclass
class LoadReport:
    """What became of the keys of one file."""

    source: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)  # with both shapes

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.matched)} matched"]
        for name, keys in (("missing", self.missing), ("unexpected", self.unexpected)):
            lines.append(f"{len(keys)} {name}" + "".join(f"\n    {name}: {key}" for key in keys))
        return ", ".join(lines)


def compare(model: nn.Module, state: State, source: str, prefix: str = "") -> LoadReport:
    """Hold a state dict against the part of the model whose keys start with `prefix`; nothing is copied."""
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(prefix)}
    own = {key: tensor for key, tensor in own.items() if not key.endswith("num_batches_tracked") or key in state}
    report = LoadReport(source, missing=[key for key in own if key not in state])
    for key, tensor in state.items():
        if key not in own:
            report.unexpected.append(key)
        elif own[key].shape != tensor.shape:
            report.mismatched.append(f"{key} has shape {tuple(tensor.shape)}, the model's has {tuple(own[key].shape)}")
        else:
            report.matched.append(key)
    return report


def load_state(
    model: nn.Module, state: State, source: str, prefix: str = "", may_miss: tuple[str, ...] = ()
) -> LoadReport:
    """Copy a state dict into the part of the model whose keys start with `prefix`.

    Raises:
        UserError: for a tensor of another shape, or for a missing key outside `may_miss` (prefixes).
    """
    report = compare(model, state, source, prefix)
    if report.mismatched:
        raise UserError(
            f"{source}: {report.mismatched[0]}; the file is of a model of another size, check --clip_model_name, "
            "--bert, --pos_num and the answer table"
        )
    lost = [key for key in report.missing if not key.startswith(may_miss or ("\0",))]
    if lost:
        raise UserError(
            f"{source} lacks {len(lost)} of the {len(report.matched) + len(report.missing)} tensors that it should "
            f"hold, the first is {lost[0]}"
        )
    own = model.state_dict()
    for key in report.matched:
        own[key].copy_(state[key])
    return report


def unreadable(path: Path, error: Exception) -> UserError:
    """What to say of a file of tensors that can't be read."""
    if isinstance(error, FileNotFoundError):
        return UserError(f"{path} is missing; check the path")
    if isinstance(error, pickle.UnpicklingError):
        reason = "it holds something else than tensors, which is never run"
    else:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(f"{path} is no readable file of tensors ({reason}); copy or download it again")


def read_file(path: Path) -> Any:
    """What torch saved, nothing but tensors unpickled, and every checksum of a zip archive compared.

    Raises:
        UserError: if the file is missing, damaged, or holds anything else.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise zipfile.BadZipFile(f"its part {damaged} is damaged")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise unreadable(path, error) from None


def read_tensors(path: Path) -> State:
    """The state dict in a .pt or .pth file."""
    state = read_file(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} holds no state dict of tensors")
    return state


def read_clip(path: Path) -> State:
    """OpenAI's CLIP, a TorchScript archive or a state dict, in fp32 under the names that it has in this model.

    Raises:
        UserError: if the file is missing or damaged, or has no image tower.
    """
    if not path.exists():
        raise UserError(
            f"{path} is missing; download OpenAI's weights and name the file with --clip_weights, or use --fromScratch"
        )
    state = read_torchscript(path) if is_torchscript(path) else read_tensors(path)
    if not any(key.startswith("visual.") for key in state):
        raise UserError(f"{path} holds no key that starts with 'visual.'; a CLIP ResNet of OpenAI is needed")
    return {
        BACKBONE + key: tensor.float() if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
        if key not in ("input_resolution", "context_length", "vocab_size")
    }


def load_clip(model: nn.Module, path: Path) -> LoadReport:
    """Load the image tower of OpenAI's CLIP."""
    visual = {key: tensor for key, tensor in read_clip(path).items() if not key.startswith(UNUSED)}
    return load_state(model, visual, str(path), prefix=BACKBONE)


def read_bert(name: str) -> tuple[BertConfig, Tokenizer]:
    """Configuration and vocabulary from a folder or the hub."""
    try:
        if Path(name).is_dir():  # where transformers would silently take its defaults
            for file in ("config.json", "vocab.txt"):
                (Path(name) / file).open().close()
        config, tokenizer = BertConfig.from_pretrained(name), BertTokenizer.from_pretrained(name).backend_tokenizer
    except (OSError, ValueError) as error:
        raise UserError(_bert_problem(name, error)) from None
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{name}: the vocabulary has {tokenizer.get_vocab_size()} entries, config.json says {config.vocab_size}; "
            "the two files are not of one model"
        )
    return config, tokenizer


def read_bert_weights(name: str) -> tuple[State, list[str]]:
    """BERT's text half, and the heads where the file has them, under this model's names; keys that aren't BERT's."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        bert, info = BertForPreTraining.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(_bert_problem(name, error)) from None
    absent = {DECODER, "cls.predictions.decoder.bias", *info["missing_keys"]}
    state = {key: tensor for key, tensor in bert.state_dict().items() if key not in absent}
    return state, sorted(info["unexpected_keys"])


def load_bert(model: nn.Module, name: str) -> LoadReport:
    """Load BERT's text half: embeddings, layers, pooler, and the heads where the file has them."""
    state, unexpected = read_bert_weights(name)
    not_berts = (BACKBONE, "bert.encoder.visual_pos.", "bert.encoder.visn_fc.", HEAD, "cls.", "bert.pooler.")
    report = load_state(model, state, name, may_miss=not_berts)
    report.unexpected += unexpected
    return report


def _bert_problem(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"no BERT at {name!r} ({reason}); give --bert a folder with config.json, vocab.txt and model.safetensors, "
        "or a hub name on a machine that reaches the hub"
    )


def pretrained_parts(
    model: nn.Module, *, bert: str, clip_weights: str | None, clip_model_name: str
) -> list[LoadReport]:
    """Fill a freshly built model with CLIP and BERT."""
    clip_path = Path(clip_weights or f"~/.cache/clip/{clip_model_name}.pt").expanduser()
    return [load_clip(model, clip_path), load_bert(model, bert)]
