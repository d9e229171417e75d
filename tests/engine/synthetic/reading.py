"""What the drawn questions and hypotheses say, read without the code that writes them."""

import re
from itertools import permutations, product

from engine.synthetic.scenes import COLORS, SHAPES, SIDES, SIZES, Scene, Thing

SIDE_OF = {"left of": "left", "right of": "right", "above": "top", "below": "bottom"}
CLAIM = re.compile(rf"the (.*\b(?:thing|{'|'.join(SHAPES)})) (?:a |at the )?(\w+)(?: and (\w+))?")
KINDS_OF_WORDS = {"<shape>": SHAPES, "<color>": COLORS, "<size>": SIZES, "<side>": ("left", "right", "top", "bottom")}


def words_of(thing: Thing) -> set[str]:
    return {thing.shape, thing.color, thing.size, thing.side, "thing"}


def fitting(phrase: str, scene: Scene) -> list[Thing]:
    """The things that a phrase fits, such as "small thing left of the ring" or "ring at the top"."""
    head, relation, anchor = match(rf"(.+?)(?: ({'|'.join(SIDE_OF)}) (?:the|a) (.+))?", phrase)
    things = [thing for thing in scene.things if set(head.replace(" at the ", " ").split()) <= words_of(thing)]
    if relation is None:
        return things
    anchors = fitting(anchor, scene)
    return [thing for thing in things if thing.side == SIDE_OF[relation] and any(thing != other for other in anchors)]


def the(phrase: str, scene: Scene) -> Thing:
    """Raises ValueError if there isn't exactly one."""
    (thing,) = fitting(phrase, scene)
    return thing


def answer(question: str, scene: Scene) -> str:
    """Raises ValueError if the question takes for granted what isn't so."""
    words = question.removesuffix(" ?")
    if words.startswith("what "):
        attribute, phrase = match(r"what (color|shape) is the (.+)", words)
        return str(getattr(the(phrase, scene), attribute))
    if words.startswith("of "):
        one, two, word = match(r"of the (.+) and the (.+) what is (?:at the )?(.+)", words)
        (chosen,) = (thing for thing in (the(one, scene), the(two, scene)) if word in words_of(thing))
        return chosen.shape
    if words.startswith("is a "):
        return "yes" if fitting(words.removeprefix("is a "), scene) else "no"
    claims = [match(CLAIM, claim) for claim in re.split(" and (?=the )", words.removeprefix("is "))]
    so = [{*said} - {None} <= words_of(the(phrase, scene)) for phrase, *said in claims]
    return "yes" if all(so) else "no"


def label(hypothesis: str, scene: Scene) -> str:
    (shape,) = (shape for shape in SHAPES if shape in hypothesis.split())
    if shape not in (thing.shape for thing in scene.things):
        return "neutral"
    return "entailment" if fitting(hypothesis.removeprefix("a "), scene) else "contradiction"


def template(text: str) -> str:
    """The text with its shapes, colors, sizes and sides left open."""
    kinds = {word: kind for kind, words in KINDS_OF_WORDS.items() for word in words}
    kinds |= {"above": "<side> of", "below": "<side> of"}
    return " ".join(kinds.get(word, word) for word in text.split())


def all_scenes() -> list[Scene]:
    """Each that can be drawn, but for the measures of its image."""
    combinations = product(SIDES.values(), permutations(SHAPES, 2), permutations(COLORS, 2), product(SIZES, repeat=2))
    return [
        Scene("", 0, 0, tuple(map(Thing, shapes, colors, sizes, sides)))  # type: ignore[arg-type]
        for sides, shapes, colors, sizes in combinations
    ]


def match(pattern: str | re.Pattern[str], text: str) -> tuple[str, ...]:
    found = re.fullmatch(pattern, text)
    assert found, text
    return found.groups()
