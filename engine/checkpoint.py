"""Weights in and out: pre-trained parts, checkpoints, and a report of every key that didn't match.

A checkpoint `Epoch09` is two things: `Epoch09_LXRT.pth`, the fp32 weights under the original's names, which
`--load` reads, and the folder `Epoch09/`, DeepSpeed's shards of the optimiser and the schedule.
"""

import os
import pickle
import shutil
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from deepspeed import DeepSpeedEngine
from deepspeed.utils import safe_get_full_fp32_param
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertTokenizer
from transformers.utils import logging as transformers_logging

from engine.errors import UserError

State = dict[str, Tensor]
SUFFIX = "_LXRT.pth"
BACKBONE = "bert.encoder.visual_model."
WORDS, DECODER = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
# Parts of the original and of CLIP that are never used and not built here.
UNUSED = ("attnpool.", "transformer.", "token_embedding", "ln_final", "positional_embedding", "text_projection",
          "logit_scale", "box_fc.", "box_layer_norm.")  # fmt: skip


@dataclass
class LoadReport:
    """What became of the keys of one file."""

    source: str
    matched: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.matched)} matched"]
        for name in ("missing", "unexpected"):
            keys = getattr(self, name)
            lines.append(f"{len(keys)} {name}" + "".join(f"\n    {name}: {key}" for key in keys))
        return ", ".join(lines)


def load_state(
    model: nn.Module, state: State, source: str, prefix: str = "", may_miss: tuple[str, ...] = ()
) -> LoadReport:
    """Copy a state dict into the part of the model whose keys start with `prefix`.

    Raises:
        UserError: for a tensor of another shape, or for a missing key outside `may_miss` (prefixes).
    """
    own = {key: tensor for key, tensor in model.state_dict().items() if key.startswith(prefix)}
    own = {key: tensor for key, tensor in own.items() if not key.endswith("num_batches_tracked") or key in state}
    report = LoadReport(source, missing=[key for key in own if key not in state])
    for key, tensor in state.items():
        if key not in own:
            report.unexpected.append(key)
        elif own[key].shape != tensor.shape:
            raise UserError(
                f"{source}: {key} has shape {tuple(tensor.shape)}, the model's has {tuple(own[key].shape)}; the file "
                "is of a model of another size, check --clip_model_name, --bert, --pos_num and the answer table"
            )
        else:
            own[key].copy_(tensor)
            report.matched.append(key)
    lost = [key for key in report.missing if not key.startswith(may_miss or ("\0",))]
    if lost:
        raise UserError(
            f"{source} lacks {len(lost)} of the {len(own)} tensors that it should hold, the first is {lost[0]}"
        )
    return report


def read_tensors(path: Path) -> State:
    """The state dict in a .pt or .pth file, nothing but tensors unpickled."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path} is missing; check the path") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{path} is no readable file of tensors ({reason}); copy or download it again") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise UserError(f"{path} holds no state dict of tensors")
    return state


def load_original(model: nn.Module, state: State, source: str) -> LoadReport:
    """Load the content of an `X_LXRT.pth`, ours or the original's. The answer head may be new."""
    state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    decoder = state.pop(DECODER, None)
    if decoder is not None and WORDS in state and not torch.equal(decoder, state[WORDS]):
        raise UserError(f"{source}: {DECODER} differs from the word embeddings that it should be tied to")
    state = {
        key: tensor for key, tensor in state.items() if "visual_pos." in key or not any(part in key for part in UNUSED)
    }
    return load_state(model, state, source, may_miss=("answer_head.",))


def checkpoint_file(path: str) -> Path:
    """`snap/pretrain/NAME/Epoch09`, with or without `_LXRT.pth`."""
    return Path(path if path.endswith(SUFFIX) else path + SUFFIX)


def load_clip(model: nn.Module, path: Path) -> LoadReport:
    """Load the image tower of OpenAI's CLIP, a TorchScript archive or a state dict."""
    if not path.exists():
        raise UserError(
            f"{path} is missing; download OpenAI's weights and name the file with --clip_weights, or use --fromScratch"
        )
    if zipfile.is_zipfile(path) and any("/code/" in name for name in zipfile.ZipFile(path).namelist()):
        try:
            state = dict(torch.jit.load(str(path), map_location="cpu").state_dict())
        except RuntimeError as error:
            raise UserError(f"{path} is a damaged TorchScript archive ({str(error).splitlines()[0]})") from None
    else:
        state = read_tensors(path)
    visual = {key: tensor.float() if tensor.is_floating_point() else tensor for key, tensor in state.items()
              if key.startswith("visual.") and "attnpool." not in key}  # fmt: skip
    if not visual:
        raise UserError(f"{path} holds no key that starts with 'visual.'; a CLIP ResNet of OpenAI is needed")
    return load_state(model, {BACKBONE + key: tensor for key, tensor in visual.items()}, str(path), prefix=BACKBONE)


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


