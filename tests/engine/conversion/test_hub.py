"""A folder for transformers, loaded where this engine isn't; and what a conversion to one refuses."""

import io
import json
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unicodedata import normalize

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import BertWordPieceTokenizer
from transformers import AutoTokenizer, BertConfig, BertTokenizer

from engine.checkpoint.description import MODELS, ModelDescription, Preprocessing
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.configuration.bert import Splitting, read_bert
from engine.conversion.convert import convert
from engine.conversion.flags import parse_conversion
from engine.conversion.hub.card import NO_LICENSE, model_card
from engine.conversion.hub.export import hub_tokenizer
from engine.conversion.hub.modeling_clip_vil import draw_cells
from engine.conversion.hub.processing_clip_vil import ClipVilImageProcessor
from engine.data.annotations.text import TextEncoder
from engine.data.images.decoding import DRAFT_PIXELS, ImageShape, to_pixels
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape, normalise_images
from kernels.sampling import sample_cells
from tests.conftest import ROOT, environment, small_tmpfs

WORDS = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "what", "is", "this", "a", "dog", "##s", "on", "sofa", "the"),
    *("The", "cafe", "Café", "?", "猫"),
]
BERT = BertConfig(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    vocab_size=len(WORDS),
    max_position_embeddings=20,
)
TEXTS = ["What is THIS?", " the café dogs on a sofa, what is this on the sofa on the sofa", "[MASK] 猫"]
# The longest chain of operators has fewer than 100, sums of at most 576 terms in them; blocked as they are added up,
# each is off by less than ten roundings of its largest value.
ROUNDINGS = 1000


def describe(architecture: str) -> ModelDescription:
    visual = VisualShape(SHAPES["tiny"], sub_feat_num=4, pos_num=4)
    answers = ["yes", "no", "a dog"]
    return ModelDescription(BERT.to_diff_dict(), visual, answers, WORDS, architecture, Preprocessing(14, 64, 96))


def random_model(architecture: str) -> Any:
    """With batch norms that change something, in their statistics too."""
    torch.manual_seed(1)
    model = describe(architecture).build()
    for norm in model.bert.encoder.visual_model.visual.norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    return model.eval()


def run(*flags: object) -> None:
    convert(parse_conversion([str(flag) for flag in flags]))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each architecture, as the engine saves it."""
    folder = tmp_path_factory.mktemp("models")
    for architecture in MODELS:
        model = random_model(architecture)
        save_pretrained(folder / architecture, model.state_dict(), {}, describe(architecture), "a test")
    return folder


def cases(architecture: str) -> dict[str, dict[str, Any]]:
    """Arguments that both models take."""
    draws = torch.Generator().manual_seed(2)
    inputs: dict[str, Any] = {
        "input_ids": torch.randint(0, len(WORDS), (3, 14), generator=draws),
        "token_type_ids": torch.randint(0, 2, (3, 14), generator=draws),
        "attention_mask": (torch.arange(14) < torch.tensor([[5], [9], [14]])).long(),
        "images": torch.randint(0, 256, (3, 3, 64, 96), generator=draws, dtype=torch.uint8),
    }
    if architecture == "pretraining":
        words = torch.full((3, 14), -1)
        words[:, 3] = torch.tensor([7, 8, 9])
        inputs |= {"masked_lm_labels": words, "matched_label": torch.tensor([1, 0, -1])}
        inputs |= {"ans": torch.tensor([-1, 2, 0])}
    else:
        inputs["target"] = torch.rand(3, 3, generator=draws)
    drawn = {"sampling_state": torch.tensor([9_595_000_000_007, 3, 11])}
    return {
        "all cells": inputs,
        "drawn cells": {**inputs, **drawn},
        "given cells": {**inputs, "positions": torch.tensor([[0, 5, 5, 2], [3, 2, 1, 0], [1, 2, 3, 4]])},
        "shared images": {**inputs, **drawn, "images": inputs["images"][:2], "grid_of": torch.tensor([1, 0, 1])},
        "portraits": {**inputs, "images": inputs["images"].mT.contiguous()},
        "normalised images": {**inputs, "images": normalise_images(inputs["images"])},
    }


STRANGER = """
import importlib.util, pathlib, sys
sys.path.append(sys.argv[1])
import torch
import transformers
from packaging import version
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer

