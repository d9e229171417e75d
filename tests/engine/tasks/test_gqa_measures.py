"""GQA's official measures: a few questions worked out by hand, drawn ones beside NumPy, and files that are broken."""

import json
import random

import numpy as np
import pytest

from engine.errors import UserError
from engine.tasks.answering.gqa_measures import OfficialGqa, official_table


def question(answer, structural="query", kind="attr", group=None, entailed=(), detailed="color", **more):
    return {
        "imageId": "n1",
        "question": "What color is it?",
        "answer": answer,
        "isBalanced": True,
        "groups": {"global": group, "local": "13-it"},
        "entailed": list(entailed),
        "types": {"structural": structural, "semantic": kind, "detailed": detailed},
        "semantic": [{"operation": "select", "argument": "it (1)", "dependencies": []}],
        **more,
    }


def steps(*operations):
    return [dict(zip(("operation", "argument"), operation.split(": "), strict=True)) for operation in operations]


QUESTIONS = {
    "001": question("red", group="color", entailed=["001", "002", "9"], semantic=steps("select: it", "query: color")),
    "002": question("yes", "verify", "obj", entailed=["001"], question="Is it   a red\tthing?"),
    "003": question("blue", group="color", semantic=steps("select: it", "relate: on", "query: name")),
    "004": question("red", group="color", semantic=steps("select: it", "exist: ?")),
    "005": question("color", "compare", detailed="twoCommon", semantic=steps("common: c")),
    "006": question("wood", "choose", group="material", semantic=steps("choose name: a|b", "select: existing")),
    "9": question("no", "verify", isBalanced=False),
}
CHOICES = {
    "001": {"valid": ["red", "blue"], "plausible": ["red"]},
    "002": {"valid": ["yes", "no"], "plausible": ["yes", "no"]},
    "003": {"valid": ["red", "blue"], "plausible": ["blue"]},
    "004": {"valid": ["red", "blue"], "plausible": ["red"]},
    "005": {"valid": ["yes"], "plausible": []},
    "006": {"valid": ["wood", "metal"], "plausible": ["wood"]},
}
PREDICTED = {"001": "red", "002": "no", "003": "red", "004": "sky", "005": "shape", "006": "wood", "9": "no", "x": ""}


def write(path, content):
    path.write_text(json.dumps(content))
    return path


def read(folder, questions=QUESTIONS, choices=CHOICES):
    choices_files = [] if choices is None else [write(folder / "choices.json", choices)]
    return OfficialGqa.read([write(folder / "questions.json", questions)], choices_files)


def without(name, questions=QUESTIONS):
    """No question has this field."""
    return {number: {key: value for key, value in q.items() if key != name} for number, q in questions.items()}


def test_measures_worked_out_by_hand(tmp_path):
    """Right are 001 and 006, of six."""
    found = read(tmp_path).measure(PREDICTED)
    assert found == {
        "accuracy": pytest.approx(2 / 6),
        "binary": pytest.approx(1 / 3),  # 002, 005 and 006; the last is right
        "open": pytest.approx(1 / 3),  # 001, 003 and 004; the first is right
        "validity": pytest.approx(5 / 6),  # "sky" is not; "shape" is, whatever the file says of 005
        "plausibility": pytest.approx(4 / 6),  # nor is "red" for 003
        "consistency": 0.5,  # of 001, the only one that is right and entails others: 9 is right, 002 is not
        # color: 2 red and 1 blue are the answers; red was predicted twice, blue never: (0 / 2 + 1 / 1) = 1, for three
        # questions. material: 0, for one. (3 x 1 + 1 x 0) / 4 / 100
        "distribution": pytest.approx(0.75 / 100),
        "structural_type": {
            "choose": {"accuracy": 1.0, "questions": 1},
            "compare": {"accuracy": 0.0, "questions": 1},
            "query": {"accuracy": pytest.approx(1 / 3), "questions": 3},
            "verify": {"accuracy": 0.0, "questions": 1},
        },
        "semantic_type": {
            "attr": {"accuracy": pytest.approx(2 / 5), "questions": 5},
            "obj": {"accuracy": 0.0, "questions": 1},
        },
        "words": {
            "4": {"accuracy": pytest.approx(2 / 5), "questions": 5},
            "5": {"accuracy": 0.0, "questions": 1},
        },
        "steps": {
            "0": {"accuracy": 1.0, "questions": 1},  # 006: "existing" has "exist" in it, and counts no more than it
            "1": {"accuracy": 0.0, "questions": 3},  # 002; 004 without its exist; 005
            "2": {"accuracy": pytest.approx(1 / 2), "questions": 2},  # 001; 003 without "query: name"
        },
        "questions": 6,
    }
    assert json.loads(json.dumps(found)) == found


