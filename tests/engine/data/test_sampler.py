from collections import Counter

import numpy as np
import pytest

import engine.data.sampler
from engine.data.sampler import (
    EvaluationSampler,
    TrainingSampler,
    exhaustive_batches,
    grouped_batches,
    order_by_image,
    passes_per_image,
)

GROUPS = np.random.default_rng(0).choice(4, size=103, p=[0.5, 0.3, 0.19, 0.01])


def training(**options):
    return TrainingSampler(GROUPS, options.pop("batch_size", 4), seed=options.pop("seed", 1), **options)


def indices(batches):
    return [[sample.index for sample in batch] for batch in batches]


def grouped(order, groups, batch_size):
    return [batch.tolist() for batch in grouped_batches(np.asarray(order), np.asarray(groups), batch_size)]


def one_by_one(order, groups, batch_size):
    """What `grouped_batches` gives, sample by sample."""
    batches, waiting, seen = [], {}, {}
    for place, index in enumerate(order):
        group = groups[index]
        waiting.setdefault(group, []).append(place)
        seen.setdefault(group, []).append(index)
        if len(waiting[group]) == batch_size:
            batches.append([order[place] for place in waiting.pop(group)])
    for group in sorted(waiting, key=lambda group: (-len(waiting[group]), waiting[group][0])):
        if len(batches) < len(order) // batch_size:
            batch = [order[place] for place in waiting[group]]
            while len(batch) < batch_size:
                batch += seen[group][: batch_size - len(batch)]
            batches.append(batch)
    return batches


