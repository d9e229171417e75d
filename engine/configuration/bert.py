"""What --bert names: a BERT's configuration and vocabulary."""

import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import tokenizers
import transformers
from huggingface_hub.errors import StrictDataclassError
from tokenizers import Tokenizer
from transformers import BertConfig, BertTokenizer
from transformers.utils import cached_file

from engine.errors import UserError, other_numbers

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PARTS = {"model": "WordPiece", "normalizer": "BertNormalizer", "pre_tokenizer": "BertPreTokenizer"}
TOKENIZERS = ("BertTokenizer", "BertTokenizerFast")  # whose vocab.txt says all that tokenizer_config.json doesn't
TAKEN = "--bert takes models of BERT's layout with WordPiece, such as bert-base-cased"
NUMBERS = (  # of config.json
    *("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
    *("max_position_embeddings", "type_vocab_size", "layer_norm_eps", "initializer_range"),
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
)
UNREAD = 0.01  # share of a vocabulary's pieces from which on it is told that they can't occur


@dataclass(frozen=True)
class Splitting:
    """What a BERT tokenizer does to a text before its words become pieces; transformers' names, uncased BERT's values.

    `strip_accents` None means: where letters are made lower case.
    """

    do_lower_case: bool = True
    strip_accents: bool | None = None
    tokenize_chinese_chars: bool = True

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Splitting":
        """That of a tokenizer whose normalizer is BERT's."""
        normalizer = tokenizer.normalizer
        return cls(normalizer.lowercase, normalizer.strip_accents, normalizer.handle_chinese_chars)

    @property
    def resolved(self) -> "Splitting":
        """The same with what `strip_accents` comes to."""
        return self if self.strip_accents is not None else replace(self, strip_accents=self.do_lower_case)

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


# A vocabulary, and the ids that texts have in it: kinds of words that a version of the libraries may read differently.
KNOWN_WORDS = [
    *SPECIAL_TOKENS,
    *("cab", "Cab", "cafe", "café", "##\u0301", "izmir", "İzmir", "i\u0307zmir", "一", "二", "一二", "##😀"),
]
KNOWN_TEXTS = ("Cab", "café", "cafe\u0301", "İzmir", "一二", "[MASK] c\x00a\u200bb\tcab😀")
KNOWN_IDS = {
    Splitting(): ([5], [7], [7], [10], [13, 14], [4, 5, 5, 16]),
    Splitting(do_lower_case=False): ([6], [8], [7, 9], [11], [13, 14], [4, 5, 5, 16]),
    Splitting(strip_accents=False): ([5], [8], [7, 9], [12], [13, 14], [4, 5, 5, 16]),
    Splitting(do_lower_case=False, tokenize_chinese_chars=False): ([6], [8], [7, 9], [11], [15], [4, 5, 5, 16]),
}


def bert_tokenizer(words: list[str], splitting: Splitting) -> Tokenizer:
    """That of a vocabulary, in the order of its ids.

    Raises:
        UserError: if the libraries don't give the ids that they gave when the known ones were recorded.
    """
    check_known_ids()
    return _tokenizer(words, splitting)


@cache
def check_known_ids() -> None:
    """Once in a process, before it makes its first tokenizer. See bert_tokenizer for the error."""
    libraries = f"transformers {transformers.__version__} with tokenizers {tokenizers.__version__}"
    for splitting, recorded in KNOWN_IDS.items():
        tokenizer = _tokenizer(KNOWN_WORDS, splitting)
        for text, expected in zip(KNOWN_TEXTS, recorded, strict=True):
            found = tokenizer.encode(text, add_special_tokens=False).ids
            if found != expected:
                raise other_numbers(libraries, f"the words of {text!r} with {splitting}", found, expected)


def _tokenizer(words: list[str], splitting: Splitting) -> Tokenizer:
    ids = {word: number for number, word in enumerate(words)}
    return BertTokenizer(vocab=ids, **asdict(splitting)).backend_tokenizer


def unread_pieces(tokenizer: Tokenizer) -> str | None:
    """What to say of a vocabulary that isn't made for texts as they are read, or None.

    Of a cased model it has capital letters, which don't occur in texts that are made lower case; of an uncased one it
    has none, and words with them are unknown.
    """
    splitting, normalise = Splitting.of(tokenizer), tokenizer.normalizer.normalize_str
    pieces = [piece.removeprefix("##") for piece in tokenizer.get_vocab() if piece not in SPECIAL_TOKENS]
    odd = [piece for piece in pieces if not piece.isascii() or piece != piece.lower()]  # the others stay as they are
    unread = sorted(piece for piece in odd if normalise(piece).strip() != piece)
    remedy = "see --do_lower_case, and docs/data.md for what else a folder of --bert can say"
    if len(unread) > UNREAD * len(pieces):
        return (
            f"{len(unread):,} of the {len(pieces):,} pieces of the vocabulary, such as {max(unread, key=len)!r}, "
            f"can't occur in texts that are read with {splitting}; {remedy}"
        )
    if not splitting.do_lower_case and all(piece == piece.lower() for piece in odd):
        return f"no piece of the vocabulary has a capital letter, so words with one are unknown; {remedy}"
    return None


def read_bert(name: str, do_lower_case: bool | None = None) -> tuple[BertConfig, Tokenizer]:
    """Configuration and tokenizer from a folder or the hub.

    tokenizer_config.json says how words are split, as in transformers; what it leaves open, tokenizer.json says.

    Args:
        do_lower_case: whether texts are made lower case, whatever these files say; None leaves it to them.

    Raises:
        UserError: if a file is missing or damaged, or the model is of another kind.
    """
    try:
        config = _read_config(name)
        ids, splitting = _read_words(name)
    except (OSError, ValueError, StrictDataclassError) as error:
        raise no_bert(name, error) from None
    size = max(ids.values(), default=-1) + 1
    if size > config.vocab_size:
        raise UserError(
            f"{name}: the vocabulary has {size} entries, config.json says {config.vocab_size}; the two files are not "
            "of one model"
        )
    if lacking := [word for word in SPECIAL_TOKENS if word not in ids]:
        raise UserError(f"{name}: the vocabulary lacks {lacking[0]}; {TAKEN}")
    # Of a piece that the file names twice, the last place counts; the other one has none.
    words = [f"[no piece {number}]" for number in range(size)]
    for word, number in ids.items():
        words[number] = word
    if do_lower_case is not None:
        splitting = replace(splitting, do_lower_case=do_lower_case)
    return config, bert_tokenizer(words, splitting)


def _read_config(name: str) -> BertConfig:
    values: dict[str, Any] = BertConfig.get_config_dict(name)[0]
    if not values:  # of a folder without the file
        raise FileNotFoundError("it has no config.json")
    kind = values.get("model_type", "bert")
    if kind != "bert":
        raise UserError(f"{name} is a model of kind {kind}; {TAKEN}")
    usual = BertConfig().to_dict()
    for field in NUMBERS:  # which earlier versions of transformers, such as 5.3, don't look at
        if not isinstance(value := values.get(field, usual[field]), int | type(usual[field])):
            raise ValueError(f"config.json has {field} {value!r}, not a number such as {usual[field]}")
    config = BertConfig.from_dict(values)
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(f"{name} has positions of kind {values['position_embedding_type']}, not absolute ones; {TAKEN}")
    if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
        raise UserError(
            f"{name}: config.json has {config.hidden_size} channels, which its {config.num_attention_heads} attention "
            "heads can't share evenly; mend hidden_size or num_attention_heads"
        )
    if config.hidden_act != "gelu":
        from transformers.activations import ACT2FN  # brings torch along

        if config.hidden_act not in ACT2FN:
            raise UserError(f"{name}: config.json has the activation {config.hidden_act!r}; BERT's is gelu")
    return config


def _read_words(name: str) -> tuple[dict[str, int], Splitting]:
    """Word pieces with their ids, and how a text is split before."""
    path = _find(name, "tokenizer_config.json")
    stated = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(stated, dict):
        raise ValueError("tokenizer_config.json holds no object")
    splitting = Splitting()
    if (path := _find(name, "tokenizer.json")) is not None:
        tokenizer = _read_whole(name, path)
        splitting, ids = Splitting.of(tokenizer), tokenizer.get_vocab()
    elif (path := _find(name, "vocab.txt")) is not None:
        kind = stated.get("tokenizer_class") or TOKENIZERS[0]
        if kind not in TOKENIZERS:
            raise UserError(f"{name} has a tokenizer of kind {kind}; {TAKEN}")
        with path.open(encoding="utf-8") as file:
            ids = {line.rstrip(): number for number, line in enumerate(file)}
    else:
        raise FileNotFoundError("it has neither vocab.txt nor tokenizer.json")
    given = {field: stated[field] for field in asdict(splitting) if stated.get(field) is not None}
    if odd := [field for field, value in given.items() if not isinstance(value, bool)]:
        raise ValueError(f"tokenizer_config.json has {odd[0]} {given[odd[0]]!r}, not true or false")
    return ids, replace(splitting, **given)


def _find(name: str, file: str) -> Path | None:
    """A file of a folder or of the hub, if there is one."""
    found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return None if found is None else Path(found)


def _read_whole(name: str, path: Path) -> Tokenizer:
    """A tokenizer.json, whose parts are BERT's."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises this very class
        raise ValueError(f"tokenizer.json: {error}") from None
    found = {part: type(getattr(tokenizer, part)).__name__ for part in PARTS}
    other = [f"{part} {kind}" for part, kind in found.items() if kind != PARTS[part]]
    if other:
        raise UserError(f"{name} has a tokenizer with {' and '.join(other)}; {TAKEN}")
    return tokenizer


def no_bert(name: str, error: Exception) -> UserError:
    """What to say of a BERT that can't be read."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"no BERT at {name!r} ({reason}); give --bert a folder with config.json, vocab.txt and model.safetensors, "
        "or a hub name on a machine that reaches the hub"
    )
