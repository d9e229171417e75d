"""--bert: cased, multilingual and other models of BERT's layout are read as they were trained; others are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import transformers
from tokenizers import BertWordPieceTokenizer, Tokenizer, models
from transformers import BertConfig, BertTokenizer

from engine.configuration import bert
from engine.configuration.bert import Splitting, check_known_ids, read_bert, unread_pieces
from engine.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cab", "Cab", "caf", "##e", "##é", "e", "É", "一", "二", "一二"]
TEXT = "Cab café 一二 É"
CONFIG = {"model_type": "bert", "vocab_size": 20, "hidden_size": 16, "num_attention_heads": 2}
UNCASED = ["cab", "caf", "##e", "一", "二", "e"]
CASED = ["Cab", "caf", "##é", "一", "二", "É"]


def whole(**splitting: bool) -> str:
    """A tokenizer.json."""
    return BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS)}, **splitting).to_str()


def make(folder: Path, files: dict[str, Any], words: list[str] = WORDS) -> str:
    """A BERT's folder; None leaves a file out, and a text stands for itself."""
    usual = {"config.json": CONFIG, "vocab.txt": "".join(f"{word}\n" for word in words)}
    for name, content in {**usual, **files}.items():
        if content is not None:
            (folder / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(folder)


CASED_CONFIG = {"tokenizer_config.json": {"do_lower_case": False}}


@pytest.mark.parametrize(
    ("files", "pieces"),
    [
        ({}, UNCASED),
        (CASED_CONFIG, CASED),
        ({"tokenizer.json": whole(lowercase=False), "vocab.txt": None}, CASED),
        ({"tokenizer.json": whole(lowercase=False)}, CASED),
        ({"tokenizer.json": whole(lowercase=True), **CASED_CONFIG}, CASED),
        ({"tokenizer.json": whole(), "tokenizer_config.json": {"do_lower_case": None}}, UNCASED),
        ({"tokenizer.json": whole(strip_accents=False)}, ["cab", "caf", "##é", "一", "二", "[UNK]"]),
        (
            {"tokenizer_config.json": {"strip_accents": False, "tokenize_chinese_chars": False}},
            ["cab", "caf", "##é", "一二", "[UNK]"],
        ),
        (
            {"tokenizer_config.json": {"do_lower_case": False, "strip_accents": True}},
            ["Cab", "caf", "##e", "一", "二", "[UNK]"],
        ),
    ],
)
def test_words_are_split_as_the_folder_says(files: dict[str, Any], pieces: list[str], tmp_path: Path) -> None:
    tokenizer = read_bert(make(tmp_path, files))[1]
    assert [tokenizer.id_to_token(number) for number in range(len(WORDS))] == WORDS
    assert tokenizer.encode(TEXT, add_special_tokens=False).tokens == pieces


@pytest.mark.parametrize(
    "files",
    [
        {},
        CASED_CONFIG,
        {"tokenizer_config.json": {"do_lower_case": True}},
        {"tokenizer.json": whole(lowercase=False), "vocab.txt": None},
        {"tokenizer.json": whole(lowercase=True)},
    ],
)
def test_the_flag_overrules_the_folder(files: dict[str, Any], tmp_path: Path) -> None:
    folder = make(tmp_path, files)
    for do_lower_case, pieces in ((True, UNCASED), (False, CASED)):
        assert read_bert(folder, do_lower_case)[1].encode(TEXT, add_special_tokens=False).tokens == pieces


def test_the_flag_leaves_accents_as_the_folder_says(tmp_path: Path) -> None:
    folder = make(tmp_path, {"tokenizer_config.json": {"strip_accents": True, "tokenize_chinese_chars": False}})
    assert Splitting.of(read_bert(folder, do_lower_case=False)[1]) == Splitting(False, True, False)


@pytest.mark.parametrize(
    ("words", "do_lower_case", "told"),
    [
        (["Paris", "paris", "##X"], True, "2 of the 3 pieces of the vocabulary, such as 'Paris', can't occur in texts"),
        (["haus", "häuser"], True, "1 of the 2 pieces of the vocabulary, such as 'häuser', can't occur in texts that"),
        (["paris", "häuser", "一"], False, "no piece of the vocabulary has a capital letter, so words with one are"),
        (["paris", "##s", "一", "##二", "!"], True, None),
        (["Paris", "häuser"], False, None),
        ([*(f"word{number}" for number in range(200)), "Odd"], True, None),
    ],
)
def test_a_vocabulary_for_other_texts_is_told(
    words: list[str], do_lower_case: bool, told: str | None, tmp_path: Path
) -> None:
    folder = make(tmp_path, {"config.json": {**CONFIG, "vocab_size": 300}}, [*bert.SPECIAL_TOKENS, *words])
    found = unread_pieces(read_bert(folder, do_lower_case)[1])
    assert found == told or (told is not None and found is not None and found.startswith(told))


def test_known_ids_are_of_words_that_tell_settings_apart() -> None:
    check_known_ids.__wrapped__()
    recorded = [tuple(map(tuple, ids)) for ids in bert.KNOWN_IDS.values()]
    assert len(set(recorded)) == len(recorded) == 4
    assert all(bert.SPECIAL_TOKENS.index("[UNK]") not in ids for row in recorded for ids in row)


def test_a_library_that_gives_other_ids_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that doesn't heed the settings."""
    monkeypatch.setattr(bert, "BertTokenizer", lambda vocab, **_: BertTokenizer(vocab=vocab, do_lower_case=True))
    check_known_ids.cache_clear()
    with pytest.raises(UserError) as error:
        read_bert(make(tmp_path, {}))
    message = str(error.value)
    assert message.startswith(f"transformers {transformers.__version__} with tokenizers {tokenizers.__version__} gives")
    assert " [5] for the words of 'Cab' with do_lower_case False, " in message
    assert ", where the tested versions give [6]; " in message
    assert "\n" not in message


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    ids = {word: number for number, word in enumerate(WORDS)}
    theirs = BertTokenizer(vocab=ids, do_lower_case=False)
    theirs.save_pretrained(tmp_path)
    BertConfig(vocab_size=len(WORDS)).save_pretrained(tmp_path)
    ours = read_bert(str(tmp_path))[1]
    assert ours.get_vocab() == ids
    assert Splitting.of(ours) == Splitting(do_lower_case=False)
    assert ours.encode(TEXT).ids == theirs(TEXT)["input_ids"]


def test_odd_lines_have_the_ids_that_transformers_gives_them(tmp_path: Path) -> None:
    """Pieces that end lines elsewhere, white space, a piece that comes twice."""
    folder = make(
        tmp_path, {"config.json": {**CONFIG, "vocab_size": 30}}, [*WORDS, "x\u0085y", "\u00a0", "", "cab", "z "]
    )
    ours, theirs = read_bert(folder)[1].get_vocab(), BertTokenizer.from_pretrained(folder).get_vocab()
    assert {word: ours[word] for word in theirs} == theirs
    assert (ours["cab"], ours["z"]) == (18, 19)
    assert sorted(ours.values()) == list(range(20))


def test_a_folders_truncation_and_padding_cut_and_fill_no_sentence(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_str(whole())
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=9)
    read = read_bert(make(tmp_path, {"tokenizer.json": tokenizer.to_str()}))[1]
    assert read.encode(TEXT, add_special_tokens=False).tokens == UNCASED


def lacking(word: str) -> str:
    return "".join(f"{other}\n" for other in WORDS if other != word)


FITS = "; --bert takes models of BERT's layout with WordPiece, such as bert-base-cased"
BPE = Tokenizer(models.BPE()).to_str()
BARE = Tokenizer(models.WordPiece({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")).to_str()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"config.json": {**CONFIG, "model_type": "roberta"}}, f" is a model of kind roberta{FITS}"),
        ({"config.json": {"model_type": "distilbert", "dim": 16}}, f" is a model of kind distilbert{FITS}"),
        (
            {"config.json": {**CONFIG, "position_embedding_type": "relative_key"}},
            f" has positions of kind relative_key, not absolute ones{FITS}",
        ),
        (
            {"tokenizer.json": BPE},
            f" has a tokenizer with model BPE and normalizer NoneType and pre_tokenizer NoneType{FITS}",
        ),
        ({"tokenizer.json": BARE}, f" has a tokenizer with normalizer NoneType and pre_tokenizer NoneType{FITS}"),
        (
            {"tokenizer_config.json": {"tokenizer_class": "BertJapaneseTokenizer"}},
            f" has a tokenizer of kind BertJapaneseTokenizer{FITS}",
        ),
        ({"vocab.txt": lacking("[MASK]")}, f": the vocabulary lacks [MASK]{FITS}"),
        ({"config.json": {**CONFIG, "vocab_size": 14}}, ": the vocabulary has 15 entries, config.json says 14"),
        ({"config.json": {**CONFIG, "num_attention_heads": 3}}, ": config.json has 16 channels, which its 3 attention"),
        ({"config.json": {**CONFIG, "num_attention_heads": 0}}, ": config.json has 16 channels, which its 0 attention"),
        ({"config.json": {**CONFIG, "hidden_act": "gulu"}}, ": config.json has the activation 'gulu'; BERT's is gelu"),
    ],
)
def test_another_model_is_refused_with_what_was_found(files: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = make(tmp_path, files)
    with pytest.raises(UserError) as error:
        read_bert(folder)
    assert str(error.value).startswith(f"{folder}{message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"config.json": None}, "it has no config.json"),
        ({"config.json": "{"}, "config.json' is not a valid JSON file"),
        ({"config.json": {**CONFIG, "hidden_size": "x"}}, "config.json has hidden_size 'x', not a number such as 768"),
        (
            {"config.json": {**CONFIG, "num_hidden_layers": None}},
            "config.json has num_hidden_layers None, not a number",
        ),
        (
            {"config.json": {**CONFIG, "layer_norm_eps": "x"}},
            "config.json has layer_norm_eps 'x', not a number such as",
        ),
        (
            {"config.json": {**CONFIG, "num_attention_heads": 2.0}},
            "has num_attention_heads 2.0, not a number such as 12",
        ),
        ({"vocab.txt": None}, "it has neither vocab.txt nor tokenizer.json"),
        ({"tokenizer.json": "{"}, "tokenizer.json: EOF while parsing"),
        ({"tokenizer_config.json": []}, "tokenizer_config.json holds no object"),
        (
            {"tokenizer_config.json": {"do_lower_case": "yes"}},
            "tokenizer_config.json has do_lower_case 'yes', not true or false",
        ),
    ],
)
def test_a_damaged_folder_is_refused_in_one_line(files: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = make(tmp_path, files)
    with pytest.raises(UserError) as error:
        read_bert(folder)
    assert str(error.value).startswith(f"no BERT at {folder!r} (")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)
