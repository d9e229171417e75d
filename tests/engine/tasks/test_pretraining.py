import atexit
import dataclasses
import itertools
import json
import math
import multiprocessing
import random
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from deepspeed.accelerator import get_accelerator
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from engine.data.annotations.answers import AnswerTable
from engine.data.annotations.named import read_names
from engine.data.annotations.source import AnnotationSource
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import ImageShape
from engine.data.images.places import image_path
from engine.data.images.writer import write_image_store
from engine.data.loading import Collator, evaluation_loader, training_loader
from engine.data.sampler import Sample
from engine.data.shared_memory import check_shared_memory
from engine.data.splits import open_images, read_split
from engine.distributed.workers import end_workers
from engine.errors import UserError
from engine.tasks import pretraining
from engine.tasks.masking import IGNORE
from engine.tasks.pretraining import PretrainingDataset, PretrainingOptions, most_frequent_share
from tests.conftest import small_tmpfs

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{number}" for number in range(40))]
PAD, UNK, CLS, SEP, MASK = range(5)
SIZES = {"one": (20, 12), "two": (12, 20), "three": (24, 16)}  # two groups of aspect ratio at factor 0


def tokenizer(words=WORDS):
    made = Tokenizer(WordPiece({word: number for number, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    return made


@pytest.fixture
def data_root(tmp_path):
    """Three small images, their annotations and an answer table."""
    noise = np.random.default_rng(0)
    for img_id, (width, height) in SIZES.items():
        path = tmp_path / image_path(img_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    items = [
        {
            "img_id": img_id,
            "sentf": {
                "mscoco": [f"word{10 * number + k} word{10 * number + k + 1}" for k in range(6)],
                "vqa": [f"word{10 * number + 8} word{10 * number + 9}"],
            },
            "labelf": {"vqa": [{"yes": 1.0}]},
        }
        for number, img_id in enumerate(SIZES)
    ]
    write(tmp_path, "train", items)
    write(tmp_path, "all_ans", [{"ans": "yes"}, {"ans": "no"}])
    return tmp_path


def write(data_root, name, content):
    (data_root / "lxmert").mkdir(exist_ok=True)
    (data_root / "lxmert" / f"{name}.json").write_text(json.dumps(content))


def open_source(data_root, image_store=None):
    """Images of 12 x 20 pixels, from the folders or a store."""
    return open_images(data_root, image_store and str(image_store), ImageShape(12, 20), "pillow")


def read(data_root, names="train", *, answers=("yes", "no"), image_store=None, **options):
    images, table = open_source(data_root, image_store), AnswerTable(answers, f"{data_root}/lxmert/all_ans.json")
    source = AnnotationSource(read_names(names, data_root / "lxmert"), TextEncoder(tokenizer()), table)
    return read_split(source, images, data_root / "cache", **options)


def make(data_root, split=None, image_store=None, **options):
    sizes = {"image_size_min": 12, "image_size_max": 20, "aspect_ratio_group_factor": 0}
    options = PretrainingOptions(**{"max_seq_length": 8, **sizes, **options})
    split = split or read(data_root, image_store=image_store)
    return PretrainingDataset(split, open_source(data_root, image_store), TextEncoder(tokenizer()).vocabulary, options)


def captions(data_root, texts):
    """A split of captions, a list of them per image."""
    write(data_root, "captions", [{"img_id": img_id, "sentf": {"vg": own}} for img_id, own in texts.items()])
    return read(data_root, "captions")


def loader(dataset, batch_size=4, num_workers=0, rank=0, world_size=1, accumulation=1, start_method="fork"):
    return training_loader(
        dataset,
        batch_size,
        accumulation=accumulation,
        num_workers=num_workers,
        rank=rank,
        world_size=world_size,
        same_order=False,
        start_method=start_method,
    )


def evaluation(dataset, batch_size=4, num_workers=0, rank=0, world_size=1, start_method="fork"):
    return evaluation_loader(
        dataset, batch_size, num_workers=num_workers, rank=rank, world_size=world_size, start_method=start_method
    )


def text_examples(dataset, samples):
    """What was drawn for some samples."""
    examples = [dataset[sample] for sample in samples]
    return [(example["input_ids"], example["masked_lm_labels"], example["matched_label"]) for example in examples]


def assert_equal_batches(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch.numbers == other.numbers
        assert batch.unreadable == other.unreadable
        assert batch.inputs.keys() == other.inputs.keys()
        for name, value in batch.inputs.items():
            value, other_value = torch.as_tensor(value), torch.as_tensor(other.inputs[name])
            assert value.dtype == other_value.dtype
            assert torch.equal(value, other_value), name


# --- one example


def test_same_sample_gives_the_same_example_from_another_instance(data_root):
    one, other = make(data_root), make(data_root)
    for sample in (Sample(3, 7, 1), Sample(0, 0, 0)):
        first, second = one[sample], other[sample]
        assert np.array_equal(first.pop("image"), second.pop("image"))
        assert first == second


@pytest.mark.parametrize(
    ("split", "options", "shift"),
    [("train", {}, {"position": 100}), ("train", {}, {"epoch": 1}), ("train", {"seed": 1}, {}), ("valid", {}, {})],
    ids=["another_position", "another_epoch", "another_seed", "another_split"],
)
def test_draws_depend_on_seed_split_epoch_and_position(data_root, split, options, shift):
    def samples(position=0, epoch=0):
        return [Sample(index, position + index, epoch) for index in range(21)]

    before = text_examples(make(data_root), samples())
    same_sentences = dataclasses.replace(read(data_root), name=split)
    assert text_examples(make(data_root, same_sentences, **options), samples(**shift)) != before
    assert text_examples(make(data_root), samples()) == before


def test_example_is_padded_and_marked(data_root):
    split = captions(data_root, {"one": [" word3 word4 nonsense "]})
    example = make(data_root, split, task_mask_lm=False, task_matched=False)[Sample(0, 5, 2)]
    image = example.pop("image")
    assert image.shape == (3, 12, 20)
    assert image.dtype == np.uint8
    assert example == {
        "number": 0,
        "input_ids": [CLS, WORDS.index("word3"), WORDS.index("word4"), UNK, SEP, PAD, PAD, PAD],
        "attention_mask": [1, 1, 1, 1, 1, 0, 0, 0],
        "masked_lm_labels": [IGNORE] * 8,
        "matched_label": IGNORE,
        "ans": IGNORE,
        "unreadable": None,
        "epoch": 2,
        "position": 5,
    }


def test_long_sentence_is_cut_before_the_separator(data_root):
    split = captions(data_root, {"one": [" ".join(f"word{number}" for number in range(20))]})
    example = make(data_root, split, task_mask_lm=False)[Sample(0, 0, 0)]
    assert example["input_ids"] == [CLS, *(WORDS.index(f"word{number}") for number in range(6)), SEP]
    assert example["attention_mask"] == [1] * 8


def test_a_window_of_a_long_sentence_is_drawn_and_no_other_draw_changes(data_root):
    """Of 20 words, 6 have room: 15 windows. Sentences that fit are as they are without the flag."""
    long, short = " ".join(f"word{number}" for number in range(20)), " ".join(f"word{number}" for number in range(6))
    split = captions(data_root, {"one": [long, short], "two": [short]})
    window = make(data_root, split, long_captions="window", task_mask_lm=False, task_matched=False)
    begins = []
    for position in range(600):
        ids = window[Sample(0, position, 0)]["input_ids"]
        assert ids == [CLS, *range(ids[1], ids[1] + 6), SEP]
        begins.append(ids[1] - WORDS.index("word0"))
    assert set(begins) == set(range(15))
    assert max(map(begins.count, range(15))) < 68  # 40 in the mean, and a deviation of 6.1: four and a half of them
    again = make(data_root, split, long_captions="window", task_mask_lm=False, task_matched=False)
    assert again[Sample(0, 77, 0)]["input_ids"][1] == WORDS.index("word0") + begins[77]

    samples = [Sample(number, position, epoch) for number in (1, 2) for position in range(30) for epoch in range(3)]
    drawn, cut = (
        text_examples(make(data_root, captions(data_root, {"one": [short], "two": [short, short]}), **flag), samples)
        for flag in ({"long_captions": "window"}, {})
    )
    assert drawn == cut


def test_words_that_the_model_does_not_see_are_told(data_root):
    long = " ".join(f"word{number}" for number in range(7))
    split = captions(data_root, {"one": [long, "word1 zebra"], "two": ["word1"]})
    cut = "1 of 3 sentences (33.3%) are cut at --max_seq_length 8, which a training may raise"
    unknown = (
        "1 of 10 word pieces (10.0%) are unknown to the vocabulary ([UNK]), which comes from --bert of the training"
    )
    assert make(data_root, split).lost_words() == f"captions: {cut}; {unknown}"
    assert make(data_root, split, max_seq_length=9).lost_words() == f"captions: {unknown}"
    assert make(data_root, split, long_captions="window").lost_words() == f"captions: {unknown}"
    assert make(data_root, captions(data_root, {"one": ["word1"]})).lost_words() == ""


def test_the_longest_sequences_of_bert_make_batches(data_root):
    """Packed labels, masks and padding of 512 tokens, one of them of a text that fills them."""
    words = [" ".join(f"word{number % 40}" for number in range(count)) for count in (510, 600, 3)]
    split = captions(data_root, {"one": words, "two": ["word1"]})
    dataset = make(data_root, split, max_seq_length=512, task_matched=False)
    batch = next(iter(evaluation(dataset, batch_size=3)))
    inputs = batch.inputs
    assert inputs["input_ids"].shape == inputs["attention_mask"].shape == (3, 512)
    assert inputs["attention_mask"].sum(1).tolist() == [512, 512, 5]
    places, labels = inputs["masked_positions"], inputs["masked_lm_labels"]
    counted = labels != IGNORE
    assert len(places) % 16 == 0
    assert 90 < int(counted.sum()) < 220  # of 1,023 words 153 in the mean, and a deviation of 11.4
    kept = inputs["input_ids"].flatten()[places[counted]] == labels[counted]
    assert 0 < int(kept.sum()) < int(counted.sum())
    assert bool((inputs["attention_mask"].flatten()[places] == 1).all())


def test_special_tokens_and_padding_are_never_predicted(data_root):
    example = make(data_root, word_mask_rate=1.0)[Sample(0, 0, 0)]
    inner = example["masked_lm_labels"][1:3]
    assert IGNORE not in inner
    assert example["masked_lm_labels"] == [IGNORE, *inner, *[IGNORE] * 5]
    assert example["input_ids"][0] == CLS
    assert example["input_ids"][3:] == [SEP, PAD, PAD, PAD, PAD]


def test_half_of_the_texts_are_swapped_and_never_for_one_of_the_same_image(data_root):
    dataset = make(data_root)
    own = {sentence.token_ids: sentence.img_id for sentence in dataset.sentences}
    assert len(own) == len(dataset)  # so a text tells its image
    count, matched = 4000, 0
    for seed in range(count):
        number = seed % len(dataset)
        pair = dataset.pair(number, random.Random(seed))
        assert pair.number == number
        sentence, text = dataset.sentences[pair.number], dataset.sentences[pair.text_number].token_ids
        assert pair.is_matched == (own[text] == sentence.img_id)
        assert pair.is_matched == (text == sentence.token_ids)
        matched += pair.is_matched
    # Fair coins: |z| > 4.5 has probability 7e-6.
    assert abs(matched - count / 2) < 4.5 * math.sqrt(count / 4)


def test_a_batch_of_examples_is_what_single_ones_are(data_root):
    """Columns are looked up for the whole batch; images, texts and labels must not get mixed up."""
    dataset = make(data_root)
    samples = [Sample(index, 50 + place, 3) for place, index in enumerate([20, 0, 13, 13, 6, 7])]
    for example, sample in zip(dataset.__getitems__(samples), samples, strict=True):
        alone = dataset[sample]
        assert np.array_equal(example.pop("image"), alone.pop("image"))
        assert example == alone
        assert (example["number"], example["position"], example["epoch"]) == sample[:3]


def test_text_of_a_swapped_pair_is_the_other_sentences(data_root):
    dataset = make(data_root, task_mask_lm=False)
    swapped = 0
    for position in range(40):
        sample = Sample(position % 21, position, 0)
        pair = dataset.pair(sample.index, random.Random(f"{dataset.options.seed}/train/0/{position}"))
        example = dataset[sample]
        text = list(dataset.sentences[pair.text_number].token_ids)
        assert example["input_ids"][:4] == [CLS, *text, SEP]
        assert example["matched_label"] == pair.is_matched
        swapped += not pair.is_matched
    assert 0 < swapped < 40


def test_swapped_text_keeps_number_and_image_and_loses_the_answer(data_root):
    dataset = make(data_root, task_mask_lm=False)
    question = next(n for n, sentence in enumerate(dataset.sentences) if sentence.label)
    examples = [dataset[Sample(question, position, 0)] for position in range(20)]
    assert {example["number"] for example in examples} == {question}
    assert {example["image"].tobytes() for example in examples} == {examples[0]["image"].tobytes()}
    assert {(example["matched_label"], example["ans"]) for example in examples} == {(1, 0), (0, IGNORE)}


@pytest.mark.parametrize(
    ("options", "matched_label"), [({"task_matched": False}, IGNORE), ({}, 1)], ids=["task_off", "one_image_only"]
)
def test_texts_that_stay(data_root, options, matched_label):
    texts = {"one": [f"word{number}" for number in range(3)]}
    if options:
        texts["two"] = ["word9"]
    dataset = make(data_root, captions(data_root, texts), task_mask_lm=False, **options)
    for position in range(20):
        example = dataset[Sample(1, position, 0)]
        assert example["matched_label"] == matched_label
        assert example["input_ids"][1] == WORDS.index("word1")


def test_groups_tell_landscapes_from_portraits(data_root):
    assert make(data_root).groups().tolist() == [0] * 7 + [1] * 7 + [0] * 7


# --- batches


def test_batch_has_the_models_inputs(data_root):
    dataset = make(data_root, seed=11)
    batch = Collator(dataset)([dataset[Sample(index, 30 + index, 4)] for index in range(3)])
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in batch.inputs.items()}
    assert kinds == {
        **dict.fromkeys(("input_ids", "attention_mask", "token_type_ids"), (torch.int64, (3, 8))),
        # 3 x 6 words, of which 15 % are 2.7 and six deviations 9.1
        **dict.fromkeys(("masked_positions", "masked_lm_labels"), (torch.int64, (16,))),
        **dict.fromkeys(("matched_label", "ans"), (torch.int64, (3,))),
        "images": (torch.uint8, (3, 3, 12, 20)),
        "sampling_state": (torch.int64, (3,)),
    }
    assert batch.inputs["sampling_state"].tolist() == [11, 4, 30]
    assert not batch.inputs["token_type_ids"].any()
    assert len(batch) == 3


def sharing_batch(data_root, numbers, **options):
    """A batch of these sentences of three images, of which each has seven, with several sentences to an image."""
    dataset = make(data_root, sentences_per_image=2, **options)
    loaded, images = [], dataset.images
    dataset.images = SimpleNamespace(load=lambda img_id: loaded.append(img_id) or images.load(img_id))
    batch = Collator(dataset)(dataset.__getitems__([Sample(number, 30 + n, 4) for n, number in enumerate(numbers)]))
    return dataset, batch, loaded


def test_sentences_that_follow_each_other_share_their_image(data_root):
    numbers = [0, 3, 14, 15, 1, 20]
    dataset, batch, loaded = sharing_batch(data_root, numbers)
    own = make(data_root)
    alone = Collator(own)(own.__getitems__([Sample(number, 30 + n, 4) for n, number in enumerate(numbers)]))
    assert batch.inputs["grid_of"].tolist() == [0, 0, 1, 1, 2, 3]
    assert batch.inputs["grid_of"].dtype == torch.int64
    assert "grid_of" not in alone.inputs
    assert torch.equal(batch.inputs["images"][batch.inputs["grid_of"]], alone.inputs["images"])
    for name in alone.inputs.keys() - {"images"}:  # draws belong to the sentence, so they stay
        assert torch.equal(batch.inputs[name], alone.inputs[name]), name
    assert loaded == [dataset.sentences[number].img_id for number in (0, 14, 1, 20)]
    assert len(batch) == 6


def test_an_unreadable_image_counts_once_and_takes_the_labels_of_all_that_share_it(data_root):
    (data_root / image_path("one")).write_bytes(b"no image")
    _, batch, _ = sharing_batch(data_root, [0, 3, 7, 8])
    assert len(batch.unreadable) == 1
    assert batch.inputs["grid_of"].tolist() == [0, 0, 1, 1]
    assert batch.inputs["matched_label"].tolist()[:2] == [IGNORE, IGNORE]
    assert IGNORE not in batch.inputs["matched_label"].tolist()[2:]


def test_a_validation_shares_images_as_they_come(data_root):
    """The same sentences at the same places, so with the same draws, as where each has an image of its own."""
    shared = list(evaluation(make(data_root, sentences_per_image=4)))
    alone = list(evaluation(make(data_root)))
    assert [batch.numbers for batch in shared] == [batch.numbers for batch in alone]
    assert sum(len(batch.inputs["images"]) for batch in shared) < sum(len(batch.inputs["images"]) for batch in alone)
    for one, other in zip(shared, alone, strict=True):
        assert torch.equal(one.inputs["images"][one.inputs["grid_of"]], other.inputs["images"])
        assert torch.equal(one.inputs["sampling_state"], other.inputs["sampling_state"])


@pytest.fixture
def store(data_root):
    """The same images, as they are, in an LMDB."""
    write_image_store(data_root / "lmdb", list(SIZES), data_root, resize=None, quality=95, workers=0, progress=False)
    return data_root / "lmdb"


ALL_WAYS = [
    *((workers, "fork", source) for workers in (0, 1, 4) for source in ("folder", "lmdb")),
    (1, "spawn", "folder"),  # a spawned worker takes seconds to import torch: enough of them to meet every case once
    pytest.param(4, "spawn", "lmdb", marks=pytest.mark.slow),
    (1, "forkserver", "lmdb"),
]


@pytest.mark.parametrize(("num_workers", "start_method", "source"), ALL_WAYS)
def test_batches_are_bit_identical_with_any_workers_from_any_source(
    data_root, store, num_workers, start_method, source
):
    def batches(num_workers, start_method, image_store):
        dataset, others = make(data_root, image_store=image_store), set(multiprocessing.active_children())
        loaders = [
            loader(dataset, num_workers=num_workers, start_method=start_method),
            evaluation(dataset, num_workers=min(num_workers, 2), start_method=start_method),
        ]
        kinds = [type(worker).__name__ for worker in set(multiprocessing.active_children()) - others]
        kind = {"fork": "ForkProcess", "spawn": "SpawnProcess", "forkserver": "ForkServerProcess"}[start_method]
        assert kinds == [kind] * (num_workers + min(num_workers, 2))
        found = []
        for epoch in range(2):
            loaders[0].batch_sampler.set_epoch(epoch)
            found.append([batch for batches in loaders for batch in batches])
        return found

    plain = batches(0, "fork", None)
    found = batches(num_workers, start_method, store if source == "lmdb" else None)
    for epoch in range(2):
        assert len(plain[epoch]) == 5 + 6
        assert not any(batch.unreadable for batch in plain[epoch])
        assert_equal_batches(plain[epoch], found[epoch])


def test_a_resized_store_trains_as_well(data_root):
    """Pixels are a JPEG's of the resized image; all else is what the folders give."""
    path = data_root / "resized"
    write_image_store(path, list(SIZES), data_root, resize=(12, 20), quality=95, workers=0, progress=False)
    plain, resized = list(loader(make(data_root))), list(loader(make(data_root, image_store=path)))
    differences = []
    for batch, other in zip(plain, resized, strict=True):
        images, others = batch.inputs.pop("images"), other.inputs.pop("images")
        assert images.shape == others.shape
        differences.append((images.float() - others.float()).abs().mean().item())
    assert_equal_batches(plain, resized)
    assert 0 < max(differences) < 12  # grey levels; random pixels are the worst that a JPEG can hold


def test_workers_start_with_the_loader_and_stay(data_root):
    """They are forked before autograd has threads, so never later, and get no work before they are asked."""
    before = set(multiprocessing.active_children())
    dataset = make(data_root)
    loaders = [loader(dataset, num_workers=2), evaluation(dataset, num_workers=1)]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 3
    for _ in range(2):
        for batches in loaders:
            assert len(list(batches)) == len(batches)
    assert set(multiprocessing.active_children()) - before == workers


def test_at_exit_workers_are_ended_before_anyone_waits_for_them(data_root, monkeypatch):
    """What was registered last runs first, and torch registers its waiting with the workers of pinned batches."""
    before, order = len(multiprocessing.active_children()), []
    monkeypatch.setattr(
        atexit, "register", lambda what: order.append((what, len(multiprocessing.active_children()) - before))
    )
    batches = loader(make(data_root), num_workers=1)
    assert order[-1] == (end_workers, 1)
    assert len(list(batches)) == len(batches)


@pytest.mark.parametrize("accelerator", ["cuda", "cpu"])
def test_only_training_batches_for_a_gpu_are_pinned(data_root, monkeypatch, accelerator):
    monkeypatch.setattr(get_accelerator(), "device_name", lambda: accelerator)
    dataset = make(data_root)
    assert loader(dataset).pin_memory == (accelerator == "cuda")
    assert not evaluation(dataset).pin_memory


def test_ranks_give_the_batches_of_one_rank(data_root):
    dataset = make(data_root)
    ranks = [list(loader(dataset, rank=rank, world_size=2)) for rank in range(2)]
    dealt = [batch for pair in zip(*ranks, strict=True) for batch in pair]
    assert_equal_batches(dealt, list(loader(dataset))[: len(dealt)])


def test_evaluation_gives_each_sentence_once_with_the_same_draws_for_any_batch_size(data_root):
    dataset = make(data_root)

    def drawn(batch_size, world_size):
        found = {}
        for rank in range(world_size):
            for batch in evaluation(dataset, batch_size, rank=rank, world_size=world_size):
                assert not found.keys() & set(batch.numbers)
                found.update(zip(batch.numbers, batch.inputs["input_ids"].tolist(), strict=True))
        return found

    whole = drawn(4, 1)
    assert sorted(whole) == list(range(21))
    assert drawn(3, 2) == whole


@pytest.mark.parametrize(
    ("batch_size", "world_size", "accumulation", "needed"), [(4, 2, 3, 24), (22, 1, 1, 22)], ids=["step", "batch"]
)
def test_too_few_sentences_for_one_step_are_refused(data_root, batch_size, world_size, accumulation, needed):
    with pytest.raises(UserError) as error:
        loader(make(data_root), batch_size, world_size=world_size, accumulation=accumulation)
    assert str(error.value) == (
        f"train has 21 sentences, but one optimiser step takes {needed} (batches of {batch_size} x {world_size} ranks "
        f"x accumulation {accumulation}); lower --batchSize or add data"
    )


def test_exactly_enough_sentences_for_one_step_are_taken(data_root):
    assert len(loader(make(data_root), 3, accumulation=7)) == 7


# --- damaged and missing files


@pytest.mark.parametrize("num_workers", [0, 1])
def test_truncated_image_comes_black_without_labels_and_is_named(data_root, num_workers):
    path = data_root / image_path("two")
    path.write_bytes(path.read_bytes()[:400])
    dataset = make(data_root, word_mask_rate=1.0)
    damaged = 0
    for batch in evaluation(dataset, 4, num_workers=num_workers):
        img_ids = [dataset.sentences[number].img_id for number in batch.numbers]
        labelled = batch.inputs["masked_positions"][batch.inputs["masked_lm_labels"] != IGNORE] // 8
        for place, img_id in enumerate(img_ids):
            is_damaged = img_id == "two"
            assert batch.inputs["images"][place].any() == (not is_damaged)
            if is_damaged:
                damaged += 1
                assert batch.inputs["matched_label"][place] == batch.inputs["ans"][place] == IGNORE
            else:
                assert batch.inputs["matched_label"][place] != IGNORE
            assert (labelled == place).sum() == (0 if is_damaged else 2)  # all of the two words
        assert len(batch.unreadable) == img_ids.count("two")
        assert all(problem.startswith(f"{path}: ") for problem in batch.unreadable)
    assert damaged == 7


def test_black_image_has_the_canvas_of_its_recorded_size(data_root):
    """So that it fits beside the others of its group."""
    dataset = make(data_root)
    for img_id, shape in (("one", (3, 12, 20)), ("two", (3, 20, 12))):
        (data_root / image_path(img_id)).write_bytes(b"")
        index = next(n for n, sentence in enumerate(dataset.sentences) if sentence.img_id == img_id)
        assert dataset[Sample(index, 0, 0)]["image"].shape == shape


def test_split_is_summed_up_in_one_line(data_root):
    split = read(data_root)
    assert len(split.sentences) == 21
    assert split.summary == "train: 21 sentences, 3 images"


def test_several_files_make_one_split(data_root):
    write(data_root, "more", [{"img_id": "one", "sentf": {"vg": ["word0"]}}])
    split = read(data_root, "more,train,")
    assert split.sentences[0].uid == "one_vg_000"
    assert split.summary == "more,train: 22 sentences, 3 images"


def test_sizes_are_those_of_the_images(data_root):
    split = read(data_root)
    sizes = zip(split.sizes["width"].tolist(), split.sizes["height"].tolist(), strict=True)
    assert dict(zip(split.sentences.image_ids, sizes, strict=True)) == SIZES


def test_digests_tell_other_sizes_only_where_they_form_other_batches(data_root):
    before = make(data_root).digests()

    def kinds(**sizes):
        """Of digests that differ where a file says otherwise than the images do."""
        recorded = {f"data/{image_path(name)}": size for name, size in sizes.items()}
        (data_root / "mscoco").mkdir(exist_ok=True)
        (data_root / "mscoco" / "width_heigths.json").write_text(json.dumps(recorded))
        now = make(data_root).digests()
        return {kind for kind in before if before[kind] != now[kind]}

    assert kinds(one=[12, 20], two=[20, 12]) == set()  # as measured
    assert kinds(one=[13, 21]) == set()
    assert kinds(one=[20, 13]) == {"groups"}


def test_digests_tell_which_sentences_have_a_weight(data_root):
    """Where a sentence goes from one file to the next, others come twice."""
    items = json.loads((data_root / "lxmert" / "train.json").read_text())
    found = []
    for count in (1, 2):
        write(data_root, "first", items[:count])
        write(data_root, "second", items[count:])
        found.append(make(data_root, read(data_root, "first,second:2")).digests())
    before, now = found
    assert {kind for kind in before if before[kind] != now[kind]} == {"parts"}


def test_missing_image_is_refused(data_root):
    (data_root / image_path("two")).unlink()
    with pytest.raises(UserError) as error:
        read(data_root, allow_missing_images=False)
    assert str(error.value) == (
        f"1 of 3 images of train are not in the image folders of {data_root}, the first is two (looked for "
        f"{data_root / image_path('two')} and {data_root}/images/two.jpg, with any usual suffix); "
        "add them, or pass --allow_missing_images to leave them out"
    )


def test_image_missing_in_a_store_is_refused(data_root):
    path = data_root / "lmdb"
    write_image_store(path, ["one"], data_root, resize=None, quality=95, workers=0, progress=False)
    with pytest.raises(UserError) as error:
        read(data_root, image_store=path, allow_missing_images=False)
    assert str(error.value) == (
        f"2 of 3 images of train are not in the image store {path}, the first is two (looked for that key, with any "
        "usual suffix), then three (looked for that key, with any usual suffix); "
        "add them, or pass --allow_missing_images to leave them out"
    )


def test_missing_image_is_left_out_where_allowed(data_root):
    whole = [sentence for sentence in read(data_root).sentences if sentence.img_id != "two"]
    (data_root / image_path("two")).unlink()
    split = read(data_root, allow_missing_images=True)
    assert list(split.sentences) == whole
    assert {sentence.img_id for sentence in split.sentences} == {"one", "three"}
    assert split.summary == "train: 14 sentences, 2 images, 1 image without a file left out"


def test_left_out_sentences_are_a_selection_of_the_same_store(data_root):
    """Nothing is built anew for them, and workers of any kind get the selection."""
    read(data_root)
    (data_root / image_path("one")).unlink()
    dataset = make(data_root, read(data_root, allow_missing_images=True))
    assert len(list((data_root / "cache").iterdir())) == 1
    assert dataset.groups().tolist() == [1] * 7 + [0] * 7  # "two" and "three"
    alone = list(loader(dataset))
    assert len(alone) == 14 // 4
    images = {dataset.sentences[number].img_id for batch in alone for number in batch.numbers}
    assert images == {"two", "three"}
    assert not any(batch.unreadable for batch in alone)
    assert_equal_batches(alone, list(loader(dataset, num_workers=1, start_method="spawn")))


def test_texts_are_never_swapped_for_those_left_out(data_root):
    (data_root / image_path("three")).unlink()
    dataset = make(data_root, read(data_root, allow_missing_images=True), task_mask_lm=False)
    left_out = {WORDS.index(f"word{number}") for number in range(20, 30)}
    for sample in (Sample(index, position, 0) for index, position in itertools.product(range(14), range(20))):
        assert not left_out & set(dataset[sample]["input_ids"])


def test_answers_outside_the_table_are_counted(data_root):
    write(
        data_root,
        "odd",
        [{"img_id": "one", "sentf": {"vqa": ["a", "b"]}, "labelf": {"vqa": [{"tree": 1}, {"yes": 1}]}}],
    )
    summary = read(data_root, "odd", answers=["yes"]).summary
    assert summary == "odd: 2 sentences, 1 image, 1 question whose answers are not in the table (such as 'tree')"


def test_table_of_other_data_is_refused(data_root):
    with pytest.raises(UserError) as error:
        read(data_root, answers=["tree"])
    assert str(error.value) == (
        f"none of the 3 answered questions of train has an answer in {data_root}/lxmert/all_ans.json "
        "(the first answer is 'yes'); the table belongs to other data"
    )


# --- room for batches


def check(folder, num_workers, local_world_size=2, batch_size=1):
    return check_shared_memory(
        PretrainingOptions(), batch_size, num_workers=num_workers, local_world_size=local_world_size, folder=folder
    )


def test_small_shared_memory_is_told_with_what_fits(tmp_path):
    """A worker has 3 batches of 3 x 384 x 640 bytes there, 2.1 MB for each of 2 ranks."""
    folder = tmp_path / "shm"
    with small_tmpfs(folder, "16m"):
        with pytest.raises(UserError) as error:
            check(folder, 20)
        message = str(error.value)
        assert "\n" not in message
        assert message.startswith(
            f"{folder} has 16 MB free, but 20 workers of 2 ranks may put 85 MB of batches there; "
        )
        assert "--shm-size=1g" in message
        fitting = int(re.search(r"lower --num_workers to (\d+)$", message)[1])
        assert fitting == 3
        check(folder, fitting)
        with pytest.raises(UserError):
            check(folder, fitting + 1)
        check(folder, 2 * fitting + 1, local_world_size=1)
        (folder / "taken").write_bytes(bytes(12 << 20))  # what others hold there isn't ours
        with pytest.raises(UserError, match=r"has 4 MB free, but 3 workers .* lower --num_workers to 0$"):
            check(folder, fitting)
        check(folder, 0)


def test_a_machine_without_that_folder_is_no_error(tmp_path):
    assert check(tmp_path / "none", 1000) is None


def test_categories_and_the_first_images_can_be_chosen(data_root):
    everything = read(data_root)
    categories = everything.sentences.categories
    for category in categories:
        chosen = read(data_root, categories=["elsewhere", category]).sentences
        assert 0 < len(chosen) == int((everything.sentences.category_codes == categories.index(category)).sum())
        assert {chosen.categories[code] for code in chosen.category_codes.tolist()} == {category}
    first = read(data_root, most_images=2)
    names = first.sentences.image_ids
    assert {names[code] for code in first.sentences.images.tolist()} == set(list(SIZES)[:2])
    assert len(read(data_root, most_images=1000).sentences) == len(everything.sentences)
    (data_root / image_path(list(SIZES)[2])).unlink()  # which the first two don't need
    assert read(data_root, most_images=2).summary.endswith("2 images")
    with pytest.raises(UserError, match=r"train has no sentences of --limit_source elsewhere; its categories are \w+"):
        read(data_root, categories=["elsewhere"])


def test_chance_is_the_share_of_the_most_frequent_word(data_root, monkeypatch):
    """Of the words that a sentence keeps: three of six, both first ones, and of the first sentence two of four."""
    split = captions(data_root, {"one": ["word1 word1 word2 word3"], "two": ["word1 word4"]})
    assert most_frequent_share(make(data_root, split)) == 3 / 6
    assert most_frequent_share(make(data_root, split, max_seq_length=3)) == 2 / 2
    monkeypatch.setattr(pretraining, "COUNTED_SENTENCES", 1)
    assert most_frequent_share(make(data_root, split)) == 2 / 4
