"""Exchange of weights: the recorded state of the original through each format, and what is refused on the way."""

import json
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW
from transformers import BertConfig, BertForPreTraining

from engine.checkpoint import load_pretrained
from engine.checkpoint.answers import match_answers
from engine.checkpoint.formats.original import read_original
from engine.checkpoint.formats.pretrained import read_description
from engine.checkpoint.formats.torchscript import read_torchscript
from engine.checkpoint.weights import BACKBONE, DECODER, WORDS
from engine.conversion.convert import convert
from engine.conversion.flags import parse_conversion
from engine.conversion.sources import describe, read_source
from engine.errors import UserError
from engine.model.clip_resnet import ClipResNet, ResNetShape
from tests.conftest import ROOT, launch
from tests.engine.checkpoint.test_saving import Hostile
from tests.parity import LOSS, model_inputs, read_arrays

GOLDEN = ROOT / "tests" / "golden"
RECORDED = GOLDEN / "model_pretrain"
CONFIG = json.loads((RECORDED / "config.json").read_text())
WORD_PIECES = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]"]
VARIANT = "qa1_sub0_pos1"  # all parts of the model, all cells


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recorded state as the original saves it on several GPUs, its BERT's folder and its answer table."""
    folder = tmp_path_factory.mktemp("original")
    state = {f"module.{key}": torch.from_numpy(array) for key, array in read_arrays(RECORDED / "state.npz").items()}
    torch.save(state, folder / "Epoch09_LXRT.pth")
    names = ("vocab_size", "hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    bert = {name: CONFIG["config"]["bert"][name] for name in names}
    bert |= {"num_hidden_layers": 2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (folder / "bert").mkdir()
    (folder / "bert" / "config.json").write_text(json.dumps({"model_type": "bert", **bert}))
    (folder / "bert" / "vocab.txt").write_text("".join(f"{word}\n" for word in WORD_PIECES))
    shutil.copy(GOLDEN / "vqa" / "all_ans.json", folder)
    answers = [{"ans": f"answer {row}", "dsets": ["vqa"]} for row in range(CONFIG["config"]["num_answers"])]
    (folder / "all_ans.json").write_text(json.dumps(answers))
    return folder


def run(*flags: object) -> None:
    convert(parse_conversion([str(flag) for flag in flags]))


def as_source(files: Path) -> list[object]:
    table = files / "all_ans.json"
    return ["--from", "lxrt", files / "Epoch09", "--bert", files / "bert", "--answers", table, "--sub_feat_num", "0"]


def original(path: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(path, weights_only=True))


def assert_bit_for_bit(path: Path, files: Path) -> None:
    """Every tensor under its name, with its dtype: also those that no model here uses."""
    ours, theirs = original(path), original(files / "Epoch09_LXRT.pth")
    assert set(ours) == set(theirs)
    assert len(theirs) == 204
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name


def recorded_loss(model: nn.Module) -> float:
    """How far the model's loss is from the recorded one, training and evaluation."""
    recorded = read_arrays(RECORDED / f"variant_{VARIANT}.npz")
    inputs = model_inputs(read_arrays(RECORDED / "batch.npz"), recorded["sampled_positions"])
    with torch.no_grad():
        evaluation = abs(float(model.eval()(**inputs).loss) - float(recorded["eval_loss"]))
        return max(evaluation, abs(float(model.train()(**inputs).loss) - float(recorded["loss"])))


def test_recorded_losses_after_safetensors_and_back(files: Path, tmp_path: Path) -> None:
    run(*as_source(files), "--to", "safetensors", tmp_path / "model")
    model = load_pretrained(tmp_path / "model")
    assert not model.training
    assert recorded_loss(model) <= LOSS
    run("--from", "safetensors", tmp_path / "model", "--to", "lxrt", tmp_path / "Back")
    assert_bit_for_bit(tmp_path / "Back_LXRT.pth", files)
    card = (tmp_path / "model" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name")
    assert "31 answers" in card
    description = read_description(tmp_path / "model")
    assert description.vocabulary == WORD_PIECES
    assert description.answers is not None
    assert description.answers[30] == "answer 30"


def test_recorded_losses_after_deepspeed_and_back(files: Path, tmp_path: Path) -> None:
    """With the optimisers' files, which go along."""
    shutil.copytree(files, tmp_path / "files")
    moments = write_optimizers(tmp_path / "files" / "Epoch09_LXRT.pth")
    flags = [str(flag) for flag in [*as_source(tmp_path / "files"), "--to", "deepspeed", tmp_path / "ours" / "Epoch09"]]
    result = launch("launch/convert.py", flags, ranks=1, launcher="warm")
    assert result.code == 0, result.stderr[-3000:]
    assert "state of adamw, sgd, schedule" in result.stdout
    source = read_source("deepspeed", str(tmp_path / "ours" / "Epoch09"))
    assert source.training is not None
    for name, keys in moments.items():
        ours = source.training.moments(name)
        assert set(ours) == set(keys) - {"step"}, name
        assert all(torch.equal(ours[key], keys[key]) for key in ours), name
    assert source.training.steps(WORDS) == 2
    assert source.training.scheduler is not None
    assert source.training.scheduler["last_epoch"] == 2
    run("--from", "deepspeed", tmp_path / "ours" / "Epoch09", "--to", "safetensors", tmp_path / "model")
    assert recorded_loss(load_pretrained(tmp_path / "model")) <= LOSS
    run("--from", "deepspeed", tmp_path / "ours" / "Epoch09", "--to", "lxrt", tmp_path / "Back")
    assert_bit_for_bit(tmp_path / "Back_LXRT.pth", files)


def write_optimizers(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The original's optimiser files after two steps, its parameters in the recorded order; the moments by name."""
    groups = json.loads((GOLDEN / "trajectory" / "config.json").read_text())["optimizer_groups"]
    state = {key.removeprefix("module."): tensor for key, tensor in original(path).items()}
    parameters = {
        name: nn.Parameter(tensor.clone())
        for name, tensor in state.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked", DECODER))
    }
    decay = [{"params": [parameters[name] for name in groups[kind]]} for kind in ("adamw_decay", "adamw_no_decay")]
    adam = AdamW(decay, lr=1e-3)
    backbone = [parameter for name, parameter in parameters.items() if name.startswith(BACKBONE)]
    assert len(backbone) == groups["sgd"] if isinstance(groups["sgd"], int) else backbone
    sgd = SGD(backbone, lr=1e-3, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1.0)
    generator = torch.Generator().manual_seed(3)
    unused = ("box_fc", "box_layer_norm", "attnpool", "transformer.resblocks", "token_embedding", "ln_final")
    unused += ("positional_embedding", "text_projection", "logit_scale")
    trained = {name: parameter for name, parameter in parameters.items() if not any(part in name for part in unused)}
    for _ in range(2):
        for parameter in trained.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        adam.step()
        sgd.step()
        schedule.step()
    stem = path.name.removesuffix(".pth")
    torch.save(adam.state_dict(), path.with_name(f"{stem}_AdamOptim.pth"))
    torch.save(sgd.state_dict(), path.with_name(f"{stem}_SGDOptim.pth"))
    torch.save(schedule.state_dict(), path.with_name(f"{stem}_Scheduler.pth"))
    return {name: (sgd if name.startswith(BACKBONE) else adam).state[p] for name, p in trained.items()}


def test_optimiser_files_of_another_model_are_refused(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files, tmp_path / "files")
    path = tmp_path / "files" / "Epoch09_LXRT.pth"
    write_optimizers(path)
    state = original(path)
    del state["module.bert.encoder.visn_fc.box_fc.weight"]
    torch.save(state, path)
    with pytest.raises(UserError, match=r"AdamOptim\.pth is of 62 parameters, but .* has 61"):
        read_original(path)
    state = original(files / "Epoch09_LXRT.pth")
    state["module.bert.pooler.dense.weight"] = torch.zeros(3, 3)
    torch.save(state, path)
    with pytest.raises(UserError, match=r"bert\.pooler\.dense\.weight has shape \(64, 64\), the weight \(3, 3\)"):
        read_original(path)


def test_a_model_is_described_by_its_shapes(files: Path) -> None:
    """Without --bert: all but the number of heads, for which BERT's 64 channels each stand."""
    config = parse_conversion(["--from", "lxrt", str(files / "Epoch09"), "--to", "lxrt", "x"])
    found = describe([read_source(*config.sources[0])], config)
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
    assert [found.bert[name] for name in names] == [1000, 64, 2, 128, 32]
    assert found.bert["num_attention_heads"] == 1
    assert (found.visual.backbone.layers, found.visual.backbone.width) == ((1, 1, 1, 1), 8)
    assert (found.visual.pos_num, found.visual.use_positional_embedding) == (25, True)


def changed(files: Path, folder: Path, **tensors: torch.Tensor | None) -> Path:
    state = original(files / "Epoch09_LXRT.pth")
    for name, tensor in tensors.items():
        if tensor is None:
            del state[name]
        else:
            state[name] = tensor
    torch.save(state, folder / "Other_LXRT.pth")
    return folder / "Other"


@pytest.mark.parametrize(
    ("name", "tensor", "kind"),
    [
        ("module.bert.pooler.dense.bias", None, "missing"),
        ("module.bert.pooler.other", torch.zeros(2), "unexpected"),
        ("module.bert.pooler.dense.bias", torch.zeros(2), "mismatched"),
    ],
)
def test_keys_that_do_not_fit_are_listed_and_refused_unless_allowed(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, tensor: torch.Tensor | None, kind: str
) -> None:
    path = changed(files, tmp_path, **{name: tensor})
    flags = ["--from", "lxrt", path, *as_source(files)[3:], "--to", "lxrt", tmp_path / "out"]
    with pytest.raises(UserError, match=f"1 {kind} keys, listed above; nothing was written. --allow_{kind}"):
        run(*flags)
    printed = capsys.readouterr().out
    assert f"{kind}: {name.removeprefix('module.')}" in printed
    if kind == "mismatched":
        assert "has shape (2,), the model's has (64,)" in printed
    assert not (tmp_path / "out_LXRT.pth").exists()
    run(*flags, f"--allow_{kind}")
    written = original(tmp_path / "out_LXRT.pth")
    assert written["module.bert.pooler.dense.bias"].shape == (64,)
    assert "module.bert.pooler.other" not in written


def test_sources_complete_each_other(files: Path, tmp_path: Path) -> None:
    """A checkpoint without the parts that are never used, and the original's that has them."""
    run(*as_source(files), "--to", "safetensors", tmp_path / "model")
    (tmp_path / "model" / "unused.safetensors").unlink()
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    del manifest["files"]["unused.safetensors"]
    (tmp_path / "model" / "manifest.json").write_text(json.dumps(manifest))
    ours = ["--from", "safetensors", tmp_path / "model"]
    run(*ours, "--to", "lxrt", tmp_path / "Lean")
    assert len(original(tmp_path / "Lean_LXRT.pth")) < 204
    run(*ours, "--from", "lxrt", files / "Epoch09", "--to", "lxrt", tmp_path / "Whole")
    assert_bit_for_bit(tmp_path / "Whole_LXRT.pth", files)


def test_clip_and_bert_become_a_model_to_start_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """OpenAI's fp16 archive and a BERT folder; what neither has is listed, and starts at random if that is allowed."""
    torch.manual_seed(4)
    clip = nn.Module()
    clip.visual = ClipResNet(ResNetShape((1, 1, 1, 1), 2)).half()
    clip.logit_scale = nn.Parameter(torch.ones(()))
    torch.save(clip.state_dict(), tmp_path / "RN50.pt")
    bert = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    saved = BertForPreTraining(bert)
    saved.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.txt").write_text("".join(f"{word}\n" for word in WORD_PIECES))
    flags = ["--from", "openai-clip", tmp_path / "RN50.pt", "--from", "bert", tmp_path / "bert"]
    flags += ["--to", "safetensors", tmp_path / "start"]
    with pytest.raises(UserError, match=r"6 missing keys, listed above; nothing was written\. --allow_missing"):
        run(*flags)
    assert "missing: bert.encoder.visn_fc.visn_fc.weight" in capsys.readouterr().out
    run(*flags, "--allow_missing")
    model = load_pretrained(tmp_path / "start")
    state = model.state_dict()
    assert torch.equal(state[WORDS], saved.state_dict()[WORDS])
    first = clip.state_dict()["visual.conv1.weight"]
    assert torch.equal(state[f"{BACKBONE}visual.conv1.weight"], first.float())
    assert float(state["bert.encoder.visn_fc.visn_fc.weight"].std()) > 0


def test_a_damaged_file_is_found(files: Path, tmp_path: Path) -> None:
    """A flipped bit in any format; safetensors has no checksum of its own."""
    run(*as_source(files), "--to", "safetensors", tmp_path / "model")
    shutil.copy(files / "Epoch09_LXRT.pth", tmp_path)
    for path in (tmp_path / "Epoch09_LXRT.pth", tmp_path / "model" / "model.safetensors"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    with pytest.raises(UserError, match=r"Epoch09_LXRT\.pth is no readable file of tensors .*damaged"):
        read_original(tmp_path / "Epoch09_LXRT.pth")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_pretrained(tmp_path / "model")


def test_the_answer_head_follows_the_original_to_another_table() -> None:
    """The recorded surgery of the original's VQA fine-tuning."""
    arrays = np.load(GOLDEN / "vqa" / "vqa.npz")
    table = [entry["ans"] for entry in json.loads((GOLDEN / "vqa" / "all_ans.json").read_text())]
    labels = json.loads((GOLDEN / "vqa" / "label2ans.json").read_text())
    pretrained = read_arrays(RECORDED / "state.npz")
    head = {key: torch.from_numpy(array) for key, array in pretrained.items() if key.startswith("answer_head.")}
    matched = match_answers(head, table, labels)
    for layer in ("0.weight", "0.bias", "2.weight", "2.bias", "3.weight", "3.bias"):
        expected = torch.from_numpy(arrays[f"logit_fc_after/{layer}"])
        assert torch.equal(matched[f"answer_head.logit_fc.{layer}"], expected), layer


def test_a_new_answer_table_makes_a_new_head(files: Path, tmp_path: Path) -> None:
    table = [{"ans": word, "dsets": ["vqa"]} for word in ("answer 7", "unheard of", "answer 0")]
    (tmp_path / "new.json").write_text(json.dumps(table))
    run(*as_source(files), "--new_answers", tmp_path / "new.json", "--to", "safetensors", tmp_path / "model")
    state = original(files / "Epoch09_LXRT.pth")
    old = state["module.answer_head.logit_fc.3.weight"]
    new = load_pretrained(tmp_path / "model").state_dict()["answer_head.logit_fc.3.weight"]
    assert torch.equal(new, torch.stack([old[7], torch.zeros_like(old[0]), old[0]]))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--from", "lxrt", "no/Epoch09"], "no/Epoch09_LXRT.pth is missing"),
        (["--from", "tensorflow", "x"], "--from tensorflow: one of lxrt"),
        (["--from", "lxrt"], "expected 2 arguments"),
        ([], "both --from KIND PATH and --to KIND PATH are needed"),
        (["--from", "deepspeed", "no/Epoch09"], "there is no folder no/Epoch09 with manifest.json"),
        (["--from", "safetensors", "no/model"], "there is no folder no/model with manifest.json"),
        (["--from", "openai-clip", "no.pt"], "no.pt is missing"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        run(*flags, "--to", "safetensors", tmp_path / "out") if flags else run()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_run_is_read_as_the_model_that_it_stands_for(tmp_path: Path) -> None:
    earlier = ROOT / "tests" / "earlier"
    found = {
        kind: read_source(kind, str(earlier / run)) for kind, run in (("deepspeed", "run"), ("safetensors", "vqa"))
    }
    assert {kind: source.path for kind, source in found.items()} == {
        "deepspeed": str(earlier / "run" / "Step000006"),
        "safetensors": str(earlier / "vqa" / "BEST"),
    }
    state = load_pretrained(earlier / "run").state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in found["deepspeed"].weights.items())
    for kind, saved, is_rather, other in (
        ("deepspeed", "vqa/BEST", "a model to predict with, in safetensors", "safetensors"),
        ("safetensors", "run/Step000006", "a training state, in DeepSpeed's shards", "deepspeed"),
    ):
        with pytest.raises(UserError) as error:
            read_source(kind, str(earlier / saved))
        path = earlier / saved
        assert str(error.value) == f"{path} is not of kind {kind}, but {is_rather}; give --from {other} {path}"


def test_an_unnamed_head_and_a_taken_target_are_refused(files: Path, tmp_path: Path) -> None:
    source = ["--from", "lxrt", files / "Epoch09", "--bert", files / "bert"]
    with pytest.raises(UserError, match=r"has 31 rows .* --answers"):
        run(*source, "--to", "safetensors", tmp_path / "out")
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="there already"):
        run(*source, "--to", "safetensors", tmp_path / "out")
    with pytest.raises(UserError, match="--to tflite: one of lxrt"):
        run(*source, "--to", "tflite", tmp_path / "x")


def test_code_in_a_torchscript_archive_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(tmp_path / "good.pt")
    assert set(read_torchscript(tmp_path / "good.pt")) == {"weight", "bias"}
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(tmp_path / "bad.pt", "w") as bad:
        for name in good.namelist():
            harmful = pickle.dumps({"weight": Hostile(tmp_path / "harm")})
            bad.writestr(name, harmful if name.endswith("data.pkl") else good.read(name))
    with pytest.raises(UserError, match=r"bad\.pt is no archive of tensors alone: it asks for .*open"):
        read_torchscript(tmp_path / "bad.pt")
    assert not (tmp_path / "harm").exists()