def test_all_right_is_one_and_no_distance(tmp_path):
    found = read(tmp_path).measure({number: q["answer"] for number, q in QUESTIONS.items()})
    shares = ("accuracy", "binary", "open", "validity", "plausibility", "consistency")
    assert [found[name] for name in shares] == [1.0] * 6
    assert found["distribution"] == 0.0


def test_several_files_are_one_split(tmp_path):
    balanced = {number: q for number, q in QUESTIONS.items() if q["isBalanced"]}
    files = [write(tmp_path / f"{name}.json", q) for name, q in (("balanced", balanced), ("all", QUESTIONS))]
    halves = [write(tmp_path / f"{n}.json", dict(list(CHOICES.items())[n::2])) for n in (0, 1)]
    together = OfficialGqa.read(files, halves)
    assert together.measure(PREDICTED) == read(tmp_path).measure(PREDICTED)


def test_drawn_answers_beside_numpy(tmp_path):
    """Sums of the same terms in another order: each of at most 1e5 additions rounds by 1.1e-16 of the sum, 1e-11."""
    draw = random.Random(0)
    names = list("abcd")
    ids = [f"{n:05d}" for n in range(400)]
    questions = {
        number: question(
            draw.choice(names),
            draw.choice(["query", "verify", "logical"]),
            group=draw.choice(["g", "h", "i", None]),
            entailed=draw.sample(ids, draw.randrange(4)),
            isBalanced=draw.random() < 0.7,
        )
        for number in ids
    }
    choices = {n: {kind: draw.sample(names, 3) for kind in ("valid", "plausible")} for n in ids}
    predictions = {number: draw.choice(names) for number in ids}
    found = read(tmp_path, questions, choices).measure(predictions)

    every = list(questions.values())
    gold, told = np.array([q["answer"] for q in every]), np.array(list(predictions.values()))
    balanced, right = np.array([q["isBalanced"] for q in every]), gold == told
    is_open = np.array([q["types"]["structural"] == "query" for q in every])
    group = np.array([q["groups"]["global"] or "" for q in every])
    entails = np.array([[other in q["entailed"] and other != n for other in ids] for n, q in questions.items()])
    asked = balanced & right & entails.any(axis=1)
    plausible = np.array([predictions[number] in entry["plausible"] for number, entry in choices.items()])
    members = [balanced & (group == name) for name in "ghi"]
    counts = np.array([[[(x[m] == a).sum() for a in names] for x in (told, gold)] for m in members], dtype=float)
    chi_square = ((counts[:, 0] - counts[:, 1]) ** 2 / counts[:, 1]).sum(axis=1)  # each group has each answer
    expected = {
        "accuracy": right[balanced].mean(),
        "binary": right[balanced & ~is_open].mean(),
        "open": right[balanced & is_open].mean(),
        "plausibility": plausible[balanced].mean(),
        "consistency": ((entails @ right.astype(float))[asked] / entails.sum(axis=1)[asked]).mean(),
        "distribution": np.average(chi_square, weights=counts[:, 1].sum(axis=1)) / 100,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-11)
    assert found["questions"] == balanced.sum()
    assert 0 < found["consistency"] < 1


# --- what can't be measured


@pytest.mark.parametrize("lack", ["prediction", "question"])
def test_consistency_needs_what_is_entailed(tmp_path, lack):
    questions = {n: q for n, q in QUESTIONS.items() if n != "9"} if lack == "question" else QUESTIONS
    predictions = {n: a for n, a in PREDICTED.items() if n != "9"} if lack == "prediction" else PREDICTED
    found = read(tmp_path, questions).measure(predictions)
    assert "consistency" not in found
    assert list(found["left_out"]) == ["consistency"]
    assert found["left_out"]["consistency"].startswith("1 entailed questions are not in the question files or have no ")
    assert "predict all" in found["left_out"]["consistency"]


def test_what_a_wrong_answer_entails_need_not_be_known(tmp_path):
    """As in the published code."""
    found = read(tmp_path, {**QUESTIONS, "007": question("a", entailed=["8"])}, None).measure({**PREDICTED, "007": "b"})
    assert found["consistency"] == 0.5


def test_without_choices(tmp_path):
    found = read(tmp_path, choices=None).measure(PREDICTED)
    assert found["left_out"] == dict.fromkeys(("validity", "plausibility"), "no choices files are given")
    assert not {"validity", "plausibility"} & found.keys()


