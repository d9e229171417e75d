"""A small world to try the engine on: seeded scenes of two shapes, with captions and questions about them.

Everything lies where the real data would: LXMERT's and VQA's JSON, COCO's folders, an answer table, and a BERT folder
with a WordPiece vocabulary of the captions and the shape of a small encoder.
"""

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from engine.data.images.folder import SIZES_FILE
from engine.data.images.places import image_path
from engine.progress import Bar

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 230),
    "yellow": (235, 215, 50),
    "white": (245, 245, 245),
}
SHAPES = ("ring", "square", "triangle", "cross")
SIZES = {"small": 0.32, "large": 0.47}  # half the extent, as a share of the short side
SIDES = {True: ("left", "right"), False: ("top", "bottom")}  # of a landscape, of a portrait
RELATIONS = {"left": "left of", "right": "right of", "top": "above", "bottom": "below"}
ANSWERS = [*COLORS, *SHAPES, "left", "right", "top", "bottom", "yes", "no"]
VISUAL_WORDS = frozenset([*COLORS, *SHAPES])
FIRST_QUESTION = {"mscoco_train": 0, "mscoco_minival": 10**9}  # ids differ between splits, as the real ones do

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

# The shape of the demo's BERT, in the words of transformers' BertConfig.
BERT_CONFIG = {
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 32,
    "initializer_range": 0.08,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


@dataclass(frozen=True)
class Thing:
    """One shape of a scene."""

    shape: str
    color: str
    size: str
    side: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """Two things of different shape and colour, side by side or one above the other."""

    img_id: str
    width: int
    height: int
    things: tuple[Thing, Thing]

    @classmethod
    def imagine(cls, img_id: str, draw: random.Random) -> "Scene":
        long, short = draw.randint(92, 104), draw.randint(60, 70)
        landscape = draw.random() < 0.7
        shapes, colors = draw.sample(SHAPES, 2), draw.sample(list(COLORS), 2)
        first, second = (
            Thing(shape, color, draw.choice(list(SIZES)), side)
            for shape, color, side in zip(shapes, colors, SIDES[landscape], strict=True)
        )
        return cls(img_id, *((long, short) if landscape else (short, long)), (first, second))

    def captions(self, draw: random.Random, number: int = 2) -> list[str]:
        """Two or four: each thing named in full, in both orders, with the place of the first."""
        return [
            caption
            for first, second in self._orders(draw)[: number // 2]
            for caption in (
                f"a {first} {RELATIONS[first.side]} a {second}",
                f"a {second} at the {second.side} and a {first}",
            )
        ]

    def questions(self, draw: random.Random, number: int = 2) -> list[tuple[str, str]]:
        """Two questions with answers about one of the things, or four about both.

        Each takes something for granted, so that it tells which image it belongs to.
        """
        asked = []
        for thing, other in self._orders(draw)[: number // 2]:
            side, answer = draw.choice([(thing.side, "yes"), (other.side, "no")])
            asked += [
                (f"what color is the {thing.size} {thing.shape} at the {thing.side} ?", thing.color),
                (f"what shape is the {thing.size} {thing.color} thing at the {thing.side} ?", thing.shape),
                (f"where is the {thing} ?", thing.side),
                (f"is the {thing.color} {thing.shape} {RELATIONS[side]} the {other.color} {other.shape} ?", answer),
            ]
        return draw.sample(asked, number)

    def _orders(self, draw: random.Random) -> list[tuple[Thing, Thing]]:
        """The two things in an order that is drawn, and the other way round."""
        first, second = draw.sample(self.things, 2)
        return [(first, second), (second, first)]

    def paint(self, draw: random.Random) -> Image.Image:
        """The picture: a dark ground of random tint, each thing near the middle of its half."""
        image = Image.new("RGB", (self.width, self.height), tuple(draw.randint(10, 70) for _ in range(3)))
        canvas = ImageDraw.Draw(image)
        for number, thing in enumerate(self.things):
            along = 0.27 + 0.46 * number + draw.uniform(-0.04, 0.04)
            across = 0.5 + draw.uniform(-0.06, 0.06)
            x, y = (along, across) if self.width > self.height else (across, along)
            radius = SIZES[thing.size] * draw.uniform(0.9, 1.1) * min(self.width, self.height)
            color = tuple(min(255, max(0, channel + draw.randint(-15, 15))) for channel in COLORS[thing.color])
            _paint(canvas, thing.shape, x * self.width, y * self.height, radius, color)
        return image

    def annotation(self, draw: random.Random, sentences: int) -> dict[str, Any]:
        """One item of an LXMERT annotation file."""
        questions = self.questions(draw, sentences // 2)
        return {
            "img_id": self.img_id,
            "sentf": {"mscoco": self.captions(draw, sentences // 2), "vqa": [question for question, _ in questions]},
            "labelf": {"vqa": [{answer: 1.0} for _, answer in questions]},
        }


def _paint(canvas: ImageDraw.ImageDraw, shape: str, x: float, y: float, r: float, color: tuple[int, ...]) -> None:
    if shape == "ring":
        canvas.ellipse((x - r, y - r, x + r, y + r), outline=color, width=round(0.35 * r))
    elif shape == "square":
        canvas.rectangle((x - 0.9 * r, y - 0.9 * r, x + 0.9 * r, y + 0.9 * r), fill=color)
    elif shape == "triangle":
        canvas.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=color)
    else:
        canvas.rectangle((x - r, y - 0.2 * r, x + r, y + 0.2 * r), fill=color)
        canvas.rectangle((x - 0.2 * r, y - r, x + 0.2 * r, y + r), fill=color)


def write_demo(
    data_root: Path,
    *,
    train_scenes: int,
    valid_scenes: int,
    seed: int,
    sentences_per_scene: int = 4,
    progress: bool = False,
) -> None:
    """Write the whole data set below `data_root`: the same seed gives the same files.

    Args:
        sentences_per_scene: 4 or 8; half of them are captions, and half are questions.
    """
    scenes = _scenes("train2014", train_scenes, seed), _scenes("val2014", valid_scenes, seed)
    sizes: dict[str, tuple[int, int]] = {}
    texts: list[str] = []
    for name, split in zip(("mscoco_train", "mscoco_minival"), scenes, strict=True):
        annotations: list[dict[str, Any]] = []
        for scene, draw in Bar(split, desc=f"drawing {name}", unit="scene", disable=not progress):
            path = data_root / image_path(scene.img_id)
            path.parent.mkdir(parents=True, exist_ok=True)
            scene.paint(draw).save(path, quality=92)
            sizes[f"data/{image_path(scene.img_id).as_posix()}"] = (scene.height, scene.width)
            annotations.append(scene.annotation(draw, sentences_per_scene))
            texts += [text for sentences in annotations[-1]["sentf"].values() for text in sentences]
        _write_json(data_root / "lxmert" / f"{name}.json", annotations)
        questions = _vqa_questions(annotations, FIRST_QUESTION[name])
        _write_json(data_root / "vqa" / f"{name.removeprefix('mscoco_')}.json", questions)
    _write_json(data_root / "lxmert" / "all_ans.json", [{"ans": answer, "dsets": ["vqa"]} for answer in ANSWERS])
    _write_json(data_root / "vqa" / "trainval_label2ans.json", ANSWERS)
    _write_json(data_root / "vqa" / "trainval_ans2label.json", {answer: row for row, answer in enumerate(ANSWERS)})
    _write_json(data_root / SIZES_FILE, sizes)
    write_bert(data_root / "bert", texts)


def _scenes(coco_split: str, count: int, seed: int) -> list[tuple[Scene, random.Random]]:
    """Each scene has a generator of its own, so that more scenes don't change the first ones."""
    generators = (random.Random(f"{seed}/{coco_split}/{number}") for number in range(count))
    return [(Scene.imagine(f"COCO_{coco_split}_{n:012d}", draw), draw) for n, draw in enumerate(generators)]


def _vqa_questions(annotations: Iterable[dict[str, Any]], first: int) -> list[dict[str, Any]]:
    """The questions of LXMERT's annotations as VQA has them; real pre-training has seen VQA's questions, too."""
    questions = []
    for number, item in enumerate(annotations):
        for index, (text, label) in enumerate(zip(item["sentf"]["vqa"], item["labelf"]["vqa"], strict=True)):
            questions.append(
                {
                    "question_id": first + 1000 * number + index,
                    "img_id": item["img_id"],
                    "sent": text,
                    "label": label,
                    "answer_type": "yes/no" if label.keys() & {"yes", "no"} else "other",
                    "question_type": " ".join(text.split()[:2]),
                }
            )
    return questions


def write_bert(folder: Path, texts: Iterable[str]) -> None:
    """A vocabulary of the texts' words and, for all others, of their characters; and a small encoder's configuration.

    It isn't trained: `tokenizers` would give it another order in each process, and models other random weights.
    """
    words = {word for text in texts for word in text.split()}
    characters = sorted({character for word in words for character in word})
    pieces = [*characters, *(f"##{character}" for character in characters), *sorted(words.difference(characters))]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join([*SPECIAL_TOKENS, *pieces]) + "\n")
    _write_json(folder / "config.json", {**BERT_CONFIG, "vocab_size": len(SPECIAL_TOKENS) + len(pieces)})


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
