"""One paragraph: what a training would do with the data, why, and what to do about it."""

from collections.abc import Iterator
from typing import Any

from engine.commands import command
from engine.printing import counted

MANY_CUT = 0.01  # share of texts
MANY_UNKNOWN = 0.02  # share of WordPieces


def advice(summary: dict[str, Any], max_seq_length: int, positions: int) -> str:
    """Whole sentences, the most urgent first.

    Args:
        positions: of --bert, which a text can't have more tokens than.
    """
    texts, images = summary["texts"], summary["images"]
    words = of_words(texts, max_seq_length, positions)
    sentences = [*of_rows(texts), *of_images(images), *words, *of_repeats(texts, images)]
    if images["looked_at"] < images["images"]:
        sentences.append(
            f"Only {images['looked_at']:,} of {images['images']:,} images were opened, drawn by seed "
            f"{summary['seed']}; without --max_images it is all of them."
        )
    kept = texts["texts"] - images["texts_of_missing"] - images["texts_of_unreadable"]
    begin = f"{kept:,} of these {texts['texts']:,} texts can be trained on as they are."
    begin = begin if sentences else f"{begin} There is nothing to mend."
    return " ".join([begin, *sentences])


def of_rows(texts: dict[str, Any]) -> Iterator[str]:
    if texts["broken_files"]:
        files = counted(texts["broken_files"], "file")
        yield f"A training stops at {files} that can't be read to the end: mend what the list of problems names."
    if texts["broken_rows"]:
        yield f"A training stops at the first of {counted(texts['broken_rows'], 'broken row')}: mend or remove them."
    if texts["left_out"]:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in texts["left_out"].items())
        yield f"Rows or texts that say nothing to train on are left out: {reasons}."


def of_images(images: dict[str, Any]) -> Iterator[str]:
    sampled = "" if images["looked_at"] == images["images"] else f" among the {images['looked_at']:,} looked at"
    if images["missing"]:
        yield (
            f"A training doesn't start while {counted(images['missing'], 'image')} can't be found: add what is missing "
            "or mend the paths (--image_root), or pass --allow_missing_images, which leaves "
            f"{counted(images['texts_of_missing'], 'text')} out."
        )
    if images["unreadable"]:
        yield (
            f"A training passes over {counted(images['unreadable'], 'unreadable image')} with "
            f"{counted(images['texts_of_unreadable'], 'text')}{sampled}, and gives up once it has met more than "
            "--max_unreadable_images: remove these rows or replace the images."
        )
    if images["one_colour"]:
        yield (
            f"A training takes {counted(images['one_colour'], 'image')} of one colour{sampled} like any other: remove "
            "those that are placeholders."
        )
    if images["narrow"]:
        yield (
            f"Of {counted(images['narrow'], 'very narrow image')} little is left but black borders: cut or remove them."
        )


def of_words(texts: dict[str, Any], max_seq_length: int, positions: int) -> Iterator[str]:
    cut = texts["longer_than_max_seq_length"]
    if cut:
        share = cut / texts["texts"]
        remedy = longer(texts["lengths"], max_seq_length, positions) if share > MANY_CUT else ""
        yield (
            f"A training cuts {counted(cut, 'text')} ({share:.1%}) off after {max_seq_length - 2} WordPieces{remedy}."
        )
    if texts["unknown_pieces"] > MANY_UNKNOWN:
        yield (
            f"The vocabulary lacks {texts['unknown_pieces']:.1%} of the WordPieces, which all become [UNK]: it was "
            "made for other texts. Name a model with --bert that has these words; if they are of another language, "
            "that may be bert-base-multilingual-cased."
        )
    if texts["questions"] and not texts["answer_table"]:
        yield (
            "A training learns to answer questions only with an answer table, which "
            f"`{command('prepare')} answers` makes; without --taskQA, none is needed."
        )
    elif texts["questions_without_known_answer"]:
        yield (
            f"The answer table lacks all answers of {counted(texts['questions_without_known_answer'], 'question')}, "
            "which are read as if they had none."
        )


def longer(lengths: dict[str, float], max_seq_length: int, positions: int) -> str:
    """Which --max_seq_length cuts fewer texts, as the end of a sentence; "" where --bert has no more positions."""
    wanted = int(lengths["99%"])
    whole = min(wanted, positions)
    if whole <= max_seq_length:
        return ""
    kept = "keeps all of them whole" if wanted == lengths["largest"] else "keeps 99% of all whole"
    if whole < wanted:
        kept = "cuts less, and --bert has no more positions"
    return f": --max_seq_length {whole} {kept}, for more memory and time"


def of_repeats(texts: dict[str, Any], images: dict[str, Any]) -> Iterator[str]:
    shared = texts["captions_of_several_images"]["captions"]
    found = [
        counted(texts["repeated_at_their_image"], "text") + " that their image has already",
        counted(shared, "caption") + " of several images",
        counted(images["same_bytes"], "image") + " with the bytes of another",
    ]
    found = [part for part in found if not part.startswith("0 ")]
    if found:
        yield f"Repeats are trained on like anything else: {', '.join(found)}; remove those that aren't meant."
