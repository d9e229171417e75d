"""What --bert names: a BERT's configuration and vocabulary."""

from pathlib import Path

from tokenizers import Tokenizer
from transformers import BertConfig, BertTokenizer

from engine.errors import UserError


def read_bert(name: str) -> tuple[BertConfig, Tokenizer]:
    """Configuration and vocabulary from a folder or the hub."""
    try:
        if Path(name).is_dir():  # where transformers would silently take its defaults
            for file in ("config.json", "vocab.txt"):
                (Path(name) / file).open().close()
        config, tokenizer = BertConfig.from_pretrained(name), BertTokenizer.from_pretrained(name).backend_tokenizer
    except (OSError, ValueError) as error:
        raise no_bert(name, error) from None
    if tokenizer.get_vocab_size() > config.vocab_size:
        raise UserError(
            f"{name}: the vocabulary has {tokenizer.get_vocab_size()} entries, config.json says {config.vocab_size}; "
            "the two files are not of one model"
        )
    return config, tokenizer


def no_bert(name: str, error: Exception) -> UserError:
    """What to say of a BERT that can't be read."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"no BERT at {name!r} ({reason}); give --bert a folder with config.json, vocab.txt and model.safetensors, "
        "or a hub name on a machine that reaches the hub"
    )