folder, trust = pathlib.Path(sys.argv[2]), {"trust_remote_code": True}
torch.set_num_threads(1)
found = {}
for name, (texts, cases) in torch.load(folder / "cases.pt").items():
    for dtype in (torch.float32, torch.float64):
        model = AutoModel.from_pretrained(folder / name, dtype=dtype, **trust)
        with torch.no_grad():
            found[name, dtype] = {case: dict(model(**inputs)) for case, inputs in cases.items()}
    processor = AutoProcessor.from_pretrained(folder / name, **trust)
    found[name, "inputs"] = dict(processor([Image.open(folder / "lying.jpg")] * len(texts), texts))
    # transformers' own class wants torchvision before 5.18, though ours doesn't.
    old = version.parse(transformers.__version__) < version.parse("5.18")
    images = type(processor.image_processor) if old else AutoImageProcessor
    found[name, "normalised"] = images.from_pretrained(folder / name, do_normalize=True, **trust)(
        Image.open(folder / "lying.jpg"))["images"]
    found[name, "one"] = dict(processor(Image.open(folder / "lying.jpg"), texts[0]))
    words = AutoTokenizer.from_pretrained(folder / name, **trust)(texts[0])["input_ids"]
    assert words == [n for n in found[name, "inputs"]["input_ids"][0].tolist() if n]
    found[name, "answers"] = AutoConfig.from_pretrained(folder / name, **trust).id2label
