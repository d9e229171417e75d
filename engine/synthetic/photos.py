"""The demo's scenes as a person's own photos: image files of several kinds, and a table of texts beside them.

photos/...         JPEG, PNG and WebP, some of them with names or orientations that programs stumble over
captions.jsonl     a line for each caption, or question with its answer; `split` is train or val
bert/              a vocabulary that was trained on the texts, and the shape of a small encoder
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image

from engine.progress import Bar
from engine.synthetic.demo import write_bert
from engine.synthetic.scenes import Scene

TABLE = "captions.jsonl"
NAMES = (
    "{split}_{number:05d}.jpg",
    "{split}_{number:05d}.JPG",
    "at the lake/{split} {number}, evening.png",
    "Été à Köln, {split} {number}.webp",
    "写真/{split}_{number:05d}.jpeg",
)
LYING = "写真"  # the folder whose photos lie on their side, with an orientation in EXIF
ROTATED_BY_90 = 6  # EXIF's orientation of what has to be turned by 90 degrees clockwise
CUT_OFF = "photos/cut off.jpg"  # has the first bytes of an image only

Row = dict[str, Any]


def write_photos(
    folder: Path,
    *,
    train_scenes: int,
    valid_scenes: int,
    seed: int,
    sentences_per_scene: int = 4,
    progress: bool = False,
) -> None:
    """Write the photos, their table and a BERT folder: the same seed gives the same files.

    Args:
        sentences_per_scene: 4 or 8; half of them are captions, and half are questions.
    """
    rows: list[Row] = []
    for split, scenes in (("train", train_scenes), ("val", valid_scenes)):
        for number in Bar(range(scenes), desc=f"drawing {split}", unit="photo", disable=not progress):
            draw = random.Random(f"{seed}/{split}/{number}")
            name = f"photos/{NAMES[number % len(NAMES)].format(split=split, number=number)}"
            scene = Scene.imagine(name, draw)
            save_photo(folder / name, scene.paint(draw))
            rows += rows_of(scene, split, draw, sentences_per_scene // 2)
    texts = [row.get("caption") or row["question"] for row in rows]
    first = folder / rows[0]["image"]
    (folder / CUT_OFF).write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    rows.append({"image": CUT_OFF, "caption": rows[0]["caption"], "split": "train"})
    rows += [{"image": rows[0]["image"], "caption": empty, "split": "train"} for empty in ("", " ")]
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / TABLE).write_text("".join(lines), encoding="utf-8")
    write_bert(folder / "bert", texts)


def rows_of(scene: Scene, split: str, draw: random.Random, number: int) -> Iterator[Row]:
    """As many captions as questions."""
    for caption in scene.captions(draw, number):
        yield {"image": scene.img_id, "caption": caption, "split": split}
    for question, answer in scene.questions(draw, number):
        yield {"image": scene.img_id, "question": question, "answer": answer, "split": split}


def save_photo(path: Path, image: Image.Image) -> None:
    """In the format that the name's ending says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.parent.name != LYING:
        image.save(path, quality=92)
        return
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = ROTATED_BY_90
    image.transpose(Image.Transpose.ROTATE_90).save(path, quality=92, exif=exif)