@pytest.mark.parametrize("world_size", [2, 3, 8])
def test_ranks_deal_out_the_batches_of_one_rank(world_size):
    ranks = [list(training(rank=rank, world_size=world_size)) for rank in range(world_size)]
    whole = list(training())
    assert {len(batches) for batches in ranks} == {len(whole) // world_size}
    dealt = [batch for turn in zip(*ranks, strict=True) for batch in turn]
    assert dealt == whole[: len(dealt)]


def test_positions_of_all_ranks_count_the_epoch_through():
    batches = [batch for rank in range(3) for batch in training(rank=rank, world_size=3)]
    positions = sorted(sample.position for batch in batches for sample in batch)
    assert positions == list(range(len(positions)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_length_is_the_number_of_batches(world_size):
    sampler = training(world_size=world_size)
    assert len(sampler) == len(list(sampler)) == 103 // 4 // world_size


def test_an_optimiser_step_sees_the_same_samples_on_one_and_four_ranks():
    """Batch 2 on each of 4 ranks against one rank that accumulates 4 passes."""
    one = list(training(batch_size=2))
    four = [list(training(batch_size=2, rank=rank, world_size=4)) for rank in range(4)]
    for step in range(len(four[0])):
        assert one[4 * step : 4 * step + 4] == [batches[step] for batches in four]


@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_groups_never_mix(batch_size):
    for batch in indices(training(batch_size=batch_size)):
        assert len(batch) == batch_size
        assert len({GROUPS[index] for index in batch}) == 1


def test_epoch_takes_no_sample_twice_but_to_fill_up_last_batches():
    counts = Counter(index for batch in indices(training()) for index in batch)
    repeats = sum(counts.values()) - len(counts)
    # Each group leaves at most batch_size - 1 samples over, and as many fill its last batch at most.
    assert repeats <= 4 * 3
    assert len(counts) >= 103 - 4 * 3


def test_groups_that_batches_divide_are_seen_exactly_once():
    sampler = TrainingSampler(np.array([0, 1] * 12), 4, seed=1)
    assert sorted(index for batch in indices(sampler) for index in batch) == list(range(24))


def test_set_epoch_changes_the_order_and_is_told_in_the_samples():
    sampler = training()
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert indices(first) != indices(second)
    assert {sample.epoch for batch in first for sample in batch} == {0}
    assert {sample.epoch for batch in second for sample in batch} == {1}


def test_same_epoch_gives_the_same_order_in_another_sampler():
    sampler, resumed = training(), training()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        list(sampler)
    resumed.set_epoch(2)
    assert list(resumed) == list(sampler)


def test_same_order_each_epoch_keeps_the_order_but_not_the_draws():
    sampler = training(same_order_each_epoch=True)
    first = list(sampler)
    sampler.set_epoch(1)
    second = list(sampler)
    assert indices(second) == indices(first)
    assert {sample.epoch for batch in second for sample in batch} == {1}


def test_another_seed_gives_another_order():
    assert indices(training(seed=1)) != indices(training(seed=2))


def test_batches_come_when_their_group_is_full():
    order = np.array([0, 1, 2, 3, 4, 5])
    groups = np.array([0, 1, 1, 0, 0, 1])
    assert grouped(order, groups, 2) == [[1, 2], [0, 3], [4, 0]]


def test_fullest_left_over_fills_up_first():
    order = np.arange(8)
    groups = np.array([0, 0, 0, 0, 1, 2, 2, 2])
    # One batch of group 0; of the left-overs 5 6 7 (group 2) comes before 4 (group 1), filled with the group's first.
    assert grouped(order, groups, 4) == [[0, 1, 2, 3], [5, 6, 7, 5]]


def test_group_smaller_than_a_batch_repeats_as_often_as_needed():
    assert grouped(range(5), range(5), 5) == [[0] * 5]


def test_batches_are_those_of_a_plain_walk_however_long_the_chunks_are(monkeypatch):
    """Random groups, some of one sample, up to batches that no group fills."""
    draw = np.random.default_rng(7)
    filled_up = 0
    for _ in range(150):
        count, kinds, batch_size = draw.integers(0, 60), draw.integers(1, 9), int(draw.integers(1, 8))
        groups = draw.choice(kinds, size=count, p=draw.dirichlet(np.full(kinds, 0.7)))
        order = draw.permutation(count)
        expected = one_by_one(order.tolist(), groups.tolist(), batch_size)
        assert len(expected) == count // batch_size
        filled_up += any(len(set(batch)) < batch_size for batch in expected)
        for chunk in (1, 3, 7, 1 << 16):
            monkeypatch.setattr(engine.data.sampler, "CHUNK", chunk)
            assert grouped(order, groups, batch_size) == expected
    assert filled_up > 50  # so the ends were tried, too


def test_first_batches_come_before_the_whole_order_is_walked(monkeypatch):
    """An epoch of millions starts at once: groups behind the first chunk are not looked at yet."""
    monkeypatch.setattr(engine.data.sampler, "CHUNK", 6)
    looked_at = []

    class Groups(np.ndarray):
        def __getitem__(self, which):
            looked_at.append(len(which))
            return np.asarray(self)[which]

    batches = grouped_batches(np.arange(60), np.zeros(60, int).view(Groups), 4)
    assert next(batches).tolist() == [0, 1, 2, 3]
    assert looked_at == [6]
    assert len(list(batches)) == 14
    assert sum(looked_at) == 60


# --- several sentences of an image for one pass of the backbone

IMAGES = np.repeat(np.arange(12), 8)[np.random.default_rng(3).permutation(96)]  # 12 images of 8 sentences, in disorder


def sharing(sentences_per_image, images=IMAGES, groups=None, batch_size=16, **options):
    """Images of even and of odd numbers are two groups."""
    groups = images % 2 if groups is None else groups
    options = {"seed": 1, "images": images, "sentences_per_image": sentences_per_image, **options}
    return TrainingSampler(groups, batch_size, **options)


def runs_of(batch, images=IMAGES):
    """Image and length of each stretch of sentences of one image."""
    of_image = images[np.asarray(batch)]
    begins = np.flatnonzero(np.diff(of_image, prepend=-1))
    return list(zip(of_image[begins].tolist(), np.diff([*begins, len(batch)]).tolist(), strict=True))


@pytest.mark.parametrize("sentences_per_image", [2, 4, 8])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_batch_has_so_many_sentences_of_each_of_its_images(sentences_per_image, world_size):
    """And each sentence comes once in an epoch, whoever gets it."""
    samplers = [sharing(sentences_per_image, rank=rank, world_size=world_size) for rank in range(world_size)]
    batches = [batch for sampler in samplers for batch in indices(sampler)]
    assert len(batches) == 6
    assert sorted(index for batch in batches for index in batch) == list(range(96))
    for batch in batches:
        assert len({IMAGES[index] % 2 for index in batch}) == 1
        lengths = [length for _, length in runs_of(batch)]
        # Two runs of the same image may come to stand side by side by chance.
        assert all(length % sentences_per_image == 0 for length in lengths)
        assert sum(lengths) // sentences_per_image == 16 // sentences_per_image
    dealt = [batch for turn in zip(*map(list, samplers), strict=True) for batch in turn]
    assert dealt == list(sharing(sentences_per_image))


def test_an_epoch_that_goes_on_has_the_batches_that_were_left():
    whole, resumed = sharing(4, batch_size=8), sharing(4, batch_size=8, rank=1, world_size=2)
    for sampler in (whole, resumed):
        sampler.set_epoch(3, 5 if sampler is resumed else 0)
    assert list(resumed) == list(whole)[6:11:2]
    whole.set_epoch(4)
    assert indices(whole) != indices(resumed)


def test_an_image_s_sentences_meet_others_in_each_epoch():
    sampler, partners = sharing(4), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        order = np.concatenate(indices(sampler)).reshape(-1, 4)
        partners.append({frozenset(four) for four in order.tolist()})
    assert len(partners[0] & partners[1]) < 12  # of 24 fours: as good as none by chance


def test_one_sentence_per_image_is_the_plain_order():
    assert list(sharing(1)) == list(TrainingSampler(IMAGES % 2, 16, seed=1))


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [
        ([1], [1]),
        ([4], [4]),
        ([8], [8]),
        ([11], [11]),
        ([12], [6, 6]),
        ([19], [9, 10]),
        ([51, 0, 3], [8, 8, 8, 9, 9, 9, 3]),
    ],
    ids=str,
)
def test_runs_are_as_near_to_eight_as_equal_parts_come(sentences, expected):
    images = np.repeat(np.arange(len(sentences)), sentences)
    found, passes = passes_per_image(images, 8)
    assert found.tolist() == sentences
    order = order_by_image(images, 8, np.random.default_rng(5))
    assert order.dtype == np.int32
    assert sorted(order.tolist()) == list(range(sum(sentences)))
    assert passes.sum() == len(expected)
    if len(sentences) == 1:
        return
    many = np.repeat(np.arange(300), 51)  # so that few runs of one image touch
    lengths = Counter(length for _, length in runs_of(order_by_image(many, 8, np.random.default_rng(5)), many))
    assert lengths[8] + lengths[9] > 0.98 * sum(lengths.values())


@pytest.mark.parametrize(("count", "batch_size"), [(0, 4), (3, 4)], ids=["no_samples", "less_than_a_batch"])
def test_too_few_samples_make_no_batch(count, batch_size):
    sampler = TrainingSampler(np.zeros(count, int), batch_size, seed=1)
    assert len(sampler) == 0
    assert list(sampler) == []


@pytest.mark.parametrize("world_size", [1, 2, 3, 8, 64])
def test_evaluation_yields_each_item_once(world_size):
    samplers = [EvaluationSampler(GROUPS, 4, rank=rank, world_size=world_size) for rank in range(world_size)]
    seen = [index for sampler in samplers for batch in indices(sampler) for index in batch]
    assert sorted(seen) == list(range(103))
    assert [len(sampler) for sampler in samplers] == [len(list(sampler)) for sampler in samplers]


@pytest.mark.parametrize(("batch_size", "world_size"), [(1, 1), (4, 3), (32, 2), (200, 1)])
def test_evaluation_positions_depend_on_neither_batch_size_nor_ranks(batch_size, world_size):
    positions = {}
    for rank in range(world_size):
        for batch in EvaluationSampler(GROUPS, batch_size, rank=rank, world_size=world_size):
            first = batch[0].position
            assert [sample.position for sample in batch] == list(range(first, first + len(batch)))
            positions.update({sample.index: (sample.position, sample.epoch) for sample in batch})
    by_group = np.argsort(GROUPS, kind="stable").tolist()
    assert positions == {index: (position, 0) for position, index in enumerate(by_group)}


def test_evaluation_never_mixes_groups():
    assert all(len({GROUPS[index] for index in batch}) == 1 for batch in indices(EvaluationSampler(GROUPS, 4)))


def test_exhaustive_batches_of_no_items():
    assert exhaustive_batches(np.array([], dtype=int), 4) == []


def test_only_the_last_batch_of_a_group_is_smaller():
    batches = exhaustive_batches(np.array([1, 0, 1, 1, 0]), 2)
    assert [batch.tolist() for batch in batches] == [[1, 4], [0, 2], [3]]
