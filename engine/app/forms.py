"""The three things that can be asked about a photo, and what is told of a reading."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from PIL import Image

from engine.app.upload import Refusal, check_photo

if TYPE_CHECKING:
    from engine.inference.pretrained import Pretrained
    from engine.inference.reading import Reading

MASK = "[MASK]"


@dataclass(frozen=True)
class Form:
    """A part of the page. Its ability is its name and its address, too."""

    ability: str
    title: str
    label: str
    example: str
    button: str
    missing: str  # why no model can do it, and what to do


FORMS = (
    Form(
        ability="answer",
        title="Ask a question",
        label="Question",
        example="What is the dog holding?",
        button="Ask",
        missing="No model is loaded that has learnt to answer questions. Give one as well, such as "
        "--load snap/pretrain/NAME/Epoch09,snap/vqa/NAME/BEST.",
    ),
    Form(
        ability="fill_mask",
        title="Fill in missing words",
        label=f"Sentence, with {MASK} in the place of a word",
        example="A dog is holding a [MASK] in its mouth.",
        button="Fill in",
        missing="No model is loaded that can guess words: fine-tuning doesn't keep what pre-training has learnt for "
        "that. Give a checkpoint of a pre-training as well, such as "
        "--load snap/vqa/NAME/BEST,snap/pretrain/NAME/Epoch09.",
    ),
    Form(
        ability="match",
        title="Compare with a caption",
        label="Caption",
        example="A dog runs across a meadow.",
        button="Compare",
        missing="No model is loaded that can tell whether a caption belongs to a photo: fine-tuning doesn't keep what "
        "pre-training has learnt for that. Give a checkpoint of a pre-training as well, such as "
        "--load snap/vqa/NAME/BEST,snap/pretrain/NAME/Epoch09.",
    ),
)


def model_for(form: Form, models: Sequence["Pretrained"]) -> "Pretrained | None":
    """The first one that can do it."""
    return next((model for model in models if form.ability in model.abilities), None)


def reply(form: Form, model: "Pretrained", photo: bytes, text: str, *, top_k: int, max_pixels: int) -> dict[str, Any]:
    """What the page shows: tables of texts with their probabilities, the photo as the model sees it, and its cells.

    Raises:
        Refusal: if the photo is none, or too large, or there is no [MASK] to fill in.
        UserError: if the photo is damaged.
    """
    if form.ability == "fill_mask" and MASK not in text:
        raise Refusal(422, f"put {MASK} in the place of the word to guess")
    check_photo(photo, max_pixels)
    [reading] = model.read(photo, text)
    return {
        "tables": _tables(form, reading, top_k),
        "note": reading.note,
        "grid": reading.grid,
        "cells": reading.cells.tolist(),
        "picture": _data_uri(Image.fromarray(reading.pixels)),
    }


def _tables(form: Form, reading: "Reading", top_k: int) -> list[dict[str, Any]]:
    if form.ability == "answer":
        return [{"title": "", "rows": reading.answers(top_k)}]
    if form.ability == "match":
        assert reading.matched is not None
        return [{"title": "", "rows": [("they belong together", reading.matched)]}]
    guesses = reading.guesses(top_k)
    if not guesses:
        raise Refusal(422, f"{MASK} stands behind what the model reads of a sentence; write a shorter one")
    if len(guesses) == 1:
        return [{"title": "", "rows": guesses[0]}]
    return [{"title": f"{MASK} {number}", "rows": rows} for number, rows in enumerate(guesses, start=1)]


def _data_uri(picture: Image.Image) -> str:
    png = io.BytesIO()
    picture.save(png, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
