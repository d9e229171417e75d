import json
import math
import multiprocessing
import random

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.pre_tokenizers import Whitespace

from engine.data.annotations import Sentence
from engine.data.answers import AnswerTable
from engine.data.images import image_path
from engine.data.masking import IGNORE
from engine.data.pretraining import (
    Batch,
    Collator,
    PretrainingDataset,
    PretrainingOptions,
    TextEncoder,
    evaluation_loader,
    read_split,
    training_loader,
)
from engine.data.sampler import Sample
from engine.errors import UserError

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


def make(data_root, split="train", sentences=None, **options):
    """A data set of images of 12 x 20 pixels."""
    sizes = {"image_size_min": 12, "image_size_max": 20, "aspect_ratio_group_factor": 0}
    options = PretrainingOptions(**{"max_seq_length": 8, **sizes, **options})
    if sentences is None:
        sentences, _ = read_split("train", data_root, AnswerTable(["yes", "no"]))
    return PretrainingDataset(sentences, data_root, TextEncoder(tokenizer()), options, split)


def loader(dataset, batch_size=4, num_workers=0, rank=0, world_size=1, accumulation=1):
    return training_loader(
        dataset,
        batch_size,
        accumulation=accumulation,
        num_workers=num_workers,
        rank=rank,
        world_size=world_size,
        same_order=False,
    )


def text_examples(dataset, samples):
    """What was drawn for some samples."""
    examples = [dataset[sample] for sample in samples]
    return [(example["input_ids"], example["masked_lm_labels"], example["matched_label"]) for example in examples]


def assert_equal_batches(batches, others):
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch.uids == other.uids
        assert batch.unreadable == other.unreadable
        assert batch.inputs.keys() == other.inputs.keys()
        for name, value in batch.inputs.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(other.inputs[name])), name


# --- one example


def test_same_sample_gives_the_same_example_from_another_instance(data_root):
    one, other = make(data_root), make(data_root)
    for sample in (Sample(3, 7, 1), Sample(0, 0, 0)):
        first, second = one[sample], other[sample]
        assert np.array_equal(first.pop("image"), second.pop("image"))
        assert first == second


@pytest.mark.parametrize(
    ("options", "shift"),
    [({}, {"position": 100}), ({}, {"epoch": 1}), ({"seed": 1}, {}), ({"split": "valid"}, {})],
    ids=["another_position", "another_epoch", "another_seed", "another_split"],
)
def test_draws_depend_on_seed_split_epoch_and_position(data_root, options, shift):
    def samples(position=0, epoch=0):
        return [Sample(index, position + index, epoch) for index in range(21)]

    before = text_examples(make(data_root), samples())
    assert text_examples(make(data_root, **options), samples(**shift)) != before