@pytest.mark.parametrize(
    ("field", "measures"),
    [
        ("types", {"binary", "open", "validity", "plausibility", "structural_type", "semantic_type"}),
        ("groups", {"distribution"}),
        ("entailed", {"consistency"}),
        ("question", {"words"}),
        ("semantic", {"steps"}),
        ("imageId", set()),
    ],
)
def test_a_field_that_lacks_takes_its_measures_along(tmp_path, field, measures):
    whole = read(tmp_path).measure(PREDICTED)
    found = read(tmp_path, without(field)).measure(PREDICTED)
    assert set(found.get("left_out", ())) == measures
    assert all(reason == f"question 001 has no field '{field}'" for reason in found.get("left_out", {}).values())
    assert {name: value for name, value in found.items() if name != "left_out"} == {
        name: value for name, value in whole.items() if name not in measures
    }


def test_an_average_of_nothing_is_no_zero(tmp_path):
    found = read(tmp_path, {"1": question("red")}, {"1": {"valid": [], "plausible": []}}).measure({"1": "red"})
    assert found["left_out"] == dict.fromkeys(
        ("binary", "consistency", "distribution"), "it is about none of the questions"
    )


def test_the_table_shows_per_cent():
    measures = {
        **{"accuracy": 0.5, "binary": 0.25, "validity": 1.0, "distribution": 1.5, "questions": 1234},
        "structural_type": {"query": {"accuracy": 2 / 3, "questions": 1000}},
        "left_out": {"consistency": "no file", "semantic_type": "no field"},
    }
    assert [" ".join(line.split()) for line in official_table(measures).splitlines()] == [
        "questions accuracy",
        "all 1,234 50.00",
        "structural type",
        "query 1,000 66.67",
        "official measures",
        "binary 25.00",
        "validity 100.00",
        "distribution (lower is better) 1.50",
        "no consistency: no file",
        "no semantic type: no field",
    ]


# --- what is no such file


def test_a_balanced_question_without_a_prediction(tmp_path):
    with pytest.raises(
        UserError, match=r"^2 of 6 balanced questions of \S+questions.json have .* the first is 003; pre"
    ):
        read(tmp_path).measure({n: a for n, a in PREDICTED.items() if n not in ("003", "005")})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 3}, "the field 'answer' is int, not str"),
        ({"isBalanced": "yes"}, "the field 'isBalanced' is str, not bool"),
        ({"types": []}, "the field 'types' is list, not dict"),
        ({"types": {"structural": "query", "semantic": "attr"}}, "the field 'detailed' is missing"),
        ({"groups": {}}, "the field 'global' is missing"),
        ({"groups": {"global": 4}}, "'groups': the name of the global group, or null"),
        ({"entailed": [7]}, "'entailed': a list of question ids"),
        ({"question": None}, "the field 'question' is NoneType, not str"),
        ({"semantic": ["select"]}, "the field 'operation' is missing"),
    ],
)
def test_a_broken_question_is_named(tmp_path, change, message):
    questions = {**QUESTIONS, "0077": {**question("red"), **change}}
    with pytest.raises(UserError, match=f"questions.json, question 0077: {message}.*; download the file again$"):
        read(tmp_path, questions)
    if "answer" not in change and "isBalanced" not in change:  # of others, the answer alone is needed
        read(tmp_path, {**QUESTIONS, "0077": {**questions["0077"], "isBalanced": False}})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"valid": ["red"]}, "the field 'plausible' is missing"),
        ({"valid": "red", "plausible": []}, "the field 'valid' is str, not list"),
        ({"valid": [["red"]], "plausible": []}, "'valid': a list of answers was expected"),
        (["red"], "the field 'valid' is missing"),
    ],
)
def test_broken_choices_are_named(tmp_path, entry, message):
    with pytest.raises(UserError, match=f"choices.json, question 003: {message}"):
        read(tmp_path, choices={**CHOICES, "003": entry})


def test_other_files_are_told(tmp_path):
    with pytest.raises(UserError, match=r"there is no balanced question"):
        read(tmp_path, {"9": QUESTIONS["9"]})
    with pytest.raises(
        UserError, match=r"^5 of 6 balanced questions .* no choices in \S+choices.json, the first is 002"
    ):
        read(tmp_path, choices={"001": CHOICES["001"], "x": CHOICES["002"]})
    with pytest.raises(UserError, match=r"questions.json: questions by their ids were expected, found list"):
        read(tmp_path, [QUESTIONS["001"]])
    with pytest.raises(UserError, match=r"nowhere.json is missing"):
        OfficialGqa.read([tmp_path / "nowhere.json"])
