"""A trained model that takes images and sentences: the same numbers as the network's, whatever is given beside them."""

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import engine
from engine.checkpoint import load_pretrained
from engine.checkpoint.description import ModelDescription, Preprocessing
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.configuration.bert import read_bert
from engine.data.images.decoding import ImageShape, to_pixels
from engine.errors import UserError
from engine.inference import pixels
from engine.inference.attention import attention_to_cells, projections
from engine.inference.pretrained import Pretrained
from engine.inference.reading import note_of
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from tests.conftest import ROOT

EARLIER = ROOT / "tests" / "earlier"
SENTENCES = ["a [MASK] ring above a blue [MASK]", "is the red ring left of it ?", "a large white cross"]
# A batch of another size sums in another order. In fp64 that is far below fp32's unit in the last place, 2^-24 below 1,
# by which what comes out may then be rounded otherwise.
REORDERED = 2**-24


def write_model(scenes: Path, folder: Path, architecture: str = "pretraining", task: str | None = None) -> Path:
    """Random weights, wide enough that words and pixels matter; 3 of 6 cells are drawn."""
    bert, tokenizer = read_bert(str(scenes / "bert"))
    visual = VisualShape(SHAPES["tiny"], sub_feat_num=3, pos_num=3)
    answers = json.loads((scenes / "vqa" / "trainval_label2ans.json").read_text())
    reads = Preprocessing(14, 64, 96, aspect_ratio_group_factor=0)
    description = ModelDescription.of(bert, visual, answers, tokenizer, architecture, reads, task)
    torch.manual_seed(5)
    save_pretrained(folder, description.build().state_dict(), {}, description, "a test")
    return folder


