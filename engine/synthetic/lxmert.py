"""Annotations in LXMERT's shape, as many as wanted, and photos: for measurements, not for training.

An image has 51 sentences on average, 41% of them questions. Images are COCO's, Visual Genome's or of both, so that a
sentence, its image's id and its uid have 100 characters together, which is what the original's cache was measured
with (400 bytes of int32 each); for that, sentences are longer than Visual Genome's real ones. Words follow
Zipf's law; rare ones have several WordPieces, some are unknown, and a few texts aren't ASCII.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.named import read_names
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.images.folder import SIZES_FILE
from engine.data.images.places import image_path
from engine.progress import Bar

NAME = "synthetic"  # of the annotation file, as for --train
VOCABULARY_SIZE = 30_522  # BERT's
NUM_WORDS = 60_000
NUM_ANSWERS = 9_500  # in LXMERT's table
UNKNOWN_ANSWERS = 200
SCORES = (1, 0.9, 0.6, 0.3)
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHUNK = 2000  # images that are drawn at a time


class Category(NamedTuple):
    """Sentences of one kind: how many words they have on average, and how they end."""

    words: float
    endings: tuple[str, ...]
    answers: tuple[int, ...] | None = None  # how many a question may have; None for captions


class Kind(NamedTuple):
    """A kind of image: which part of all, the form of its ids, how many sentences of each category on average."""

    share: float
    img_id: str
    sentences: dict[str, float]


CATEGORIES = {
    "mscoco": Category(11.7, (".", ".", "")),
    "vg": Category(11.2, ("", "", ".")),
    "vqa": Category(8.0, ("?",), (1, 1, 2, 3, 5)),
    "gqa": Category(10.4, ("?",), (1,)),
    "visual7w": Category(8.5, ("?",), (1,)),
}
COCO, GENOME = "COCO_train2014_{:012d}", "2{:06d}"
KINDS = (
    Kind(0.40, COCO, {"mscoco": 5, "vqa": 6}),
    Kind(0.28, COCO, {"mscoco": 5, "vg": 44, "vqa": 6, "gqa": 11, "visual7w": 17}),
    Kind(0.32, GENOME, {"vg": 44, "gqa": 11, "visual7w": 17}),
)


def make_words() -> tuple[list[str], list[str]]:
    """All words, the most frequent and shortest first, and the syllables that they are made of."""
    vowels, consonants = "aeiou", "bcdfghjklmnpqrstvwxyz"
    syllables = [c + v + end for end in ("n", "r", "") for v in vowels for c in consonants]
    base = len(syllables)
    words = list(syllables)
    # A syllable begins where a consonant stands before a vowel: no two numbers give the same word.
    for number in range(base, NUM_WORDS):
        word = syllables[number % base] + syllables[number // base % base]
        words.append(word if number < NUM_WORDS // 2 else word + syllables[number * 7 % base])
    words[700], words[800], words[900], words[1000] = "café", "&", "naïve", "t-shirt"  # "&" isn't in the vocabulary
    return words, syllables


def make_tokenizer() -> Tokenizer:
    """A BERT tokeniser with a vocabulary for these words."""
    words, syllables = make_words()
    characters = [chr(code) for code in range(33, 127) if chr(code) not in "&" and not chr(code).isupper()]
    pieces = [*SPECIAL, *characters, *(f"##{piece}" for piece in characters + syllables)]
    pieces = list(dict.fromkeys(pieces + [word for word in words if word.isalpha() and word.isascii()]))
    vocabulary = {piece: number for number, piece in enumerate(pieces[:VOCABULARY_SIZE])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def write_data_set(data_root: Path, items: int, seed: int, *, progress: bool = False) -> list[str]:
    """Annotations, answer table, image sizes and tokeniser, without images; returns the images' ids.

    Args:
        items: the exact number of sentences.
    """
    for folder in (data_root / "lxmert", (data_root / SIZES_FILE).parent):
        folder.mkdir(parents=True, exist_ok=True)
    make_tokenizer().save(str(data_root / "tokenizer.json"))
    words = make_words()[0]
    answers = list(dict.fromkeys(["yes", "no", *map(str, range(1, 11)), *words]))[: NUM_ANSWERS + UNKNOWN_ANSWERS]
    table = [{"ans": answer, "dsets": ["vqa", "gqa", "visual7w"]} for answer in answers[:NUM_ANSWERS]]
    (data_root / "lxmert" / "all_ans.json").write_text(json.dumps(table))
    img_ids: list[str] = []
    with (
        (data_root / "lxmert" / f"{NAME}.json").open("w") as file,
        Bar(total=items, desc="synthetic sentences", unit_scale=True, disable=not progress) as bar,
    ):
        for item in _draw(np.random.default_rng(seed), items, words, answers):
            file.write(("," if img_ids else "[") + "\n" + json.dumps(item))
            img_ids.append(item["img_id"])
            bar.update(sum(map(len, item["sentf"].values())))
        file.write("\n]\n")
    sizes = {
        f"data/{image_path(img_id).as_posix()}": ((480, 640), (640, 480))[n % 2] for n, img_id in enumerate(img_ids)
    }
    (data_root / SIZES_FILE).write_text(json.dumps(sizes))
    return img_ids


def _draw(rng: np.random.Generator, items: int, words: list[str], answers: list[str]) -> Iterator[dict[str, Any]]:
    """Annotation items with this many sentences in all."""
    names, categories = list(CATEGORIES), list(CATEGORIES.values())
    means = np.array([[kind.sentences.get(name, 0) for name in names] for kind in KINDS])
    forms = [*words, *(word.capitalize() for word in words), *(f"{word}," for word in words)]
    drawn = 0
    while items:
        kinds = rng.choice(len(KINDS), CHUNK, p=[kind.share for kind in KINDS])
        counts = np.maximum(rng.poisson(means[kinds]), means[kinds] > 0)
        ends = np.minimum(counts.cumsum(), items)
        counts = np.diff(ends, prepend=0).reshape(counts.shape)
        items -= int(ends[-1])
        category_of = np.repeat(np.tile(np.arange(len(names)), CHUNK), counts.ravel())

        lengths = 3 + rng.poisson(np.array([category.words - 3 for category in categories])[category_of])
        word_ends = lengths.cumsum()
        word_ids = _zipf(rng, NUM_WORDS, word_ends[-1])
        word_ids[rng.random(len(word_ids)) < 0.02] += 2 * NUM_WORDS  # with a comma
        capital = (word_ends - lengths)[rng.random(len(lengths)) < 0.7]
        word_ids[capital] = word_ids[capital] % NUM_WORDS + NUM_WORDS
        texts = [forms[number] for number in word_ids.tolist()]

        choices = rng.integers(0, 60, len(lengths)).tolist()  # 60 can be divided by the lengths of all choices
        answer_ids = iter(_zipf(rng, len(answers), 5 * len(lengths)).tolist())
        bounds = zip((word_ends - lengths).tolist(), word_ends.tolist(), category_of.tolist(), choices, strict=True)
        for kind, row in zip(kinds.tolist(), counts.tolist(), strict=True):
            item: dict[str, Any] = {"img_id": KINDS[kind].img_id.format(drawn), "sentf": {}, "labelf": {}}
            drawn += 1
            for name, category, count in zip(names, categories, row, strict=True):
                for _ in range(count):
                    first, last, _, choice = next(bounds)
                    ending = category.endings[choice % len(category.endings)]
                    item["sentf"].setdefault(name, []).append(" ".join(texts[first:last]) + ending)
                    if category.answers:
                        number = category.answers[choice % len(category.answers)]
                        label = {answers[next(answer_ids)]: score for score in (*SCORES, SCORES[-1])[:number]}
                        item["labelf"].setdefault(name, []).append(label)
            if item["sentf"]:
                yield item


def _zipf(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Numbers below `count`, n as often as 1 / (n + 1)."""
    return (float(count) ** rng.random(size)).astype(np.int64) - 1


def annotation_source(data_root: Path) -> AnnotationSource:
    """What the store of a synthetic data set is made of."""
    encoder = TextEncoder(Tokenizer.from_file(str(data_root / "tokenizer.json")))
    answers = AnswerTable.read(data_root / "lxmert" / "all_ans.json")
    return AnnotationSource(read_names(NAME, data_root / "lxmert"), encoder, answers)


def write_photos(data_root: Path, count: int, seed: int) -> list[str]:
    """JPEG files of 640 x 480, quality 90, of COCO's usual 100 to 150 KB; returns their ids."""
    rng = np.random.default_rng(seed)
    img_ids = [COCO.format(10**6 + number) for number in range(count)]
    for img_id in img_ids:
        pixels = np.full((480, 640, 3), 128.0)
        for cell, strength in ((160, 60), (40, 30), (8, 20), (2, 14)):  # large soft areas down to a fine grain
            noise = rng.normal(128, strength, (480 // cell, 640 // cell, 3)).clip(0, 255).astype(np.uint8)
            pixels += np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC)) - 128.0
        path = data_root / image_path(img_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    return img_ids