ours = [name for name in ("engine", "kernels", "launch") if importlib.util.find_spec(name)]
assert not ours and "engine" not in sys.modules, ours
torch.save(found, folder / "found.pt")
"""


def test_a_process_without_the_engine_gives_the_same(models: Path, tmp_path: Path) -> None:
    """Both architectures, one of them in several files, in fp32 and in fp64; and the inputs bit for bit."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "lying.jpg", exif=exif)
    given = {}
    for architecture in MODELS:
        size = ["--max_shard_size", "300KB"] if architecture == "pretraining" else []
        run("--from", "safetensors", models / architecture, "--to", "hub", tmp_path / architecture, *size)
        given[architecture] = (TEXTS, cases(architecture))
    assert len(list(tmp_path.glob("pretraining/model-*.safetensors"))) == 3
    assert (tmp_path / "question_answering" / "model.safetensors").exists()
    torch.save(given, tmp_path / "cases.pt")
    # -S leaves out what an editable installation adds to the path, -I the working directory and PYTHONPATH.
    command = [sys.executable, "-I", "-S", "-c", STRANGER, sysconfig.get_path("purelib"), str(tmp_path)]
    variables = {**environment(), "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    ended = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    found = torch.load(tmp_path / "found.pt")
    for architecture in MODELS:
        for dtype in (torch.float32, torch.float64):
            compare(random_model(architecture).to(dtype), architecture, found[architecture, dtype])
        compare_inputs(tmp_path / "lying.jpg", found, architecture)
        assert found[architecture, "answers"] == {0: "yes", 1: "no", 2: "a dog"}


def compare(model: Any, architecture: str, found: dict[str, Any]) -> None:
    for case, inputs in cases(architecture).items():
        model.bert.encoder.sub_sampling_in_evaluation = "sampling_state" in inputs or "positions" in inputs
        with torch.no_grad():
            expected = vars(model(**inputs))
        assert found[case].keys() <= expected.keys()
        assert {"loss", "answer_scores"} <= found[case].keys()
        for name, value in found[case].items():
            assert value.dtype == expected[name].dtype
            unit = torch.finfo(value.dtype).eps / 2
            off = float((value - expected[name]).abs().max())
            assert off <= ROUNDINGS * unit * float(expected[name].abs().max()), (case, name, value.dtype)


def compare_inputs(image: Path, found: dict[Any, Any], architecture: str) -> None:
    """With what the engine's prediction makes of the same."""
    encoder = TextEncoder(describe(architecture).tokenizer())
    inputs = found[architecture, "inputs"]
    assert inputs.keys() == {"input_ids", "token_type_ids", "attention_mask", "images"}
    pixels = torch.from_numpy(to_pixels(image.read_bytes(), ImageShape(64, 96), "pillow"))
    assert pixels.shape == (3, 96, 64)  # it stands
    assert not inputs["token_type_ids"].any()
    for row, text in enumerate(TEXTS):
        tokens = [2, *encoder(text)[:12], 3]
        assert inputs["input_ids"][row].tolist() == tokens + [0] * (14 - len(tokens))
        assert inputs["attention_mask"][row].tolist() == [1] * len(tokens) + [0] * (14 - len(tokens))
        assert torch.equal(inputs["images"][row], pixels)
    assert len(encoder(TEXTS[1])) > 12
    assert all(torch.equal(value, inputs[name][:1]) for name, value in found[architecture, "one"].items())
    assert torch.equal(found[architecture, "normalised"], normalise_images(pixels[None]))


@pytest.mark.parametrize(("cells", "samples"), [(6, 4), (240, 100), (1024, 1024)])
def test_cells_are_drawn_as_by_the_engine(cells: int, samples: int) -> None:
    for state in ([9595, 0, 0], [2**62 + 12345, 2**33 + 7, 2**32 - 2], [-1, 3, 5]):
        ours, _ = sample_cells(torch.tensor(state), 5, cells, samples)
        assert torch.equal(draw_cells(torch.tensor(state), 5, cells, samples), ours.long())


def odd_image(mode: str, turn: int = 1, size: tuple[int, int] = (90, 50)) -> bytes:
    """A file of random pixels."""
    draws = np.random.default_rng(1)
    if mode == "I;16":
        image = Image.fromarray(draws.integers(0, 65536, size[::-1], dtype=np.uint16))
    else:
        image = Image.fromarray(draws.integers(0, 256, (*size[::-1], 4), dtype=np.uint8), "RGBA").convert(mode)
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    transparency = {"transparency": 3} if mode == "P" else {}
    image.save(file, "JPEG" if mode == "CMYK" else "PNG", exif=exif, **transparency)
    return file.getvalue()


SIZES = ((96, 64), (33, 1000), (701, 700), (2, 1))  # as it has to be, cropped, almost square, smaller than a cell


@pytest.mark.parametrize(
    "data",
    [
        *(pytest.param(odd_image(mode), id=mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")),
        *(pytest.param(odd_image("RGB", turn), id=f"turned {turn}") for turn in range(2, 9)),
        *(
            pytest.param(odd_image("RGB", size=size), id=str(size))
            for size in ((96, 64), (33, 1000), (701, 700), (2, 1))
        ),
    ],
)
@pytest.mark.parametrize("orient_after_resize", [False, True])
def test_pixels_are_the_engines(data: bytes, orient_after_resize: bool) -> None:
    processor = ClipVilImageProcessor(64, 96, orient_after_resize)
    ours = to_pixels(data, ImageShape(64, 96, orient_after_resize), "pillow")
    assert np.array_equal(processor.pixels(Image.open(io.BytesIO(data))), ours)


@pytest.mark.parametrize("turn", [1, 6])
def test_a_large_jpeg_is_decoded_at_the_same_scale(turn: int) -> None:
    exif, file = Image.Exif(), io.BytesIO()
    exif[0x0112] = turn
    small = Image.open(io.BytesIO(odd_image("RGB")))
    small.resize((6000, 3000)).save(file, "JPEG", exif=exif)
    image = Image.open(io.BytesIO(file.getvalue()))
    assert image.width * image.height > DRAFT_PIXELS
    ours = to_pixels(file.getvalue(), ImageShape(64, 96), "pillow")
    assert np.array_equal(ClipVilImageProcessor(64, 96).pixels(image), ours)
    assert image.width < 6000  # by a draft


def test_what_does_not_make_a_batch_is_refused() -> None:
    processor = ClipVilImageProcessor(64, 96)
    wide, high = Image.new("RGB", (90, 50)), Image.new("RGB", (50, 90))
    assert processor([wide, wide])["images"].shape == (2, 3, 64, 96)
    with pytest.raises(ValueError, match="portraits and landscapes"):
        processor([wide, high])
    with pytest.raises(ValueError, match="too narrow"):
        processor(Image.new("RGB", (5000, 1)))
    with pytest.raises(ValueError, match="floating-point"):
        processor(Image.new("F", (90, 50)))


SETTINGS = [
    Splitting(),
    Splitting(do_lower_case=False),
    Splitting(strip_accents=False),
    Splitting(do_lower_case=False, strip_accents=True),
    Splitting(do_lower_case=False, tokenize_chinese_chars=False),
]
ODD_TEXTS = [
    "The CAFÉ the Café",
    "café cafe\u0301 ÅNGSTRÖM A\u030angstro\u0308m",
    "İstanbul I\u0307stanbul \u0131Iiİ straße",
    "猫猫 一二,三 ｶﾅ 한국",
    "a\x00b\u200bc\x1fd\x85e\u2028f\ufeffg\ufffdh\u00a0i",
    "🙂 👩\u200d👩 ✈\ufe0f a🙂b",
    "[MASK] [mask] it's",
]


def written_by(kind: str, splitting: Splitting, ids: dict[str, int]) -> dict[str, str]:
    """The files of a tokenizer, as such folders have them."""
    names = asdict(splitting)
    lower, strip, chinese = names.values()
    whole = BertWordPieceTokenizer(ids, lowercase=lower, strip_accents=strip, handle_chinese_chars=chinese)
    vocabulary = "".join(f"{word}\n" for word in ids)
    return {
        "vocab.txt": {"vocab.txt": vocabulary},
        "tokenizer_config.json": {"vocab.txt": vocabulary, "tokenizer_config.json": json.dumps(names)},
        "tokenizer.json": {"tokenizer.json": whole.to_str()},
    }[kind]


FOLDERS = [(splitting, kind) for splitting in SETTINGS for kind in ("tokenizer_config.json", "tokenizer.json")]
FOLDERS += [(splitting, "vocab.txt") for splitting in SETTINGS[:2]]  # the others can't be had from a vocabulary alone


@pytest.mark.parametrize(("splitting", "kind"), FOLDERS, ids=str)
def test_words_are_the_same_from_bert_to_the_hub_and_back(splitting: Splitting, kind: str, tmp_path: Path) -> None:
    """The pieces are all letters of the texts, as they are and as any setting has them, so that none is unknown."""
    flag = splitting.do_lower_case if kind == "vocab.txt" else None
    forms = [form for text in ODD_TEXTS for form in (text, text.lower())]
    letters = sorted({letter for form in forms for letter in form + normalize("NFD", form) if letter.strip()})
    ids = {word: n for n, word in enumerate(dict.fromkeys([*WORDS, *letters, *(f"##{letter}" for letter in letters)]))}
    config = BertConfig(vocab_size=len(ids))
    for folder in ("bert", "hub"):
        config.save_pretrained(tmp_path / folder)
    for name, content in written_by(kind, splitting, ids).items():
        (tmp_path / "bert" / name).write_text(content, encoding="utf-8")

    read = read_bert(str(tmp_path / "bert"), flag)[1]
    description = ModelDescription.of(config, VisualShape(SHAPES["tiny"]), None, read)
    description = ModelDescription.from_dict(json.loads(json.dumps(description.to_dict())), "a test")
    hub_tokenizer(description).save_pretrained(tmp_path / "hub")
    exported = AutoTokenizer.from_pretrained(tmp_path / "hub")
    again = read_bert(str(tmp_path / "hub"))[1]
    theirs = BertTokenizer(vocab=ids, **asdict(splitting))
    for text in ODD_TEXTS:
        expected = theirs(text, add_special_tokens=False)["input_ids"]
        assert expected
        assert ids["[UNK]"] not in expected
        assert exported(text, add_special_tokens=False)["input_ids"] == expected
        assert [TextEncoder(place)(text) for place in (read, description.tokenizer(), again)] == [expected] * 3


def test_the_card_has_the_figures_of_the_run(tmp_path: Path) -> None:
    """Those of its step, and no others; and no path of this machine."""
    shutil.copytree(ROOT / "tests" / "earlier" / "run", tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    later = {**records[-1], "step": 7, "loss": 99.5}
    validation = {"kind": "valid", "epoch": 1, "step": 6, "loss": 5.25, "by_type": {"x": 1}}
    lines = [json.dumps(record) for record in (*records, validation, later, {**validation, "step": 7, "loss": 98.5})]
    (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(lines))
    host = {"cpu": "a CPU", "cores": 2, "ranks": [0, 1], "gpus": []}
    settings = {"train": f"{tmp_path}/own.jsonl,mscoco_train", "lr": 0.0008, "output": str(tmp_path)}
    start = {
        "configuration": settings,
        "hosts": {"somewhere": host},
        "data": {"train": {"sentences": 1234, "images": 5}},
    }
    (tmp_path / "run" / "run.json").write_text(json.dumps({"starts": [start]}))
    run("--from", "deepspeed", tmp_path / "run" / "Step000006", "--to", "hub", tmp_path / "hub", "--license", "mit")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "\nlicense: mit\n---\n" in card
    assert 'AutoModel.from_pretrained("hub", trust_remote_code=True)' in card
    for row in ("optimiser step | 6", "lr | 0.0008", "loss, validation | 5.25", "trained on | own.jsonl, mscoco_train"):
        assert f"| {row} |" in card
    assert f"| loss, last report | {records[-1]['loss']:.6g} |" in card
    assert "| ranks | 2 on a CPU |" in card
    assert "| train: sentences | 1,234 |" in card
    assert not any(word in card for word in ("99.5", "98.5", "somewhere", str(tmp_path)))


@pytest.mark.parametrize("name", ["Epoch01", "Epoch01_LXRT.pth"])
def test_a_file_of_weights_is_found_in_its_run_by_its_epoch(name: str, tmp_path: Path) -> None:
    validation = {"kind": "valid", "epoch": 1, "step": 12, "loss": 5.25}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(validation))
    (tmp_path / "config.yaml").write_text("lr: 0.5\n")
    card = model_card("x", {}, describe("pretraining"), [("bert", str(tmp_path)), ("lxrt", str(tmp_path / name))], None)
    assert "| optimiser step | 12 |" in card
    assert "| loss, validation | 5.25 |" in card


def test_a_card_invents_nothing(models: Path, tmp_path: Path) -> None:
    run("--from", "safetensors", models / "question_answering", "--to", "hub", tmp_path / "hub")
    card = (tmp_path / "hub" / "README.md").read_text()
    assert card.count(NO_LICENSE) == 2
    assert "\nlicense:" not in card
    assert "isn't recorded" in card
    assert "drew\n4 of them" in card
    every = replace(describe("pretraining"), visual=VisualShape(SHAPES["tiny"], None))
    assert "as in its training" in model_card("x", {}, every, [], None)


def test_a_taken_target_and_unknown_words_are_refused(models: Path, tmp_path: Path) -> None:
    source = ("--from", "safetensors", models / "pretraining")
    with pytest.raises(UserError, match="is there already"):
        run(*source, "--to", "hub", models / "pretraining")
    shutil.copytree(models / "pretraining", tmp_path / "wordless")
    save_pretrained(
        *(tmp_path / "other", random_model("pretraining").state_dict(), {}),
        *(replace(describe("pretraining"), vocabulary=None), "a test"),
    )
    with pytest.raises(UserError, match="name its BERT with --bert"):
        run("--from", "safetensors", tmp_path / "other", "--to", "hub", tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--to", "hub", "x", "--max_shard_size", "much"], "--max_shard_size much: a size such as 5GB"),
        (["--to", "lxrt", "x", "--license", "mit"], "--license goes into the card of --to hub"),
        (["--to", "hub", "x", "--do_lower_case", "false"], "--do_lower_case is about the vocabulary that --bert names"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        parse_conversion(["--from", "lxrt", "y", *flags])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", ["4k", "40k", "200k"])
def test_a_full_disk_leaves_nothing(models: Path, tmp_path: Path, size: str) -> None:
    """Full within the first files, within the code, and within the weights."""
    with small_tmpfs(tmp_path / "disk", size):
        with pytest.raises(UserError, match=r"hub can't be written \(the disk is full\)"):
            run("--from", "safetensors", models / "pretraining", "--to", "hub", tmp_path / "disk" / "hub")
        assert list((tmp_path / "disk").iterdir()) == []