@pytest.fixture(scope="module")
def model(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    folder = write_model(scenes, tmp_path_factory.mktemp("inference") / "model")
    return engine.load_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def photos(scenes: Path) -> list[Path]:
    """A portrait between two landscapes."""
    found: dict[bool, list[Path]] = {True: [], False: []}
    for path in sorted((scenes / "mscoco" / "val2014").glob("*.jpg")):
        with Image.open(path) as image:
            found[image.width > image.height].append(path)
    return [found[True][0], found[False][0], found[True][1]]


def network_scores(model: Pretrained, photo: Path, sentence: str, number: int) -> tuple[torch.Tensor, ...]:
    """Those of matching, of answers, and of words in the places of [MASK], by the training's own forward pass."""
    ids = model.encoder(sentence)[:12]
    words = model.encoder.vocabulary
    tokens = [words.cls_id, *ids, words.sep_id]
    padded = torch.tensor([tokens + [words.pad_id] * (14 - len(tokens))])
    pixels = to_pixels(photo.read_bytes(), ImageShape(64, 96), "pillow")
    none = torch.full_like(padded, -1)
    masks = (padded[0] == words.mask_id).nonzero()[:, 0]
    with torch.no_grad():
        output = model.network(
            padded,
            torch.zeros_like(padded),
            torch.tensor([[1] * len(tokens) + [0] * (14 - len(tokens))]),
            torch.from_numpy(pixels)[None],
            masked_lm_labels=none[0, masks],
            matched_label=none[:, 0],
            ans=none[:, 0],
            masked_positions=masks,  # as a training has it: a product of other shapes adds up in another order
            sampling_state=torch.tensor([9595, 0, number]),
        )
    return output.matched_scores[0], output.answer_scores[0], output.lm_scores


def test_probabilities_are_those_of_the_networks_scores(model: Pretrained, photos: list[Path]) -> None:
    """Bit for bit where pairs are read one by one, with the cells that an evaluation draws for the same numbers."""
    numbers = [0, 7, 12]
    readings = model.read(photos, SENTENCES, numbers=numbers, batch_size=1)
    for reading, photo, sentence, number in zip(readings, photos, SENTENCES, numbers, strict=True):
        matched, answers, masks = network_scores(model, photo, sentence, number)
        assert reading.matched == float(matched.softmax(0)[1])
        assert np.array_equal(reading.answer_probabilities, answers.softmax(0).numpy())
        assert np.array_equal(reading.word_probabilities, masks.softmax(1).numpy())
        assert len(reading.cells) == 3
    assert [len(reading.guesses()) for reading in readings] == [2, 0, 0]
    assert len({tuple(reading.cells) for reading in readings}) > 1


def test_a_pair_comes_to_the_same_alone_and_among_others(scenes: Path, photos: list[Path], tmp_path: Path) -> None:
    model = engine.load_pretrained(write_model(scenes, tmp_path / "model"), device="cpu")
    model.network.double()
    together = model.read(photos * 2, SENTENCES * 2)
    for number, reading in enumerate(together):
        alone = model.read(photos[number % 3], SENTENCES[number % 3])[0]
        assert np.array_equal(reading.pixels, alone.pixels)
        assert reading.tokens == alone.tokens
        assert reading.cells.tolist() == alone.cells.tolist()
        assert np.abs(reading.answer_probabilities - alone.answer_probabilities).max() <= REORDERED
        assert abs(reading.matched - alone.matched) <= REORDERED
    assert np.abs(together[0].answer_probabilities - together[1].answer_probabilities).max() > 1000 * REORDERED


def test_one_comes_alone_and_several_in_a_list(model: Pretrained, photos: list[Path]) -> None:
    one = model.answer(photos[0], SENTENCES[1], top_k=3)
    assert len(one) == 3
    assert one[0].probability >= one[1].probability >= one[2].probability
    assert one == model.answer([photos[0]], [SENTENCES[1]], top_k=3)[0]
    for several in (model.answer(photos, SENTENCES[1]), model.answer(photos[0], SENTENCES)):
        assert [len(answers) for answers in several] == [5, 5, 5]
    assert sum(answer.probability for answer in model.answer(photos[0], "ring", top_k=100)) == pytest.approx(
        1, abs=1e-5
    )
    assert [[len(guesses) for guesses in model.fill_mask(photos[0], SENTENCES[0], top_k=4)]] == [[4, 4]]
    assert isinstance(model.match(photos[0], SENTENCES[2]), float)
    assert model.match([], []) == []


def test_an_image_may_come_in_any_form(model: Pretrained, photos: list[Path], tmp_path: Path) -> None:
    """A photo that lies on its side, as cameras save them, and as it is meant."""
    with Image.open(photos[1]) as image:
        upright = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = tmp_path / "photo.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(lying, exif=exif)
    with Image.open(lying) as opened:
        forms = [str(lying), lying, lying.read_bytes(), opened, upright, np.asarray(upright)]
        readings = model.read(forms, "a ring")
    assert {reading.pixels.tobytes() for reading in readings} == {readings[0].pixels.tobytes()}
    assert readings[0].pixels.shape == (96, 64, 3)
    again = model.read(readings[0].pixels.transpose(2, 0, 1), "a ring")[0]
    assert np.array_equal(again.pixels, readings[0].pixels)


def test_what_was_not_read_is_told(model: Pretrained, photos: list[Path]) -> None:
    short, long = model.read(photos[0], ["a zebra# ring", "ring " * 40])
    assert short.tokens[0] == "[CLS]"
    assert short.tokens[-1] == "[SEP]"
    assert (short.unknown, short.cut) == (short.tokens.count("[UNK]"), 0)
    assert short.unknown > 0
    assert (long.unknown, long.cut, len(long.tokens)) == (0, 28, 14)


@pytest.mark.parametrize(
    ("tokens", "cut", "told"),
    [
        ("a ring", 0, ""),
        ("", 0, "there is no word in it, so that only the image was read"),
        ("a ring", 3, "only the first 2 of 5 word pieces were read ('a ring')"),
        ("a ru ##st ##y", 1, "only the first 4 of 5 word pieces were read ('a rusty')"),
        ("a [UNK]", 0, "1 of its 2 word pieces is unknown to the model's vocabulary"),
        ("[UNK] a [UNK]", 1000, "of 1,003 word pieces were read ('[UNK] a [UNK]'); 2 of them are unknown to the model"),
        ("[UNK]", 0, "its only word piece is unknown to the model's vocabulary, so that only the image says anything"),
        ("[UNK] [UNK]", 0, "all 2 of its word pieces are unknown to the model's vocabulary, so that only the image"),
        ("[UNK] [UNK]", 1, "; all 2 of these are unknown to the model's vocabulary"),
        ("ring " * 30, 1, "word pieces were read ('... ring ring"),
    ],
)
def test_what_was_not_read_is_told_in_words(tokens: str, cut: int, told: str) -> None:
    note = note_of(["[CLS]", *tokens.split(), "[SEP]"], cut)
    assert told in note
    assert bool(told) == bool(note)
    assert len(note) < 200


def test_python_warns_once_of_what_was_not_read(model: Pretrained, photos: list[Path]) -> None:
    """At the line that asks; `read` has it in each reading instead."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model.answer(photos[0], "a ring " * 20)
        model.match(photos, ["a ring", "a zebra# ring", "ring " * 40])
        model.fill_mask(photos[0], "[MASK] zebra#")
        model.features(photos, ["a ring", "ring " * 40, "ring " * 30])
    told = [str(warning.message) for warning in warned]
    assert told[0].startswith("the sentence: only the first 12 of 40 word pieces were read ('a ring a")
    assert told[1].startswith("sentence 2 of 3: ")
    assert told[1].endswith("unknown to the model's vocabulary (of 1 more, something wasn't read either)")
    assert "unknown" in told[2]
    assert told[3].startswith("sentence 2 of 3: only the first 12 of 40 word pieces")
    assert " of 40 word pieces" in told[3]  # the portrait's, though the landscapes are computed first
    assert len(told) == 4
    assert {warning.filename for warning in warned} == {__file__}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.answer(photos[0], SENTENCES[1])
        assert "only the first 12" in model.read(photos[0], "ring " * 40)[0].note


# --- features


def tensors_of(model: Pretrained, photo: Path, sentence: str, number: int = 0) -> tuple[torch.Tensor, ...]:
    """Those of the trunk for one pair, as a training computes them."""
    text = model.text([sentence])
    pixels = torch.from_numpy(to_pixels(photo.read_bytes(), ImageShape(64, 96), "pillow"))[None]
    with torch.no_grad():
        output: tuple[torch.Tensor, ...] = model.network.bert(
            text.input_ids,
            torch.zeros_like(text.input_ids),
            text.attention_mask,
            pixels,
            sampling_state=torch.tensor([model.seed, 0, number]),
        )
    return output


def test_features_are_those_of_the_trunk(model: Pretrained, photos: list[Path]) -> None:
    """Of landscapes and a portrait, bit for bit where pairs are read one by one."""
    features = model.features(photos, SENTENCES, batch_size=1)
    assert len(features) == 3
    shapes = {name: tuple(tensor.shape) for name, tensor in features.tensors().items()}
    assert shapes == {
        "input_ids": (3, 14),
        "attention_mask": (3, 14),
        "language": (3, 14, 32),
        "vision": (3, 3, 32),
        "cells": (3, 3),
        "pooled": (3, 32),
        "grid": (3, 6, SHAPES["tiny"].channels),
        "grid_shape": (3, 2),
    }
    assert {str(tensor.dtype) for tensor in features.tensors().values()} == {"torch.int64", "torch.float32"}
    assert features.grid_shape.tolist() == [[2, 3], [3, 2], [2, 3]]
    for n, (photo, sentence) in enumerate(zip(photos, SENTENCES, strict=True)):
        language, vision, pooled, grid = tensors_of(model, photo, sentence)
        assert torch.equal(features.language[n], language[0])
        assert torch.equal(features.vision[n], vision[0])
        assert torch.equal(features.pooled[n], pooled[0])
        assert torch.equal(features.grid_of(n), grid[0].permute(1, 2, 0))
        reading = model.read(photo, sentence)[0]
        assert features.cells[n].tolist() == reading.cells.tolist()
        assert int(features.attention_mask[n].sum()) == len(reading.tokens)
        assert model.encoder.tokenizer.id_to_token(int(features.input_ids[n, 1])) == reading.tokens[1]


def test_features_of_a_pair_do_not_depend_on_the_others(scenes: Path, photos: list[Path], tmp_path: Path) -> None:
    model = engine.load_pretrained(write_model(scenes, tmp_path / "model"), device="cpu")
    model.network.double()
    model.dtype = torch.float64
    together = model.features(photos * 2, SENTENCES * 2, batch_size=4)
    for n in range(6):
        alone = model.features(photos[n % 3], SENTENCES[n % 3])
        for name, tensor in alone.tensors().items():
            assert (together.tensors()[name][n] - tensor[0]).abs().max() <= REORDERED
    assert (together.pooled[0] - together.pooled[1]).abs().max() > 1000 * REORDERED


def test_features_can_be_trained_on(model: Pretrained, photos: list[Path]) -> None:
    """They are no tensors of inference mode, which autograd refuses."""
    head = torch.nn.Linear(32, 1)
    head(model.features(photos, "a ring").pooled).sum().backward()
    assert head.weight.grad is not None
    assert len(model.features([], [])) == 0
    for ask in (model.features, model.read):
        with pytest.raises(UserError, match="batch_size=0: at least 1 is needed"):
            ask(photos, "a ring", batch_size=0)


def test_cells_are_drawn_by_the_seed_or_all_are_read(scenes: Path, photos: list[Path], tmp_path: Path) -> None:
    folder = write_model(scenes, tmp_path / "model", "question_answering")
    one, same, other, whole = (
        engine.load_pretrained(folder, device="cpu", **options).features(photos, "a ring")
        for options in ({"seed": 1}, {"seed": 1}, {"seed": 2}, {"sub_sampling": False, "seed": 1})
    )
    assert torch.equal(one.pooled, same.pooled)
    assert not torch.equal(one.cells, other.cells)
    assert not torch.equal(one.pooled, other.pooled)
    assert torch.equal(one.grid, whole.grid)
    assert whole.cells.tolist() == [list(range(6))] * 3
    assert whole.vision.shape == (3, 6, 32)


@pytest.mark.parametrize(
    ("device", "dtype", "expected"),
    [
        ("cpu", None, torch.float32),
        ("cpu", torch.bfloat16, torch.bfloat16),
        pytest.param(
            *("cuda", None, torch.float16),
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
        ),
    ],
)
def test_features_have_the_dtype_of_the_model_and_lie_in_main_memory(
    scenes: Path, photos: list[Path], tmp_path: Path, device: str, dtype: torch.dtype | None, expected: torch.dtype
) -> None:
    folder = write_model(scenes, tmp_path / "model")
    features = engine.load_pretrained(folder, device=device, dtype=dtype).features(photos, "a ring")
    parts = (features.language, features.vision, features.pooled, features.grid)
    assert {part.dtype for part in parts} == {expected}
    assert {tensor.device.type for tensor in features.tensors().values()} == {"cpu"}
    assert torch.equal(features.cells, engine.load_pretrained(folder, device="cpu").features(photos, "a ring").cells)


def test_the_network_alone_says_what_it_lacks(scenes: Path, photos: list[Path], tmp_path: Path) -> None:
    """As a script calls what engine.checkpoint.load_pretrained gives: tensors, and no labels."""
    model = engine.load_pretrained(write_model(scenes, tmp_path / "model"), device="cpu")
    text, pixels = model.text(["a ring"]), to_pixels(photos[0].read_bytes(), ImageShape(64, 96), "pillow")
    inputs = (text.input_ids, torch.zeros_like(text.input_ids), text.attention_mask, torch.from_numpy(pixels)[None])
    network = load_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"reads 3 of the 6 cells of an image, and nothing says which; give sampling_s"):
        network(*inputs)
    drawn = network(*inputs, sampling_state=torch.tensor([9595, 0, 0]))
    assert torch.equal(drawn.pooled, model.features(photos[0], "a ring").pooled)
    whole = load_pretrained(tmp_path / "model", sub_sampling=False)(*inputs)
    assert whole.vision.shape == (1, 6, 32)


def test_attention_is_that_of_the_last_layer(model: Pretrained, photos: list[Path]) -> None:
    """What the layer's own operator gave, made again with all shares of attention: of words and of cells."""
    layer = model.network.bert.encoder.layer[-1]
    contexts: list[torch.Tensor] = []
    hook = layer.attention.output.dense.register_forward_pre_hook(lambda module, inputs: contexts.append(inputs[0]))
    values: list[torch.Tensor] = []
    other = layer.attention.self.value.register_forward_hook(lambda module, inputs, output: values.append(output))
    with projections(layer) as seen:
        reading = model.read(photos[0], SENTENCES[2], attention=True)[0]
    hook.remove()
    other.remove()
    heads, words = 2, 14
    query, key, value = (
        tensor[0].unflatten(-1, (heads, -1)).transpose(0, 1) for tensor in (seen["query"], seen["key"], values[0])
    )
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    scores[..., len(reading.tokens) : words] = float("-inf")
    shares = scores.softmax(-1)
    context = (shares @ value).transpose(0, 1).flatten(1)
    # Each of context's values is a mean of `value`'s, of the order of 1, over 17 tokens, of shares that come from sums
    # of 16 terms: (17 + 16) x 2^-24 of it, ten times over for the exponential.
    assert (context - contexts[0][0]).abs().max() <= 10 * 33 * 2**-24 * value.abs().max()
    expected = shares[:, : len(reading.tokens), words:].mean(0)
    assert reading.attention.shape == (len(reading.tokens), 3)
    assert np.allclose(reading.attention, expected, rtol=0, atol=33 * 2**-24)
    assert model.read(photos[0], SENTENCES[2])[0].attention is None


def test_padding_gets_no_attention() -> None:
    """One head of one dimension: scores are products of numbers, and the second word is padding."""
    seen = {"query": torch.tensor([[[1.0], [0.0], [0.0]]]), "key": torch.tensor([[[0.0], [9.0], [1.0]]])}
    shares = attention_to_cells(seen, 1, torch.tensor([[1, 0]]))
    assert shares.shape == (1, 2, 1)
    assert shares[0, 0, 0] == pytest.approx(np.e / (1 + np.e), abs=1e-6)
    assert shares[0, 1, 0] == pytest.approx(0.5, abs=1e-6)


def test_all_cells_are_read_where_none_are_drawn(model: Pretrained, photos: list[Path]) -> None:
    encoder = model.network.bert.encoder
    encoder.sub_sampling_in_evaluation = False
    try:
        assert model.read(photos[0], "a ring")[0].cells.tolist() == list(range(6))
    finally:
        encoder.sub_sampling_in_evaluation = True


def test_each_task_has_its_probabilities_and_its_words(scenes: Path, photos: list[Path], tmp_path: Path) -> None:
    """Those of VQA are by themselves, and of visual entailment shares, as launch/predict.py --task has them."""
    sums = {}
    for task in ("vqa", "snli_ve", None):
        folder = write_model(scenes, tmp_path / str(task), "question_answering", task)
        model = engine.load_pretrained(folder, device="cpu")
        assert model.abilities == {"answer"}
        reading = model.read(photos[0], "A RING")[0]
        sums[task] = float(reading.answer_probabilities.sum())
        assert (reading.matched, reading.word_probabilities) == (None, None)
    assert sums["snli_ve"] == pytest.approx(1, abs=1e-5)
    assert sums["vqa"] == sums[None]
    assert abs(sums["vqa"] - 1) > 0.1


def test_checkpoints_of_earlier_versions_are_read(scenes: Path) -> None:
    fine_tuned = engine.load_pretrained(EARLIER / "vqa" / "BEST", device="cpu")
    assert fine_tuned.abilities == {"answer"}
    pretrained = engine.load_pretrained(EARLIER / "run", device="cpu")  # its folder stands for its only checkpoint
    assert pretrained.source == str(EARLIER / "run" / "Step000006")
    photo = next((EARLIER / "data" / "mscoco" / "val2014").glob("*.jpg"))
    assert 0 < pretrained.match(photo, "a ring") < 1
    with pytest.raises(
        UserError, match=r"not trained for `answer`; load .* This one has `fill_mask`, `match`, `features`"
    ):
        pretrained.answer(photo, "what is it ?")
    for refused in (lambda: fine_tuned.match(photo, "a ring"), lambda: fine_tuned.fill_mask(photo, "a [MASK]")):
        with pytest.raises(UserError, match="load a pre-training's checkpoint"):
            refused()


def png_of(size: tuple[int, int], mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("image", "sentence", "told"),
    [
        (b"no image", "a [MASK]", "the image can't be read (cannot identify image file)"),
        (b"", "a [MASK]", "the image can't be read"),
        (png_of((8, 8))[:40], "a [MASK]", "the image can't be read"),
        (png_of((5000, 1)), "a [MASK]", "5000 x 1 pixels are too narrow"),
        ("nowhere.jpg", "a [MASK]", "nowhere.jpg can't be read (No such file or directory)"),
        (np.zeros((4, 4), np.uint8), "a [MASK]", "uint8 (height, width, 3) is needed"),
        (np.zeros((4, 4, 3), np.float32), "a [MASK]", "float32"),
        (png_of((9, 9)), "a ring", "there is no [MASK] in 'a ring'"),
        (png_of((9, 9)), "ring " * 20 + "[MASK]", "no [MASK] among the first 12 pieces, which are all that it reads"),
        ([png_of((9, 9))] * 2, ["a [MASK]"] * 3, "2 images and 3 sentences; give as many, or one of either"),
    ],
)
def test_bad_input_is_one_line(model: Pretrained, image: object, sentence: str | Sequence[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        model.fill_mask(image, sentence)  # type: ignore[call-overload]
    assert told in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300


def test_no_model_is_one_line(scenes: Path, tmp_path: Path) -> None:
    folder = write_model(scenes, tmp_path / "model")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    for place in (folder, tmp_path / "nowhere", scenes / "bert"):
        with pytest.raises(UserError):
            engine.load_pretrained(place)


def test_a_model_without_words_is_one_line(scenes: Path, tmp_path: Path) -> None:
    model = engine.load_pretrained(write_model(scenes, tmp_path / "model"), device="cpu")
    wordless = replace(model.description, vocabulary=None)
    save_pretrained(tmp_path / "wordless", model.network.state_dict(), {}, wordless, "a test")
    with pytest.raises(UserError, match="wordless has no vocabulary; convert it again with --bert"):
        engine.load_pretrained(tmp_path / "wordless")


def test_one_image_is_decoded_once(model: Pretrained, photos: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []
    decode = pixels.to_pixels
    monkeypatch.setattr(pixels, "to_pixels", lambda data, *more: decoded.append(data) or decode(data, *more))
    several = model.read(photos[0], SENTENCES)
    assert [reading.tokens[-1] for reading in several] == ["[SEP]"] * 3
    assert decoded == [photos[0].read_bytes()]


def test_the_description_keeps_the_task(scenes: Path, tmp_path: Path) -> None:
    folder = write_model(scenes, tmp_path / "model", "question_answering", "gqa")
    model = engine.load_pretrained(folder, device="cpu")
    assert model.description.task == "gqa"
    assert replace(model.description, task=None).to_dict()["task"] is None
