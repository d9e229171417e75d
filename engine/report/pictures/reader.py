"""A run's model, and what it makes of examples."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np

from engine.checkpoint.manifest import BEST, LAST
from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.formats.table import places_of
from engine.data.images.decoding import UnreadableImage
from engine.data.images.folder import ImageSource
from engine.data.splits import open_images
from engine.errors import UserError
from engine.inference.pretrained import Pretrained, load_pretrained
from engine.inference.reading import Reading
from engine.progress import Bar
from engine.report.pictures.held_out import Example, HeldOut, read_config, read_held_out

MODELS = {BEST: "the model that scored highest in a validation", LAST: "the model at the end"}
LONGEST_SLUG = 80


class PictureOptions(Protocol):
    """What a report has been asked to show; the flags of the same names."""

    questions: int  # held-out examples, at most
    data_root: str | None  # where the data are now; None where the run had them
    batch_size: int
    seed: int


Some = TypeVar("Some", bound=Example)


class Reader:
    """A model and where its images are. Examples whose image can't be read are left out, and noted."""

    def __init__(self, run: Path, model: Pretrained, images: ImageSource, batch_size: int) -> None:
        self.model, self.images, self.batch_size = model, images, batch_size
        self.name = run.resolve().name
        self.slug = re.sub(r"[^\w-]+", "_", str(run)).strip("_")[-LONGEST_SLUG:]  # of the names of its pictures
        self.unreadable: dict[str, str] = {}  # why, by image
        self.has_read = False

    def read(self, examples: Sequence[Some], *, attention: bool = False) -> Iterator[tuple[Some, Reading]]:
        """Each example with what the model makes of it.

        Raises:
            UserError: if no image can be read at all.
        """
        name = f"{self.name}: held-out data"
        for start in Bar(range(0, len(examples), self.batch_size), desc=name, unit="batch", delay=2):
            batch = examples[start : start + self.batch_size]
            pairs = [(example, pixels) for example in batch if (pixels := self._load(example.img_id)) is not None]
            readings = self.model.read(
                [pixels for _, pixels in pairs],
                [example.sentence for example, _ in pairs],
                numbers=[example.number for example, _ in pairs],
                attention=attention,
                batch_size=self.batch_size,
            )
            yield from ((example, reading) for (example, _), reading in zip(pairs, readings, strict=True))
            self.has_read = self.has_read or bool(pairs)
        if examples and not self.has_read:
            raise UserError(
                f"none of its images can be read, the first is {next(iter(self.unreadable.values()))}; give the folder "
                "that they are in with --data_root"
            )

    def _load(self, img_id: str) -> np.ndarray | None:
        """uint8 (3, H, W) as in training, or None."""
        try:
            return self.images.load(img_id)
        except UnreadableImage as error:
            self.unreadable[img_id] = str(error)
            return None

    @property
    def told_model(self) -> str:
        """Which model it is, for the report."""
        name = Path(self.model.source).name
        return f"{name}, {MODELS[name]}," if name in MODELS else f"The checkpoint {name}"

    @property
    def told_unreadable(self) -> str:
        """A sentence for the report, or ""."""
        if not self.unreadable:
            return ""
        first = next(iter(self.unreadable.values()))
        return f" Left out are those of {len(self.unreadable):,} images that can't be read, the first is {first}."


def open_reader(folder: Path, config: PictureOptions) -> tuple[Reader, HeldOut]:
    """A run's model, as engine.checkpoint.manifest.best_or_newest chooses it, and a part of its validation split.

    Raises:
        UserError: if one of them is missing or can't be read, or the model's weights aren't numbers any more.
    """
    task, trained = read_config(folder)
    if config.data_root is not None:
        trained = replace(trained, data_root=config.data_root, image_store=None)
    model = load_pretrained(folder, seed=config.seed)
    model.task = model.task or task  # which older models don't tell
    if not all(parameter.isfinite().all() for parameter in model.network.parameters()):
        raise UserError(f"the weights of {model.source} are no finite numbers: its training has diverged")
    answers = AnswerTable(model.description.answers or [])
    held_out = read_held_out(task, trained, answers, most=config.questions, seed=config.seed)
    places = places_of(held_out.files)
    images = open_images(Path(trained.data_root), trained.image_store, model.shape, trained.image_decoder, places)
    return Reader(folder, model, images, config.batch_size), held_out
