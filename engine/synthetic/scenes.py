"""The world that is drawn: seeded scenes of two shapes, what is said of them, and their pictures."""

import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from engine.data.images.places import image_path, sizes_file
from engine.files import write_json

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


@dataclass(frozen=True)
class Thing:
    """One shape of a scene."""

    shape: str
    color: str
    size: str
    side: str

    def __str__(self) -> str:
        return f"{self.size} {self.color} {self.shape}"

    @property
    def relation(self) -> str:
        """Where it is, seen from the other thing."""
        return RELATIONS[self.side]

    def but(self, attribute: str, draw: random.Random) -> "Thing":
        """The same with one attribute wrong; a side becomes the opposite one."""
        value = getattr(self, attribute)
        values = next(values for values in (SHAPES, COLORS, SIZES, *SIDES.values()) if value in values)
        return replace(self, **{attribute: draw.choice([other for other in values if other != value])})


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
                f"a {first} {first.relation} a {second}",
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


def imagine_scenes(coco_split: str, count: int, seed: int) -> list[tuple[Scene, random.Random]]:
    """Each scene has a generator of its own, so that more scenes don't change the first ones."""
    generators = (random.Random(f"{seed}/{coco_split}/{number}") for number in range(count))
    return [(Scene.imagine(f"COCO_{coco_split}_{n:012d}", draw), draw) for n, draw in enumerate(generators)]


@cache
def mentioned(form: str) -> tuple[tuple[str, str], ...]:
    """What a form such as "is the {thing.shape} {thing.relation} it ?" speaks of: ("thing", "shape") and the side."""
    return tuple((role, name.replace("relation", "side")) for role, name in re.findall(r"\{(\w+)\.(\w+)\}", form))


def link_pictures(data_root: Path, scenes: Mapping[str, Scene]) -> None:
    """Give scenes' pictures the names that another data set has for them: as hard links, and in its file of sizes.

    Args:
        scenes: by the ids of that data set's images.
    """
    sizes = {}
    for img_id, scene in scenes.items():
        picture, other = data_root / image_path(scene.img_id), data_root / image_path(img_id)
        other.parent.mkdir(parents=True, exist_ok=True)
        other.unlink(missing_ok=True)
        try:
            other.hardlink_to(picture)
        except OSError:  # a file system without hard links
            shutil.copyfile(picture, other)
        sizes[f"data/{image_path(img_id).as_posix()}"] = (scene.height, scene.width)
    for file in {sizes_file(img_id) for img_id in scenes}:
        write_json(data_root / file, sizes)