def test_example_is_padded_and_marked(data_root):
    sentence = Sentence("u", "one", " word3 word4 nonsense ", None)
    example = make(data_root, sentences=[sentence], task_mask_lm=False, task_matched=False)[Sample(0, 5, 2)]
    image = example.pop("image")
    assert image.shape == (3, 12, 20)
    assert image.dtype == np.uint8
    assert example == {
        "uid": "u",
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
    sentence = Sentence("u", "one", " ".join(f"word{number}" for number in range(20)), None)
    example = make(data_root, sentences=[sentence], task_mask_lm=False)[Sample(0, 0, 0)]
    assert example["input_ids"] == [CLS, *(WORDS.index(f"word{number}") for number in range(6)), SEP]
    assert example["attention_mask"] == [1] * 8


def test_special_tokens_and_padding_are_never_predicted(data_root):
    example = make(data_root, word_mask_rate=1.0)[Sample(0, 0, 0)]
    inner = example["masked_lm_labels"][1:3]
    assert IGNORE not in inner
    assert example["masked_lm_labels"] == [IGNORE, *inner, *[IGNORE] * 5]
    assert example["input_ids"][0] == CLS
    assert example["input_ids"][3:] == [SEP, PAD, PAD, PAD, PAD]


def test_half_of_the_texts_are_swapped_and_never_for_one_of_the_same_image(data_root):
    dataset = make(data_root)
    own = {sentence.text: sentence.img_id for sentence in dataset.sentences}
    assert len(own) == len(dataset)  # so a text tells its image
    count, matched = 4000, 0
    for seed in range(count):
        pair = dataset.pair(seed % len(dataset), random.Random(seed))
        assert pair.is_matched == (own[pair.text] == pair.sentence.img_id)
        assert pair.is_matched == (pair.text == pair.sentence.text)
        matched += pair.is_matched
    # Fair coins: |z| > 4.5 has probability 7e-6.
    assert abs(matched - count / 2) < 4.5 * math.sqrt(count / 4)


def test_swapped_text_keeps_uid_and_image_and_loses_the_answer(data_root):
    dataset = make(data_root, task_mask_lm=False)
    question = next(n for n, sentence in enumerate(dataset.sentences) if sentence.label)
    examples = [dataset[Sample(question, position, 0)] for position in range(20)]
    assert {example["uid"] for example in examples} == {dataset.sentences[question].uid}
    assert {example["image"].tobytes() for example in examples} == {examples[0]["image"].tobytes()}
    assert {(example["matched_label"], example["ans"]) for example in examples} == {(1, 0), (0, IGNORE)}


@pytest.mark.parametrize(
    ("options", "matched_label"), [({"task_matched": False}, IGNORE), ({}, 1)], ids=["task_off", "one_image_only"]
)
def test_texts_that_stay(data_root, options, matched_label):
    sentences = [Sentence(f"u{number}", "one", f"word{number}", None) for number in range(3)]
    if options:
        sentences.append(Sentence("other", "two", "word9", None))
    dataset = make(data_root, sentences=sentences, task_mask_lm=False, **options)
    for position in range(20):
        example = dataset[Sample(1, position, 0)]
        assert example["matched_label"] == matched_label
        assert example["input_ids"][1] == WORDS.index("word1")


def test_groups_tell_landscapes_from_portraits(data_root):
    assert make(data_root).groups() == [0] * 7 + [1] * 7 + [0] * 7


# --- batches


def test_batch_has_the_models_inputs(data_root):
    dataset = make(data_root, seed=11)
    batch = Collator(11)([dataset[Sample(index, 30 + index, 4)] for index in range(3)])
    kinds = {name: (value.dtype, tuple(value.shape)) for name, value in batch.inputs.items() if name != "first_image"}
    assert kinds == {
        **dict.fromkeys(("input_ids", "attention_mask", "masked_lm_labels", "token_type_ids"), (torch.int64, (3, 8))),
        **dict.fromkeys(("matched_label", "ans"), (torch.int64, (3,))),
        "images": (torch.uint8, (3, 3, 12, 20)),
        "sampling_state": (torch.int64, (2,)),
    }
    assert batch.inputs["sampling_state"].tolist() == [11, 4]
    assert batch.inputs["first_image"] == 30
    assert not batch.inputs["token_type_ids"].any()
    assert len(batch) == 3


def test_batch_moves_its_tensors_and_keeps_the_rest(data_root):
    batch = Batch({"ids": torch.zeros(2), "first_image": 3}, ["a", "b"], []).to(torch.device("meta"))
    assert batch.inputs["ids"].is_meta
    assert batch.inputs["first_image"] == 3


def test_workers_give_bit_identical_batches_in_every_epoch(data_root):
    alone, helped = loader(make(data_root)), loader(make(data_root), num_workers=2)
    for epoch in range(2):
        alone.batch_sampler.set_epoch(epoch)
        helped.batch_sampler.set_epoch(epoch)
        assert_equal_batches(list(alone), list(helped))


def test_workers_start_with_the_loader_and_stay(data_root):
    """They are forked before autograd has threads, so never later, and get no work before they are asked."""
    before = set(multiprocessing.active_children())
    dataset = make(data_root)
    loaders = [loader(dataset, num_workers=2), evaluation_loader(dataset, 4, num_workers=1, rank=0, world_size=1)]
    workers = set(multiprocessing.active_children()) - before
    assert len(workers) == 3
    for _ in range(2):
        for batches in loaders:
            assert len(list(batches)) == len(batches)
    assert set(multiprocessing.active_children()) - before == workers


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
            batches = evaluation_loader(dataset, batch_size, num_workers=0, rank=rank, world_size=world_size)
            for batch in batches:
                assert not found.keys() & set(batch.uids)
                found.update(zip(batch.uids, batch.inputs["input_ids"].tolist(), strict=True))
        return found

    whole = drawn(4, 1)
    assert sorted(whole) == sorted(sentence.uid for sentence in dataset.sentences)
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
    batches = evaluation_loader(dataset, 7, num_workers=num_workers, rank=0, world_size=1)
    damaged = 0
    for batch in batches:
        for number, uid in enumerate(batch.uids):
            is_damaged = uid.startswith("two_")
            assert batch.inputs["images"][number].any() == (not is_damaged)
            if is_damaged:
                damaged += 1
                for name in ("masked_lm_labels", "matched_label", "ans"):
                    assert (batch.inputs[name][number] == IGNORE).all()
            else:
                assert batch.inputs["matched_label"][number] != IGNORE
        named = [uid for uid in batch.uids if uid.startswith("two_")]
        assert len(batch.unreadable) == len(named)
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
    sentences, summary = read_split("train", data_root, AnswerTable(["yes"]))
    assert len(sentences) == 21
    assert summary == "train: 21 sentences, 3 images"


def test_several_files_make_one_split(data_root):
    write(data_root, "more", [{"img_id": "one", "sentf": {"vg": ["word0"]}}])
    sentences, summary = read_split("more,train,", data_root, AnswerTable(["yes"]))
    assert sentences[0].uid == "one_vg_000"
    assert summary == "more,train,: 22 sentences, 3 images"


def test_missing_image_is_refused(data_root):
    (data_root / image_path("two")).unlink()
    with pytest.raises(UserError) as error:
        read_split("train", data_root, AnswerTable(["yes"]))
    assert str(error.value) == (
        f"1 of 3 images of train have no file, the first is {data_root / image_path('two')}; "
        "put them there, or pass --allow_missing_images to leave them out"
    )


def test_missing_image_is_left_out_where_allowed(data_root):
    (data_root / image_path("two")).unlink()
    sentences, summary = read_split("train", data_root, AnswerTable(["yes"]), allow_missing_images=True)
    assert {sentence.img_id for sentence in sentences} == {"one", "three"}
    assert summary == "train: 14 sentences, 2 images, 1 images without a file left out"


def test_answers_outside_the_table_are_counted(data_root):
    write(
        data_root,
        "odd",
        [{"img_id": "one", "sentf": {"vqa": ["a", "b"]}, "labelf": {"vqa": [{"tree": 1}, {"yes": 1}]}}],
    )
    _, summary = read_split("odd", data_root, AnswerTable(["yes"]))
    assert summary == "odd: 2 sentences, 1 images, 1 questions whose answers are not in the table (such as 'tree')"


def test_table_of_other_data_is_refused(data_root):
    with pytest.raises(UserError) as error:
        read_split("train", data_root, AnswerTable(["tree"]))
    assert str(error.value) == (
        f"none of the 3 answered questions of train has an answer in {data_root}/lxmert/all_ans.json "
        "(the first answer is 'yes'); the table belongs to other data"
    )


@pytest.mark.parametrize("name", ["[PAD]", "[CLS]", "[SEP]", "[MASK]"])
def test_vocabulary_without_a_special_token_is_refused(name):
    with pytest.raises(UserError) as error:
        TextEncoder(tokenizer([word for word in WORDS if word != name]))
    assert str(error.value) == f"the vocabulary lacks {name}; give a BERT vocabulary with --bert"


def test_special_tokens_are_found_by_name():
    text = TextEncoder(tokenizer(WORDS[::-1]))
    assert [text.pad_id, text.cls_id, text.sep_id, text.mask_id] == [44, 42, 41, 40]
    assert text.vocab_size == 45
    assert text(" word0  word1 ") == [39, 38]
