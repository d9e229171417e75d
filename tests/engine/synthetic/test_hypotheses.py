"""SNLI-VE's files of the drawn scenes: labels that are right, and that the words alone don't tell."""

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.synthetic.hypotheses import LABELS, UNDECIDED, lines_about
from engine.synthetic.scenes import COLORS, Scene, imagine_scenes
from tests.engine.synthetic.guessing import bound, guessed
from tests.engine.synthetic.reading import fitting, label, template

FIELDS = ["annotator_labels", "captionID", "gold_label", "pairID", "sentence1", "sentence2", "Flickr30K_ID"]
Line = dict[str, Any]


@pytest.fixture
def files(scenes: Path) -> dict[str, list[Line]]:
    paths = {split: scenes / f"snli_ve/snli_ve_{split}.jsonl" for split in ("train", "dev", "test")}
    return {split: [json.loads(line) for line in path.read_text().splitlines()] for split, path in paths.items()}


@pytest.fixture(scope="module")
def shown() -> dict[str, Scene]:
    """The scenes of `scenes`, by their names in Flickr30k."""
    training, held_out = imagine_scenes("train2014", 40, seed=1), imagine_scenes("val2014", 15, seed=1)
    named = {str(1_000_000 + row): scene for row, (scene, _) in enumerate(training)}
    return named | {str(2_000_000 + row): scene for row, (scene, _) in enumerate(held_out)}


@pytest.fixture(scope="module")
def drawn() -> list[list[Line]]:
    """Lines about 2,000 scenes that are not painted."""
    scenes = [scene for scene, _ in imagine_scenes("train2014", 2000, seed=2)]
    return [list(lines_about(scene, "1", random.Random(scene.img_id), undecided=UNDECIDED)) for scene in scenes]


def test_every_label_is_right(files: dict[str, list[Line]], shown: dict[str, Scene]) -> None:
    for line in (line for lines in files.values() for line in lines):
        scene = shown[line["Flickr30K_ID"]]
        assert line["gold_label"] in (label(line["sentence2"], scene), "-")
        caption = line["sentence1"].removeprefix("a ").split(" and ")[0]
        assert len(fitting(caption, scene)) == 1
        assert all(str(thing) in line["sentence1"] for thing in scene.things)


def test_each_scene_has_each_label_once(files: dict[str, list[Line]], shown: dict[str, Scene]) -> None:
    decided = Counter((line["Flickr30K_ID"], line["gold_label"]) for split in ("dev", "test") for line in files[split])
    assert decided == {(name, label): 1 for name in shown if name.startswith("2") for label in LABELS}


def test_splits_share_no_image(files: dict[str, list[Line]], shown: dict[str, Scene]) -> None:
    images = {split: {line["Flickr30K_ID"] for line in lines} for split, lines in files.items()}
    assert [len(names) for names in images.values()] == [40, 7, 8]
    assert set().union(*images.values()) == shown.keys()


def test_lines_are_those_of_snli_ve(files: dict[str, list[Line]]) -> None:
    everything = [line for lines in files.values() for line in lines]
    assert len({line["pairID"] for line in everything}) == len(everything) == 3 * 55
    for line in everything:
        assert list(line) == FIELDS
        assert line["captionID"].split("#")[0] == f"{line['Flickr30K_ID']}.jpg"
        caption, place = line["pairID"].rsplit("r", 1)
        assert caption == line["captionID"]
        assert line["gold_label"][0] in (place[-1], "-")


def test_few_lines_have_no_gold_label_and_no_majority(drawn: list[list[Line]]) -> None:
    """One in 500 of 6,000 is twelve, with a deviation of 3.5: four of them either way, and one at least."""
    undecided = [line for lines in drawn for line in lines if line["gold_label"] == "-"]
    assert 1 <= len(undecided) <= 12 + 4 * 3.5
    for line in undecided:
        votes = Counter(line["annotator_labels"])
        assert sorted(votes.values()) == [1, 2, 2]
    decided = [line for lines in drawn for line in lines if line["gold_label"] != "-"]
    assert all(line["annotator_labels"] == [line["gold_label"]] for line in decided)


@pytest.mark.parametrize("read", [str, template, lambda text: ""], ids=["exact text", "template", "no text"])
def test_words_alone_tell_nothing(drawn: list[list[Line]], read: Callable[[str], str]) -> None:
    pairs = [[(line["sentence2"], line["gold_label"]) for line in lines] for lines in drawn]
    assert guessed(pairs[:1000], pairs[1000:], read) < bound(1 / 3, scenes=1000)


def test_no_hypothesis_tells_the_colors_of_both_things(drawn: list[list[Line]]) -> None:
    """Since these differ, two that are the same would contradict every picture."""
    texts = [line["sentence2"].split() for lines in drawn for line in lines]
    assert max(sum(word in COLORS for word in words) for words in texts) == 1


def test_labels_come_in_every_order(drawn: list[list[Line]]) -> None:
    """Each of six orders has a sixth of 2,000 scenes, within four deviations of 16.7."""
    orders = Counter("".join(line["pairID"][-1] for line in lines) for lines in drawn)
    assert len(orders) == 6
    assert all(abs(count - 2000 / 6) < 4 * 16.7 for count in orders.values())


def test_more_hypotheses_of_each_label() -> None:
    ((scene, draw),) = imagine_scenes("train2014", 1, seed=2)
    several = list(lines_about(scene, "1", draw, of_each=3))
    assert Counter(line["gold_label"] for line in several) == dict.fromkeys(LABELS, 3)
    assert len({line["pairID"] for line in several}) == 9
    assert all(label(line["sentence2"], scene) == line["gold_label"] for line in several)
