import math
import random

import numpy as np
import pytest

from engine.tasks.masking import IGNORE, mask_tokens, pack_labels, sample_answer

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


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_packed_labels_have_one_shape_and_lose_none(batch):
    noise = np.random.default_rng(0)
    shapes = set()
    for _ in range(200):
        labels = np.full((batch, 20), IGNORE)
        chosen = noise.random((batch, 18)) < 0.15
        labels[:, 1:-1][chosen] = noise.integers(0, 1000, chosen.sum())
        places, packed = pack_labels(labels, 0.15)
        shapes.add((places.shape, packed.shape))
        again = np.full_like(labels, IGNORE)
        again.flat[places] = packed
        assert np.array_equal(again, labels)
        assert places.dtype == packed.dtype == np.int64
    # 86 of 576 words in the mean and a deviation of 8.6, of 32 sentences
    assert shapes == {((size,), (size,)) for size in [{1: 16, 4: 32, 32: 144}[batch]]}


@pytest.mark.parametrize("count", [16, 17])
def test_room_grows_only_once_it_is_full(count):
    """One sentence has 18 words, 2.7 of which are masked in the mean; six deviations are 9.1 more."""
    labels = np.array([[IGNORE] + [7] * count + [IGNORE] * (19 - count)])
    places, packed = pack_labels(labels, 0.15)
    assert len(places) == (16 if count == 16 else 32)
    assert places[:count].tolist() == list(range(1, count + 1))
    assert (packed == 7).sum() == count


@pytest.mark.parametrize("rate", [0.15, 0.0, 1.0])
def test_a_batch_with_more_labels_than_usual_has_room_for_all_words(rate):
    labels = np.full((2, 20), IGNORE)
    labels[:, 1:-1] = 7
    places, packed = pack_labels(labels, rate)
    assert places.shape == packed.shape == (48,)
    assert (packed == 7).sum() == 36
    assert len(set(places[:36])) == 36
    assert (places[36:] == 0).all()
    assert (packed[36:] == IGNORE).all()


def more_often_than(count, words, rate):
    """The probability of more than so many of the words, each of which is chosen with the probability `rate`."""
    chances = (math.comb(words, k) * rate**k * (1 - rate) ** (words - k) for k in range(count + 1, words + 1))
    return math.fsum(chances)


def test_more_labels_than_usual_are_rarer_than_once_in_ten_million_batches():
    for batch in (1, 2, 3, 4, 8, 12, 16, 32, 48):  # 12 is the worst of all up to 300
        places, _ = pack_labels(np.full((batch, 20), IGNORE), 0.15)
        assert more_often_than(len(places), batch * 18, 0.15) < 1e-7


@pytest.mark.parametrize(("rate", "room"), [(0.15, 32), (0.0, 16)])
def test_no_label_leaves_room_all_the_same(rate, room):
    places, packed = pack_labels(np.full((4, 20), IGNORE), rate)
    assert places.tolist() == [0] * room
    assert packed.tolist() == [IGNORE] * room
