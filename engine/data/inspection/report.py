"""What was found, as plain values and as lines."""

from typing import Any

import numpy as np

from engine.data.images.decoding import ImageShape
from engine.data.inspection.images import ImageTable
from engine.data.inspection.texts import MOST_LISTED, TextReader, TextTable
from engine.printing import counted

PERCENTILES = {"smallest": 0, "5%": 5, "25%": 25, "median": 50, "75%": 75, "95%": 95, "99%": 99, "largest": 100}
SHOWN = 60  # characters of a caption


def percentiles(values: np.ndarray) -> dict[str, float]:
    """Each is one of the values; {} if there are none."""
    if not len(values):
        return {}
    found = np.percentile(values, list(PERCENTILES.values()), method="inverted_cdf").tolist()
    return {name: round(value, 3) for name, value in zip(PERCENTILES, found, strict=True)}


def describe_texts(
    reader: TextReader, texts: TextTable, max_seq_length: int, most_shared: dict[str, int]
) -> dict[str, Any]:
    captions = int(texts.is_caption.sum())
    shared, images_of_shared, _ = texts.shared_captions()
    return {
        "rows": reader.counts["rows"] + reader.broken_rows.count,
        "broken_rows": reader.broken_rows.count + reader.broken_texts.count,
        "broken_files": reader.broken_files.count,
        "left_out": dict(reader.dropped),
        "texts": len(texts),
        "captions": captions,
        "questions": len(texts) - captions,
        "questions_with_answers": reader.counts["questions_with_answers"],
        "different_answers": texts.answers,
        "answer_table": len(reader.answers),
        "questions_without_known_answer": reader.counts["questions_without_known_answer"],
        "lengths": percentiles(texts.lengths),  # in WordPieces, [CLS] and [SEP] included
        "longer_than_max_seq_length": int((texts.lengths > max_seq_length).sum()),
        "unknown_pieces": round(reader.unknown_pieces / max(1, reader.pieces), 4),
        "scripts": dict(reader.scripts.most_common()),
        "repeated_at_their_image": texts.repeated_pairs(),
        "captions_of_several_images": {"captions": shared, "images": images_of_shared, "most_frequent": most_shared},
    }


def describe_images(shape: ImageShape, texts: TextTable, found: ImageTable, factor: int) -> dict[str, Any]:
    sizes = found.sizes[found.readable]
    groups = found.same_bytes()
    one_colour = found.numbers[found.one_colour]
    return {
        "images": len(texts.names),
        "looked_at": len(found.numbers),
        "missing": len(found.missing),
        "texts_of_missing": texts.texts_of(found.missing),
        "unreadable": len(found.unreadable),
        "texts_of_unreadable": texts.texts_of(found.unreadable),
        "width": percentiles(sizes[:, 0]),
        "height": percentiles(sizes[:, 1]),
        "height_over_width": percentiles(sizes[:, 1] / np.maximum(1, sizes[:, 0])),
        "aspect_ratio_groups": found.groups(factor),
        "enlarged": found.enlarged(shape),
        "narrow": found.narrow(shape),
        "one_colour": len(one_colour),
        "one_colour_names": [texts.names[number] for number in one_colour[:MOST_LISTED].tolist()],
        "same_bytes": sum(map(len, groups)) - len(groups),
        "same_bytes_names": [[texts.names[n] for n in group.tolist()] for group in groups[:MOST_LISTED]],
    }


def print_found(summary: dict[str, Any]) -> None:
    texts, images = summary["texts"], summary["images"]
    parts = (counted(texts["rows"], "row"), counted(texts["texts"], "text"), counted(images["images"], "image"))
    print(f"{summary['files']}: {', '.join(parts)}")
    for reason, count in texts["left_out"].items():
        print(f"  left out: {count:,} {reason}")
    print_texts(texts)
    print_images(images)
    print(f"picture sheet: {summary['sheet'] or 'none; --sheet FILE.jpg draws one'}")


def print_texts(texts: dict[str, Any]) -> None:
    answers = "different answers {different_answers:,}, questions with an answer {questions_with_answers:,}"
    print("texts: captions {captions:,}, questions {questions:,}".format(**texts))
    if texts["questions"]:
        print("  " + answers.format(**texts))
    print_values("WordPieces with [CLS] and [SEP]", texts["lengths"])
    print(
        f"  longer than --max_seq_length {texts['longer_than_max_seq_length']:,}, "
        f"WordPieces that the vocabulary lacks {texts['unknown_pieces']:.1%}"
    )
    print("  texts with letters of: " + ", ".join(f"{name} {count:,}" for name, count in texts["scripts"].items()))
    shared = texts["captions_of_several_images"]
    print(
        f"  texts that their image has already {texts['repeated_at_their_image']:,}; captions of several images "
        f"{shared['captions']:,}, of {shared['images']:,} images"
    )
    for text, count in shared["most_frequent"].items():
        print(f"    {count:,} images: {text if len(text) <= SHOWN else text[: SHOWN - 3] + '...'}")


def print_images(images: dict[str, Any]) -> None:
    of_all = "" if images["looked_at"] == images["images"] else f", of which {images['looked_at']:,} were looked at"
    print(f"images: {images['images']:,}{of_all}")
    print("  missing {missing:,}, unreadable {unreadable:,}, of one colour {one_colour:,}".format(**images))
    for name in ("width", "height", "height_over_width"):
        print_values(name.replace("_over_", " / "), images[name])
    groups = ", ".join(f"{name} {count:,}" for name, count in images["aspect_ratio_groups"].items())
    print(f"  groups of height / width: {groups or 'none'}")
    print(
        "  enlarged {enlarged:,}, very narrow {narrow:,}, with the bytes of another image {same_bytes:,}".format(
            **images
        )
    )
    for names in images["same_bytes_names"][:3]:
        print(f"    the same bytes: {', '.join(names[:4])}{' ...' if len(names) > 4 else ''}")
    for name in images["one_colour_names"][:3]:
        print(f"    one colour: {name}")


def print_values(name: str, values: dict[str, float]) -> None:
    if values:
        print(f"  {name}: " + ", ".join(f"{at} {value:,}" for at, value in values.items()))
