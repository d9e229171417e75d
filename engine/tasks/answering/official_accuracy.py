"""VQA's official accuracy, from the rules of its published evaluation (https://visualqa.org/evaluation.html).

Where that page and the published code differ, this does as the code for VQA v2 does: GT-Vision-Lab/VQA, a013f004.

Each of the ten people's answers is left out once; an answer is worth the share of three people among the other nine who
gave it, at most 1; the accuracy is the mean over the ten. So 1, 2, 3 and 4 people make 0.3, 0.6, 0.9 and 1.

Questions are averaged unrounded; only the figures that the published code reports (per cent) have two decimals.
"""

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
# The published pattern means to spare a full stop behind a digit, too, but says it wrongly; this is what it does.
FULL_STOP = re.compile(r"\.(?!\d)")
MOST_FULL_STOPS = 32  # the published code passes a flag, which is 32, where the number of replacements is asked for
NUMBERS = {
    "none": "0",
    **{
        word: str(number)
        for number, word in enumerate(
            ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
        )
    },
}
ARTICLES = ("a", "an", "the")
WHOLE = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't mightn't've must've mustn't needn't not've o'clock
oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd
someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're there's
they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've when's
where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't wouldn't've
y'all y'all'd've y'all'll you'd you'd've you'll you're you've I'd've I'm I've
"""
# A contraction that lacks one of its apostrophes gets it back. Oddities of the published table, kept: one entry takes
# the apostrophe away, two change nothing, and those with a capital I never meet a lower-case word.
CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in WHOLE.split()
    for place, letter in enumerate(word)
    if letter == "'"
} | {"somebody'd": "somebodyd", "let's": "let's", "she's": "she's"}


def trim(answer: str) -> str:
    """Spaces for line breaks and tabs, and none at the ends."""
    return answer.replace("\n", " ").replace("\t", " ").strip()


def normalise(answer: str) -> str:
    """An answer as it is compared where people's answers differ.

    1. Spaces for line breaks and tabs, none at the ends.
    2. A punctuation mark is removed if it stands beside a space somewhere in the answer, or if there is a comma between
       two digits; else it becomes a space. A full stop is removed unless a digit follows. Apostrophes and colons stay.
    3. Lower case, digits for number words up to ten and for "none", no articles, contractions with their apostrophe.
    """
    answer = trim(answer)
    in_number = COMMA_IN_NUMBER.search(answer) is not None
    text = answer
    for mark in PUNCTUATION:
        removed = in_number or f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if removed else " ")
    text = FULL_STOP.sub("", text, count=MOST_FULL_STOPS)
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def accuracy(answer: str, human_answers: Sequence[str]) -> float:
    """The official accuracy of one answer, from 0 to 1 and not rounded.

    All answers are trimmed. Only if people's then differ are theirs and this one normalised: where all wrote "red",
    "Red." is wrong. That is the code for VQA v2; its older versions always normalised this answer, but of people's
    answers only the punctuation, and that where they differ.

    Raises:
        ValueError: without human answers.
    """
    if not human_answers:
        raise ValueError("no human answers")
    answer, *given = (trim(text) for text in (answer, *human_answers))
    if len(set(given)) > 1:
        answer, *given = (normalise(text) for text in (answer, *given))
    same = given.count(answer)
    by_others = [min(1.0, (same - (text == answer)) / 3) for text in given]
    return sum(by_others) / len(by_others)
