"""The quick encoder gives what the tokeniser gives, for any text."""

import random
from array import array
from dataclasses import asdict
from unicodedata import normalize

import pytest
from tokenizers import AddedToken, BertWordPieceTokenizer, Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizer

from engine.configuration.bert import Splitting, bert_tokenizer
from engine.data.annotations import text
from engine.data.annotations.text import TextEncoder, WordByWordEncoder
from engine.errors import UserError

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij.,'?-é", *(f"##{c}" for c in "abcdefghijé")]
WORDS = [*PIECES, "cab", "##bed", "[", "]", "mask", "一"]


def bert():
    return Tokenizer.from_str(BertWordPieceTokenizer({word: number for number, word in enumerate(WORDS)}).to_str())


def quick_and_slow(tokenizer, texts, typecode="H"):
    encoder = TextEncoder(tokenizer)
    quick = WordByWordEncoder(encoder, typecode)
    return [list(array(typecode, quick(line))) for line in texts], [encoder(line) for line in texts]


ODD = [
    "",
    "   ",
    " A cab,  a bed.  ",
    "cab\tbed\nace\u00a0ice",
    "don't-do.this?",
    "[MASK] x[MASK]y [mask] [MA SK]",
    "Café 一二 cab",
    "cab\x00bed \x7f\x1ccab",
    "x" * 150 + " cab",
    "cab\u200dbed \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
]


def test_odd_texts():
    quick, slow = quick_and_slow(bert(), ODD)
    assert quick == slow
    assert quick[2] != []


def test_random_texts_twice_so_that_words_are_remembered():
    draw = random.Random(0)
    alphabet = "abcdefghij ABC.,'?[]-\té一" + " " * 6
    texts = ["".join(draw.choices(alphabet, k=draw.randint(0, 40))) for _ in range(2000)]
    quick, slow = quick_and_slow(bert(), texts * 2)
    assert quick == slow


def test_words_are_forgotten_when_there_are_too_many(monkeypatch):
    monkeypatch.setattr(text, "REMEMBERED_WORDS", 5)
    texts = [f"{a}{b} cab" for a in "abcdef" for b in "abcdef"]
    encoder = WordByWordEncoder(TextEncoder(bert()), "I")
    assert [list(array("I", encoder(line))) for line in texts] == [TextEncoder(bert())(line) for line in texts]
    assert len(encoder.words) <= 5


SPLITTINGS = [
    Splitting(),
    Splitting(do_lower_case=False),
    Splitting(do_lower_case=False, tokenize_chinese_chars=False),
    Splitting(strip_accents=False),
    Splitting(do_lower_case=False, strip_accents=True),
]
SCRIPTS = [
    "Cab éa É e\u0301",
    "سلام كَتَب",
    "שלום",
    "一二 三",
    "🙂 👩\u200d👩 \ufe0f",
    "İI ıß ΣΑΣ",
    "हिन्दी",
    "\u202ecab\u202c",
    "[MASK]",
]


@pytest.mark.parametrize("splitting", SPLITTINGS, ids=str)
def test_any_script_gets_the_ids_that_transformers_gives(splitting):
    """Its pieces are all characters of these texts, so that none is lost in an unknown word."""
    forms = [
        form
        for line in [*SCRIPTS, *ODD]
        for form in (line, line.lower(), normalize("NFD", line), normalize("NFD", line.lower()))
    ]
    characters = sorted({letter for form in forms for letter in form if letter.strip()})
    words = [*dict.fromkeys([*WORDS, "Cab", *characters, *(f"##{letter}" for letter in characters)])]
    theirs = BertTokenizer(vocab={word: number for number, word in enumerate(words)}, **asdict(splitting))
    draw = random.Random(1)
    texts = [*SCRIPTS, *ODD, *(" ".join(draw.choices(SCRIPTS, k=3)) for _ in range(300))]
    texts += ["".join(draw.choices([*characters, " ", "a", "A"], k=12)) for _ in range(1000)]
    quick, slow = quick_and_slow(bert_tokenizer(words, splitting), texts * 2, "I")
    assert quick == slow == [theirs(line, add_special_tokens=False)["input_ids"] for line in texts * 2]
    assert WORDS.index("[UNK]") not in quick[0]


def joining_spaces():
    tokenizer = bert()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("a b", "cab"), normalizers.Lowercase()])
    return tokenizer


def spaced_token():
    tokenizer = bert()
    tokenizer.add_tokens([AddedToken("cab bed", normalized=False)])
    return tokenizer


def truncating():
    tokenizer = bert()
    tokenizer.enable_truncation(1)
    return tokenizer


def whole_sentences():
    tokenizer = bert()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(",", "removed")
    return tokenizer


def other_model():
    tokenizer = bert()
    tokenizer.model = models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]")
    return tokenizer


@pytest.mark.parametrize("change", [joining_spaces, spaced_token, truncating, whole_sentences, other_model])
def test_a_tokeniser_for_which_words_are_not_independent_is_asked_itself(change):
    encoder = WordByWordEncoder(TextEncoder(change()), "H")
    assert not encoder.word_by_word
    quick, slow = quick_and_slow(change(), ["a b cab bed", "cab, cab bed, a"])
    assert quick == slow


@pytest.mark.parametrize("name", ["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
def test_vocabulary_without_a_special_token_is_refused(name):
    vocabulary = {word: number for number, word in enumerate(word for word in WORDS if word != name)}
    with pytest.raises(UserError) as error:
        TextEncoder(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]")))
    assert str(error.value) == f"the vocabulary lacks {name}; give a BERT vocabulary with --bert"


def test_special_tokens_are_found_by_name():
    vocabulary = {word: number for number, word in enumerate(WORDS[::-1])}
    words = TextEncoder(Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))).vocabulary
    last = len(WORDS) - 1
    assert words == (last, last - 2, last - 3, last - 4, len(WORDS), last - 1)
