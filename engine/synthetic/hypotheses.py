"""SNLI-VE's files for the drawn scenes: hypotheses that follow from a picture, contradict it, or neither.

A hypothesis is about one shape. It follows if a thing of that shape is there and all that is said of it is so; it
contradicts the picture if something isn't. If there is no such thing, the picture doesn't tell. The words alone say
nothing: whatever the label, all shapes, colors, sizes and sides are as likely as they are in the scenes.
"""

import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.data.annotations.questions.snli_ve import LABELS, EntailmentFile
from engine.data.images.places import FLICKR30K
from engine.synthetic.scenes import SHAPES, Scene, link_pictures, mentioned

FORMS = (
    "a {thing.size} {thing.color} {thing.shape}",
    "a {thing.color} {thing.shape} at the {thing.side}",
    "a {thing.size} {thing.shape} at the {thing.side}",
    "a {thing.shape} {thing.relation} a {other.color} thing",
    "a {thing.color} {thing.shape} {thing.relation} a {other.size} thing",
)
UNDECIDED = 1 / 500  # of train's lines


def hypothesis(scene: Scene, label: str, draw: random.Random) -> str:
    """What has this label beside the scene."""
    thing, other = draw.sample(scene.things, 2)
    form, said = draw.choice(FORMS), {"thing": thing, "other": other}
    if label == "contradiction":
        role, attribute = draw.choice([field for field in mentioned(form) if field != ("thing", "shape")])
        said[role] = said[role].but(attribute, draw)
    elif label == "neutral":
        absent = [shape for shape in SHAPES if shape not in (thing.shape, other.shape)]
        said["thing"] = replace(thing, shape=draw.choice(absent))
    return form.format(**said)


def write_snli_ve(
    data_root: Path, training: Sequence[Scene], held_out: Sequence[Scene], *, seed: int, of_each: int = 1
) -> None:
    """Write SNLI-VE's files and show the scenes in Flickr30k's folder.

    The first half of the held-out scenes are `dev`, the others `test`.

    Args:
        of_each: hypotheses of each label for a scene.
    """
    known = [(str(1_000_000 + row), scene) for row, scene in enumerate(training)]
    unseen = [(str(2_000_000 + row), scene) for row, scene in enumerate(held_out)]
    link_pictures(data_root, {f"{FLICKR30K}:{image_id}": scene for image_id, scene in known + unseen})
    half = len(unseen) // 2
    folder = data_root / EntailmentFile.folder
    folder.mkdir(parents=True, exist_ok=True)
    splits = {"train": (known, UNDECIDED), "dev": (unseen[:half], 0.0), "test": (unseen[half:], 0.0)}
    for split, (images, undecided) in splits.items():
        with (folder / EntailmentFile.file_name.format(split)).open("w") as file:
            for image_id, scene in images:
                draw = random.Random(f"{seed}/snli_ve/{scene.img_id}")
                for line in lines_about(scene, image_id, draw, of_each=of_each, undecided=undecided):
                    file.write(json.dumps(line) + "\n")


def lines_about(
    scene: Scene, image_id: str, draw: random.Random, *, of_each: int = 1, undecided: float = 0.0
) -> Iterator[dict[str, Any]]:
    """The labels come in drawn order.

    Args:
        undecided: the share of lines whose five annotators come to no majority.
    """
    number, caption = draw.choice(list(enumerate(scene.captions(draw, 4))))
    labels = [label for _ in range(of_each) for label in draw.sample(LABELS, len(LABELS))]
    for place, label in enumerate(labels, start=1):
        disputed = draw.random() < undecided
        yield {
            "annotator_labels": [*LABELS, *draw.sample(LABELS, 2)] if disputed else [label],
            "captionID": f"{image_id}.jpg#{number}",
            "gold_label": "-" if disputed else label,
            "pairID": f"{image_id}.jpg#{number}r{place}{label[0]}",
            "sentence1": caption,
            "sentence2": hypothesis(scene, label, draw),
            "Flickr30K_ID": image_id,
        }
