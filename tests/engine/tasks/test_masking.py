import math
import random

import pytest

from engine.tasks.masking import IGNORE, mask_tokens, sample_answer

TOKEN, MASK, VOCABULARY = 1000, 100, 50  # apart from each other, so that each id tells where it came from


def mask(count, rate, seed=0):
    return mask_tokens([TOKEN] * count, random.Random(seed), rate=rate, mask_id=MASK, vocab_size=VOCABULARY)


def z_score(hits, trials, share):
    """How many standard deviations a binomial count is off. |z| > 4.5 has probability 7e-6."""
    return abs(hits - trials * share) / math.sqrt(trials * share * (1 - share))


def test_rate_of_chosen_tokens():
    _, labels = mask(40_000, 0.15)
    assert z_score(sum(label != IGNORE for label in labels), 40_000, 0.15) < 4.5


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        (lambda token: token == MASK, 0.8),
        (lambda token: token < VOCABULARY, 0.1),
        (lambda token: token == TOKEN, 0.1),
    ],
    ids=["mask", "random", "kept"],
)
def test_what_becomes_of_chosen_tokens(kind, share):
    masked, labels = mask(100_000, 0.15)
    chosen = [token for token, label in zip(masked, labels, strict=True) if label != IGNORE]
    assert z_score(sum(map(kind, chosen)), len(chosen), share) < 4.5


def test_any_vocabulary_entry_may_replace_a_token():
    masked, _ = mask(100_000, 0.15)
    # 1500 replacements over 50 entries: one is missing with probability 50 x 0.98^1500 = 3e-12.
    assert {token for token in masked if token < VOCABULARY} == set(range(VOCABULARY))


def test_labels_are_the_true_ids_where_chosen_and_unchosen_tokens_stay():
    tokens = list(range(200, 400))
    masked, labels = mask_tokens(tokens, random.Random(1), rate=0.5, mask_id=MASK, vocab_size=VOCABULARY)
    assert {label for label, token in zip(labels, tokens, strict=True) if label != token} == {IGNORE}
    assert [token for token, label in zip(masked, labels, strict=True) if label == IGNORE] == [
        token for token, label in zip(tokens, labels, strict=True) if label == IGNORE
    ]


def test_input_is_left_as_it_was():
    tokens = [TOKEN] * 20
    masked, _ = mask_tokens(tokens, random.Random(0), rate=1.0, mask_id=MASK, vocab_size=VOCABULARY)
    assert tokens == [TOKEN] * 20
    assert masked != tokens


def test_rate_zero_chooses_none_and_rate_one_all():
    assert mask(100, 0.0) == ([TOKEN] * 100, [IGNORE] * 100)
    assert mask(100, 1.0)[1] == [TOKEN] * 100


def test_no_tokens():
    assert mask(0, 0.15) == ([], [])


@pytest.mark.parametrize(
    ("label", "is_matched"),
    [(None, True), ({}, True), ({3: 1.0}, False)],
    ids=["caption", "no_known_answer", "swapped_text"],
)
def test_no_answer(label, is_matched):
    assert sample_answer(label, is_matched, random.Random(0)) == IGNORE


def test_single_answer_costs_no_draw():
    generator = random.Random(0)
    before = generator.getstate()
    assert sample_answer({3: 0.3}, True, generator) == 3
    assert generator.getstate() == before


def test_answers_come_in_proportion_to_their_scores():
    generator = random.Random(0)
    drawn = [sample_answer({3: 0.3, 7: 0.9}, True, generator) for _ in range(10_000)]
    assert set(drawn) == {3, 7}
    assert z_score(drawn.count(7), 10_000, 0.75) < 4.5
