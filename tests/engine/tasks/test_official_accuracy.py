"""Cases of the official accuracy, computed by hand."""

import pytest

from engine.tasks.answering.official_accuracy import CONTRACTIONS, accuracy, normalise


@pytest.mark.parametrize(
    ("people", "expected"),
    [
        (0, 0.0),
        (1, 0.3),  # (1 x 0 + 9 x 1/3) / 10: the one who said it is left out once
        (2, 0.6),  # (2 x 1/3 + 8 x 2/3) / 10
        (3, 0.9),  # (3 x 2/3 + 7 x 1) / 10
        (4, 1.0),  # (4 x 1 + 6 x 1) / 10
        (9, 1.0),
        (10, 1.0),
    ],
)
def test_each_person_is_left_out_once(people, expected):
    others = [f"other {n}" for n in range(10 - people)]
    assert accuracy("red", ["red"] * people + others) == pytest.approx(expected)


def test_other_numbers_of_people():
    assert accuracy("red", ["red"]) == 0.0  # nobody else said so
    assert accuracy("red", ["red", "blue"]) == pytest.approx((0 + 1 / 3) / 2)
    with pytest.raises(ValueError, match="no human answers"):
        accuracy("red", [])


def test_nothing_is_normalised_where_all_agree():
    assert accuracy("the red", ["the red"] * 10) == 1.0
    assert accuracy("red", ["the red"] * 10) == 0.0
    assert accuracy("Red", ["red"] * 10) == 0.0
    assert accuracy("", [""] * 10) == 1.0
    assert accuracy(" red\n", ["red\t"] * 10) == 1.0
    # Answers that differ at their ends only are the same, so the answer isn't normalised.
    assert accuracy("Red.", ["red", " red", *["red\n"] * 8]) == 0.0
    # One who differs, and all are normalised: 9 of 10 say red.
    assert accuracy("Red.", [*["the red"] * 9, "blue"]) == 1.0


def test_people_who_spell_differently_agree():
    """two, 2, Two. and "the two" are four people: 1."""
    people = ["two", "2", "Two.", "the two", *["three"] * 6]
    assert accuracy("2", people) == 1.0
    assert accuracy("two!", people) == 1.0
    assert accuracy("", people) == 0.0
    assert accuracy("the", ["a", "an", *["red"] * 8]) == pytest.approx(0.6)  # an empty answer, as of two people


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes", "yes"),
        ("yes.", "yes"),
        ("a dog", "dog"),
        ("an old the dog", "old dog"),
        ("a", ""),
        ("", ""),
        ("none", "0"),
        ("Zero", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("two dogs and one cat", "2 dogs and 1 cat"),
        ("3.5", "3.5"),  # a digit follows
        ("3. 5", "3 5"),
        ("v.2", "v.2"),
        ("5.", "5"),  # behind a digit, too: the published pattern doesn't spare it
        ("u.s.a.", "usa"),
        ("t-shirt", "t shirt"),  # no space beside the hyphen: it becomes one
        ("t - shirt", "t shirt"),  # beside a space it is removed
        ("t -shirt", "t shirt"),
        ("red/white", "red white"),
        ("red /white-blue", "red white blue"),
        ("1,000", "1000"),  # a comma in a number removes every mark
        ("1,000-2,000", "10002000"),
        ("red, white", "red white"),
        ("red,white", "red white"),
        ("what?!", "what"),
        ("(left)", "left"),
        ("dont", "don't"),
        ("don't", "don't"),
        ("it's", "it's"),
        ("twas", "'twas"),
        ("couldntve", "couldntve"),  # both apostrophes lacking: not in the table
        ("couldn'tve", "couldn't've"),
        ("couldnt've", "couldn't've"),
        ("ow's'at", "'ow's'at"),
        ("somebody'd", "somebodyd"),  # the published table's own slip
        ("somebodyd", "somebodyd"),
        ("Im", "im"),  # its entries with a capital I never meet a lower-case word
        ("o'clock", "o'clock"),
        ("10 oclock", "10 o'clock"),
        ("café ; bar", "café bar"),
        ("CAFÉ", "café"),
        ("x\u00a0-y-z", "x y z"),  # a no-break space parts words, but the hyphen isn't beside a space
        ("2 x 4", "2 x 4"),
        ("2:50 pm", "2:50 pm"),  # a colon stays
        ("\n1,000\tred ", "1000 red"),
        ("t-shirt- ", "t shirt"),  # no space beside the last hyphen: the ends go first
        ("red\n-blue-green", "red bluegreen"),  # the line break is a space, so both hyphens are removed
        ("red\t-blue-green", "red bluegreen"),
        ("red- blue-green", "red bluegreen"),
        ("x;-y-z", "x y z"),  # spaces that other marks leave don't count
        ("x-;y-z", "x y z"),
        ("-5", "5"),
        ("-5 -6-7", "5 67"),
        (". " * 33 + "x", ". x"),  # no more than 32 full stops go
    ],
)
def test_normalisation(answer, expected):
    assert normalise(answer) == expected


def test_the_table_of_contractions_is_the_published_one():
    """120 entries; compared one by one with the published table when this was written."""
    assert len(CONTRACTIONS) == 120
    assert {word for word, whole in CONTRACTIONS.items() if word == whole} == {"let's", "she's"}
    assert {word for word in CONTRACTIONS if word != word.lower()} == {"Id've", "I'dve", "Im", "Ive"}
    # Each entry but the oddities lacks one apostrophe of what it becomes.
    odd = {"let's", "she's", "somebody'd"}
    assert all(len(whole) == len(word) + 1 for word, whole in CONTRACTIONS.items() if word not in odd)
    assert all(whole.replace("'", "") == word.replace("'", "") for word, whole in CONTRACTIONS.items())
    assert CONTRACTIONS["y'alld've"] == CONTRACTIONS["yall'd've"] == CONTRACTIONS["y'all'dve"] == "y'all'd've"
    assert CONTRACTIONS["someonell"] == "someone'll"
    # Not in it, though one could expect them.
    assert not CONTRACTIONS.keys() & {"lets", "shes", "its", "ill", "id", "well", "were", "yalldve", "mustntve"}
