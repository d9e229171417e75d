"""Captions: words that are masked, and images that they belong to or not."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.inference.reading import Reading
from engine.report.pictures.drawing import HALF, picture_of, seen
from engine.report.pictures.held_out import Example, HeldOut, spread_evenly, told_part
from engine.report.pictures.reader import Reader
from engine.report.pictures.statistics import mean_of
from engine.report.pictures.words import Words
from engine.report.sections import Card, Picture, Section, Table

MASK = "[MASK]"
SHOWN_GUESSES = 5
CARDS = 6


@dataclass(frozen=True)
class Masked(Example):
    """A caption in which a word is masked."""

    word: str = ""  # the one that was there


def caption_sections(reader: Reader, held_out: HeldOut) -> list[Section]:
    """Of what the model has learnt in a pre-training."""
    abilities = reader.model.abilities if held_out.captions else ()
    sections = []
    if "fill_mask" in abilities:
        sections.append(masked_section(reader, held_out))
    if "match" in abilities:
        sections.append(matched_section(reader, held_out))
    return sections


def masked_section(reader: Reader, held_out: HeldOut) -> Section:
    """Whether the model finds the word that is masked."""
    words = Words(reader.model, (caption.sentence for caption in held_out.captions))
    masked = [found for caption in held_out.captions if (found := mask_word(caption, words)) is not None]
    shown = {example.number for example in spread_evenly(masked, CARDS, seed=0)}
    ranks: list[int] = []
    cards: list[Card] = []
    for example, reading in reader.read(masked):
        guesses = reading.guesses(SHOWN_GUESSES)[0]
        guessed = [guess.word for guess in guesses]
        ranks.append(guessed.index(example.word) if example.word in guessed else SHOWN_GUESSES)
        if example.number in shown:
            name = f"{reader.slug}_masked_{example.number}"
            picture = Picture(name, picture_of([seen(reading)]), f"The image {example.img_id}")
            lines = [*(f"{guess.probability:.1%} {guess.word}" for guess in guesses), f"masked: {example.word}"]
            cards.append(Card(picture, example.sentence, lines, ranks[-1] == 0))
    title = "Masked words"
    if not ranks:
        return Section(title, [f"No caption of {held_out.name} has a word that is one piece of the vocabulary."])
    first, among = (mean_of([float(rank <= last) for rank in ranks]) for last in (0, SHOWN_GUESSES - 1))
    part = told_part(len(ranks), held_out.all_captions, f"captions of {held_out.name}")
    text = (
        f"{reader.told_model} has read {part}, in each of which one word was masked. It is one of the rarer half of a "
        f"caption's words that have three letters or more.{reader.told_unreadable} The first guess was right in "
        f"{first} (95% interval: {first.interval}), and one of the first {SHOWN_GUESSES} in {among} ({among.interval})."
    )
    return Section(title, [text, cards])


def mask_word(caption: Example, words: Words) -> Masked | None:
    """A caption with one of the rarer half of its words masked, drawn by its number; None if it has no word."""
    rare = words.rarest_first(caption.sentence)
    if not rare or MASK in caption.sentence:
        return None
    word = random.Random(caption.number).choice(rare[: (len(rare) + 1) // 2])
    text = caption.sentence[: word.start] + MASK + caption.sentence[word.end :]
    return Masked(caption.number, caption.img_id, text, word=word.piece)


def matched_section(reader: Reader, held_out: HeldOut) -> Section:
    """Whether the model tells an image that a caption belongs to from another one."""
    title = "Captions and images"
    captions = held_out.captions[::2]  # since each is read twice
    others = with_other_images(captions)
    shown = {example.number for example in spread_evenly(others, CARDS, seed=0)}
    own, other = read_pairs(reader, captions, shown), read_pairs(reader, others, shown)
    both = [caption for caption in captions if caption.number in own and caption.number in other]
    if not both:
        return Section(title, [f"No caption of {held_out.name} could be read beside two images."])
    shares = {
        "its own image": mean_of([float(own[caption.number][0] >= 0.5) for caption in both]),
        "another image": mean_of([float(other[caption.number][0] < 0.5) for caption in both]),
    }
    rows = [(name, f"{share.count:,}", str(share), share.interval) for name, share in shares.items()]
    part = told_part(len(both), held_out.all_captions, f"captions of {held_out.name}")
    text = (
        f"{reader.told_model} has read {part}, each of them twice: beside its own image, and beside that of the next "
        "one that has another. It says how likely caption and image belong together. Right is 0.5 or more beside the "
        f"own image, and less beside the other.{reader.told_unreadable} The pictures have a caption's own image on the "
        "left."
    )
    cards = [
        match_card(reader, caption, own[caption.number], other[caption.number])
        for caption in both
        if caption.number in shown
    ]
    return Section(title, [text, Table(("beside", "captions", "right", "95% interval"), rows), cards])


def with_other_images(captions: Sequence[Example]) -> list[Example]:
    """Each caption with the image of the next one that has another; none if all have the same."""
    images = [caption.img_id for caption in captions]
    found = []
    for number, caption in enumerate(captions):
        following = (image for image in images[number:] + images[:number] if image != caption.img_id)
        if (image := next(following, None)) is not None:
            found.append(replace(caption, img_id=image))
    return found


Matched = tuple[float, Reading | None]


def read_pairs(reader: Reader, examples: Sequence[Example], shown: set[int]) -> dict[int, Matched]:
    """How likely each caption belongs to its image, by the caption's number; with the readings of those to be shown."""
    return {
        example.number: (float(reading.matched or 0.0), reading if example.number in shown else None)
        for example, reading in reader.read(examples)
    }


def match_card(reader: Reader, caption: Example, own: Matched, other: Matched) -> Card:
    images = [seen(reading, HALF) for _, reading in (own, other) if reading is not None]
    name = f"{reader.slug}_matched_{caption.number}"
    return Card(
        Picture(name, picture_of(images), "The caption's own image, and another one"),
        caption.sentence,
        [f"{own[0]:.1%} its own image", f"{other[0]:.1%} the other image"],
        own[0] >= 0.5 > other[0],
    )
