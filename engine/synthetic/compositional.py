"""GQA's files for the drawn scenes: questions of several steps, of which the words alone tell nothing.

What is asked of a thing is never said of the other one, since the two differ in shape and color. A question to answer
with yes or no is right or has one thing wrong, each half of the time.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from engine.data.annotations.answers import ANSWER_LIST, ANSWER_ROWS
from engine.data.annotations.questions.gqa import GqaFile
from engine.data.annotations.questions.official_gqa import OFFICIAL_FOLDER, write_gqa_files
from engine.data.images.places import GQA
from engine.files import write_json
from engine.synthetic.scenes import COLORS, SHAPES, Scene, Thing, link_pictures, mentioned

Fact = tuple[Thing | None, str]  # an attribute of a thing; its side tells that of the other one, so it is nobody's
Record = dict[str, Any]


@dataclass(frozen=True)
class Kind:
    """A kind of question about a thing, the other one, and that of the two which has to be chosen."""

    structural: str
    semantic: str
    detailed: str
    asked: str  # what settles the answer
    question: str
    statement: str  # what is true, for the full answer
    program: str


QUERIES = (
    Kind(
        *("query", "attr", "directOf", "{thing.color}"),
        "what color is the thing {thing.relation} the {other.shape} ?",
        "the thing {thing.relation} the {other.shape} is {thing.color}",
        "select: {other.shape}->relate: thing,{thing.relation},s [0]->query: color [1]",
    ),
    Kind(
        *("query", "attr", "directOf", "{thing.color}"),
        "what color is the {thing.size} thing {thing.relation} the {other.shape} ?",
        "the {thing.size} thing {thing.relation} the {other.shape} is {thing.color}",
        "select: {other.shape}->relate: thing,{thing.relation},s [0]->filter size: {thing.size} [1]->query: color [2]",
    ),
    Kind(
        *("query", "rel", "categoryRelS", "{thing.shape}"),
        "what shape is the thing {thing.relation} the {other.color} thing ?",
        "the thing {thing.relation} the {other.color} thing is a {thing.shape}",
        "select: thing->filter color: {other.color} [0]->relate: thing,{thing.relation},s [1]->query: shape [2]",
    ),
    Kind(
        *("query", "rel", "categoryRelS", "{thing.shape}"),
        "what shape is the {thing.size} thing {thing.relation} the {other.color} thing ?",
        "the {thing.size} thing {thing.relation} the {other.color} thing is a {thing.shape}",
        "select: thing->filter color: {other.color} [0]->relate: thing,{thing.relation},s [1]"
        "->filter size: {thing.size} [2]->query: shape [3]",
    ),
)
CHOICES = (
    Kind(
        *("choose", "attr", "chooseAttr", "{chosen.color}"),
        "of the {thing.shape} and the {other.shape} what is {chosen.color} ?",
        "the {chosen.shape} is {chosen.color}",
        "select: {thing.shape}->select: {other.shape}->choose color: {chosen.color} [0, 1]",
    ),
    Kind(
        *("choose", "rel", "chooseRel", "{chosen.side}"),
        "of the {thing.shape} and the {other.shape} what is at the {chosen.side} ?",
        "the {chosen.shape} is at the {chosen.side}",
        "select: {thing.shape}->select: {other.shape}->choose side: {chosen.side} [0, 1]",
    ),
)
COMPARISONS = (  # of things that differ in size
    Kind(
        *("compare", "attr", "comparativeChoose", "{thing.size} {other.size}"),
        "of the {thing.shape} and the {other.shape} what is {chosen.size} ?",
        "the {chosen.shape} is {chosen.size}",
        "select: {thing.shape}->select: {other.shape}->choose size: {chosen.size} [0, 1]",
    ),
)
CHECKS = (
    Kind(
        *("verify", "attr", "verifyAttr", "{thing.color}"),
        "is the thing {thing.relation} the {other.shape} {thing.color} ?",
        "the thing {thing.relation} the {other.shape} is {thing.color}",
        "select: {other.shape}->relate: thing,{thing.relation},s [0]->verify color: {thing.color} [1]",
    ),
    Kind(
        *("verify", "rel", "verifyRelS", "{thing.shape}"),
        "is the thing {thing.relation} the {other.color} thing a {thing.shape} ?",
        "the thing {thing.relation} the {other.color} thing is a {thing.shape}",
        "select: thing->filter color: {other.color} [0]->relate: thing,{thing.relation},s [1]"
        "->verify shape: {thing.shape} [2]",
    ),
    Kind(
        *("verify", "obj", "existAttrRelS", "{thing.size} {thing.color} {thing.side}"),
        "is a {thing.size} {thing.color} thing {thing.relation} the {other.shape} ?",
        "a {thing.size} {thing.color} thing is {thing.relation} the {other.shape}",
        "select: {other.shape}->relate: thing,{thing.relation},s [0]->filter size: {thing.size} [1]"
        "->filter color: {thing.color} [2]->exist: ? [3]",
    ),
    Kind(
        *("logical", "attr", "verifyAttrAnd", "{thing.size} {thing.color}"),
        "is the thing {thing.relation} the {other.shape} {thing.size} and {thing.color} ?",
        "the thing {thing.relation} the {other.shape} is {thing.size} and {thing.color}",
        "select: {other.shape}->relate: thing,{thing.relation},s [0]->verify size: {thing.size} [1]"
        "->verify color: {thing.color} [1]->and: ? [2, 3]",
    ),
    Kind(
        *("logical", "obj", "verifyTwoAnd", "{thing.color} {other.size}"),
        "is the {thing.shape} {thing.color} and the {other.shape} {other.size} ?",
        "the {thing.shape} is {thing.color} and the {other.shape} is {other.size}",
        "select: {thing.shape}->verify color: {thing.color} [0]->select: {other.shape}"
        "->verify size: {other.size} [2]->and: ? [1, 3]",
    ),
)


@dataclass(frozen=True)
class Question:
    """A question about a scene, with its answer."""

    kind: Kind
    text: str
    answer: str
    statement: str
    program: str
    options: tuple[str, ...]  # for the answer
    given: set[Fact]  # what it takes for granted
    asked: set[Fact]  # what settles the answer beside that

    def entails(self, other: "Question") -> bool:
        """Whether its answer tells the other's. A no doesn't tell what is so instead."""
        told = self.given if self.answer == "no" else self.given | self.asked
        return self is not other and other.given | other.asked <= told

    def record(self, image_id: str, question_id: str, entailed: list[str]) -> Record:
        """As GQA has it, but with no words tied to regions."""
        about = "color" if self.answer in COLORS else "shape" if self.answer in SHAPES else None
        steps = [_step(step) for step in self.program.split("->")]
        return {
            "imageId": image_id,
            "question": self.text,
            "answer": self.answer,
            "fullAnswer": (self.statement if about else f"{self.answer}, {self.statement}").capitalize() + ".",
            "isBalanced": True,
            "groups": {"global": about, "local": f"{self.kind.detailed}-{steps[0]['argument']}"},
            "entailed": entailed,
            "equivalent": [question_id],
            "types": {name: getattr(self.kind, name) for name in ("structural", "semantic", "detailed")},
            "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
            "semantic": steps,
            "semanticStr": self.program,
        }


def _step(step: str) -> Record:
    """One of a program, such as "query: color [1]"."""
    operation, argument, needed = re.findall(r"(.+?): (.+?)(?: \[(.+)\])?$", step)[0]
    return {"operation": operation, "argument": argument, "dependencies": [int(n) for n in needed.split(",") if n]}


def ask(kind: Kind, thing: Thing, other: Thing, draw: random.Random) -> Question:
    """A question of a kind about two things of a scene."""
    true = {"thing": thing, "other": other, "chosen": draw.choice((thing, other))}
    said, asked = dict(true), mentioned(kind.asked)
    given = set(mentioned(kind.question)).difference(asked)
    role, attribute = draw.choice(asked)
    options: tuple[str, ...]
    if kind.structural == "query":
        options, answer = tuple(COLORS if attribute == "color" else SHAPES), getattr(thing, attribute)
    elif kind.structural in ("choose", "compare"):
        options, answer = (thing.shape, other.shape), true["chosen"].shape
    else:
        options = ("yes", "no")
        answer = draw.choice(options)
        if answer == "no":
            said[role], asked = said[role].but(attribute, draw), ((role, attribute),)
    return Question(
        kind,
        kind.question.format(**said),
        answer,
        kind.statement.format(**true),
        kind.program.format(**said),
        options,
        *({(true[role] if name != "side" else None, name) for role, name in fields} for fields in (given, asked)),
    )


def ask_all(scene: Scene, draw: random.Random, number: int = 2) -> list[Question]:
    """Up to four questions: about each thing, what color or shape it has, and what is to be checked or chosen."""
    thing, other = draw.sample(scene.things, 2)
    others = (*CHECKS, *CHOICES, *(COMPARISONS if thing.size != other.size else ()))
    pairs = ((thing, other), (other, thing))
    asked = (ask(draw.choice(kinds), *pair, draw) for pair in pairs for kinds in (QUERIES, others))
    return list(islice(asked, number))


def write_gqa(
    data_root: Path, training: Sequence[Scene], held_out: Sequence[Scene], *, seed: int, number: int = 2
) -> None:
    """Write GQA's official files, what `prepare.py gqa` makes of them, and show the scenes in its folder of images.

    The last tenth of the training scenes are `val`, the held-out ones `testdev`.

    Args:
        number: questions about each scene, up to four.
    """
    known = [(str(2_300_000 + row), f"0{row:06d}", scene) for row, scene in enumerate(training)]
    unseen = [(f"n{row}", f"2{row:06d}", scene) for row, scene in enumerate(held_out)]
    link_pictures(data_root, {f"{GQA}:{image_id}": scene for image_id, _, scene in known + unseen})
    official = data_root / OFFICIAL_FOLDER
    first_valid = max(1, 9 * len(known) // 10)
    for split, images in (("train", known[:first_valid]), ("val", known[first_valid:]), ("testdev", unseen)):
        records, choices = {}, {}
        for image_id, digits, scene in images:
            asked = ask_all(scene, random.Random(f"{seed}/gqa/{scene.img_id}"), number)
            named = {f"{digits}{place}": question for place, question in enumerate(asked)}
            for name, question in named.items():
                entailed = [other for other, follows in named.items() if question.entails(follows)]
                records[name] = question.record(image_id, name, entailed)
                choices[name] = {"valid": question.options, "plausible": question.options}
        write_json(official / f"{split}_balanced_questions.json", records)
        if split != "train":
            write_json(official / f"{split}_choices.json", choices)
    public = ("imageId", "question", "isBalanced")
    hidden = {name: {field: record[field] for field in public} for name, record in records.items()}
    write_json(official / "submission_all_questions.json", hidden)
    for name in (ANSWER_LIST, ANSWER_ROWS):
        (data_root / GqaFile.folder / name).unlink(missing_ok=True)  # of scenes that were drawn before
    write_gqa_files(data_root / GqaFile.folder, official, force=True)