def load_bert(model: nn.Module, name: str) -> LoadReport:
    """Load BERT's text half: embeddings, layers, pooler, and the heads where the file has them."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        bert, info = BertForPreTraining.from_pretrained(name, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise UserError(_bert_problem(name, error)) from None
    absent = {DECODER, "cls.predictions.decoder.bias", *info["missing_keys"]}
    state = {key: tensor for key, tensor in bert.state_dict().items() if key not in absent}
    not_berts = (BACKBONE, "bert.encoder.visual_pos.", "bert.encoder.visn_fc.", "answer_head.", "cls.", "bert.pooler.")
    report = load_state(model, state, name, may_miss=not_berts)
    report.unexpected += sorted(info["unexpected_keys"])
    return report


def _bert_problem(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"no BERT at {name!r} ({reason}); give --bert a folder with config.json, vocab.txt and model.safetensors, "
        "or a hub name on a machine that reaches the hub"
    )


def initial_weights(
    model: nn.Module, *, load: str | None, from_scratch: bool, bert: str, clip_weights: str | None, clip_model_name: str
) -> list[LoadReport]:
    """Fill a freshly built model, before DeepSpeed copies its weights into fp32 masters.

    1. --load: a checkpoint, whole
    2. else --fromScratch: the random weights that the model was built with
    3. else the pre-trained parts: BERT and CLIP
    """
    if load is not None:
        path = checkpoint_file(load)
        return [load_original(model, read_tensors(path), str(path))]
    if from_scratch:
        return []
    clip_path = Path(clip_weights or f"~/.cache/clip/{clip_model_name}.pt").expanduser()
    return [load_clip(model, clip_path), load_bert(model, bert)]


def full_state(engine: DeepSpeedEngine) -> State:
    """fp32 weights and buffers under the original's names, gathered from all ranks. Every rank has to call it."""
    state: State = {}
    for key, parameter in engine.module.named_parameters():
        full = safe_get_full_fp32_param(parameter)
        state[key] = (full if full is not None else parameter).detach().float().cpu().reshape(parameter.shape).clone()
    state.update({key: buffer.detach().cpu().clone() for key, buffer in _saved_buffers(engine.module).items()})
    state[DECODER] = state[WORDS]
    return state


def _saved_buffers(module: nn.Module) -> State:
    parameters = dict(module.named_parameters())
    return {key: tensor for key, tensor in module.state_dict().items() if key not in parameters}


def save_checkpoint(engine: DeepSpeedEngine, folder: Path, name: str, client_state: dict[str, Any]) -> None:
    """Write `name` into `folder`; every rank has to call it."""
    state = full_state(engine)
    unfinished = folder / f".{name}{SUFFIX}.unfinished"
    try:
        engine.save_checkpoint(str(folder), tag=name, client_state=client_state, save_latest=False)
        if engine.global_rank == 0:
            torch.save(state, unfinished)
            os.replace(unfinished, folder / f"{name}{SUFFIX}")
    except (OSError, RuntimeError) as error:
        unfinished.unlink(missing_ok=True)
        # torch tells of a full disk in words about file positions.
        reason = "the disk is full" if shutil.disk_usage(folder).free < 2**20 else str(error).splitlines()[0]
        raise UserError(
            f"the checkpoint {folder / name} can't be written ({reason}); free space or change --output"
        ) from None


def load_training_state(engine: DeepSpeedEngine, path: str, *, optimizer: bool, scheduler: bool) -> None:
    """Optimiser and schedule of the checkpoint whose weights are loaded already; every rank has to call it."""
    folder = Path(path.removesuffix(SUFFIX))
    problem = "can't be continued here; add --not_load_adam_optimizer --not_load_scheduler to take its weights only"
    if not folder.is_dir():
        raise UserError(f"{folder} has no optimiser state (there is only the weights' file), so its training {problem}")
    try:
        engine.load_checkpoint(
            str(folder.parent), tag=folder.name, load_optimizer_states=optimizer, load_lr_scheduler_states=scheduler
        )
    except Exception as error:  # DeepSpeed raises many kinds; each means the same to the user
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"the optimiser state in {folder} doesn't fit this run ({reason}), so it {problem}") from None
