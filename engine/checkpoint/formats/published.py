"""CLIP and BERT as they are published: what a pre-training starts from."""

from pathlib import Path

from torch import nn
from transformers.utils import logging as transformers_logging

from engine.checkpoint.formats.torchscript import is_torchscript, read_torchscript
from engine.checkpoint.weights import BACKBONE, DECODER, HEAD, UNUSED, LoadReport, State, load_state, read_tensors
from engine.configuration.bert import no_bert
from engine.errors import UserError


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


def read_bert_weights(name: str) -> tuple[State, list[str]]:
    """BERT's text half, and the heads where the file has them, under this model's names; keys that aren't BERT's."""
    from transformers import BertForPreTraining  # brings text generation along, which takes seconds

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        bert, info = BertForPreTraining.from_pretrained(name, output_loading_info=True, ignore_mismatched_sizes=True)
    except (OSError, ValueError) as error:
        raise no_bert(name, error) from None
    for key, found, wanted in sorted(info["mismatched_keys"]):
        raise UserError(
            f"{name}: {key} has shape {tuple(found)}, by config.json it has {tuple(wanted)}; the two files are not of "
            "one model"
        )
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


def pretrained_parts(
    model: nn.Module, *, bert: str, clip_weights: str | None, clip_model_name: str
) -> list[LoadReport]:
    """Fill a freshly built model with CLIP and BERT."""
    return [load_clip(model, clip_file(clip_weights, clip_model_name)), load_bert(model, bert)]


def check_parts(*, bert: str, clip_weights: str | None, clip_model_name: str) -> None:
    """Raises UserError if one of their files isn't there; nothing is read, and no hub is asked."""
    clip_file(clip_weights, clip_model_name)
    if Path(bert).is_dir() and not any(Path(bert).glob(kind) for kind in ("*.safetensors", "*.bin")):
        raise no_bert(bert, FileNotFoundError("the folder has no file with weights"))


def clip_file(clip_weights: str | None, clip_model_name: str) -> Path:
    """Raises UserError if it isn't there."""
    path = Path(clip_weights or f"~/.cache/clip/{clip_model_name}.pt").expanduser()
    if not path.exists():
        raise UserError(
            f"{path} is missing; download OpenAI's weights and name the file with --clip_weights, or use --fromScratch"
        )
    return path
