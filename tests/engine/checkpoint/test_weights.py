"""Weights from the files that a user has: OpenAI's CLIP, a BERT folder, checkpoints of the original and our own."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForPreTraining

from engine.benchmark.backbones import run_plainly
from engine.checkpoint.description import ModelDescription
from engine.checkpoint.formats.original import split_unused
from engine.checkpoint.formats.published import load_bert, load_clip
from engine.checkpoint.restoring import restore_optimizers
from engine.checkpoint.state import check_words, load_weights, open_checkpoint
from engine.checkpoint.weights import (
    BACKBONE,
    DECODER,
    HEAD,
    POSITION_TABLES,
    WORDS,
    load_state,
    read_tensors,
    resize_rows,
)
from engine.configuration.bert import Splitting, read_bert
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES, ClipResNet, ResNetShape
from engine.model.encoder import VisualShape
from engine.model.pretraining import ClipVilForPretraining
from tests.engine.model.test_clip_resnet import openais_layout

SHAPE = ResNetShape((1, 1, 1, 1), 2)
CONFIG = {
    "vocab_size": 30,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 8,
}


def make(seed=0, num_answers=None, shape=SHAPE, pos_num=3):
    torch.manual_seed(seed)
    return ClipVilForPretraining(BertConfig(**CONFIG), VisualShape(shape, pos_num=pos_num), num_answers)


def original_state(model):
    """As the original saves it: parts that we don't build, and the tied decoder twice."""
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    state[DECODER] = state[WORDS]
    state[BACKBONE + "visual.attnpool.q_proj.weight"] = torch.zeros(4, 4)
    state[BACKBONE + "transformer.resblocks.0.attn.in_proj_weight"] = torch.zeros(4)
    return state


def load_original(model, state, source):
    """As open_checkpoint and load_weights do for a file."""
    return load_state(model, split_unused(state, source)[0], source, may_miss=(HEAD,))


def assert_same_weights(model, other, prefix=""):
    ours, theirs = model.state_dict(), other.state_dict()
    for name in (name for name in theirs if name.startswith(prefix)):
        assert torch.equal(ours[name], theirs[name]), name


class Clip(nn.Module):
    """The image tower as OpenAI's file holds it, in fp16, beside a part that is never used."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.visual = ClipResNet(SHAPE)
        self.visual.attnpool = nn.Linear(2, 2)
        self.logit_scale = nn.Parameter(torch.ones(()))

    def forward(self, images):
        return self.visual(images)


def traced(clip):
    """As OpenAI's archives; of plain operators, since torch.jit.trace goes into no function of ours."""
    run_plainly(clip)
    return torch.jit.trace(clip.eval(), torch.zeros(1, 3, 32, 32))


@pytest.fixture
def clip():
    """Half precision parameters with values that show it: BatchNorm's statistics too have been trained."""
    clip = Clip()
    with torch.no_grad():
        for tensor in clip.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn_like(tensor).half())
    return clip


# --- CLIP


@pytest.mark.parametrize("kind", ["torchscript", "state_dict"])
def test_clip_loads_from_each_of_openais_formats(clip, tmp_path, kind):
    path = tmp_path / "RN50.pt"
    if kind == "torchscript":
        traced(clip).save(path)
    else:
        torch.save({key: t.half() if t.is_floating_point() else t for key, t in clip.state_dict().items()}, path)
    model = make()
    report = load_clip(model, path)
    assert (report.missing, report.unexpected) == ([], [])
    wanted = {f"{BACKBONE}{k}": v for k, v in clip.state_dict().items() if k.startswith("visual.") and "attn" not in k}
    own = model.state_dict()
    assert set(report.matched) == set(wanted)
    assert all(torch.equal(own[name], tensor) for name, tensor in wanted.items())
    assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in own.values())


@pytest.mark.parametrize("name", ["RN101", pytest.param("RN50x16", marks=pytest.mark.slow)])
def test_a_file_with_openais_layout_fills_each_larger_backbone(name, tmp_path):
    """Names and shapes as published, in half precision, beside the parts that are never used."""
    shape = SHAPES[name]
    layout = openais_layout(shape.layers, shape.width)
    state = {f"visual.{key}": torch.full(size, n % 7, dtype=torch.half) for n, (key, size) in enumerate(layout.items())}
    unused = {"visual.attnpool.c_proj.bias": torch.zeros(4).half(), "transformer.x": torch.zeros(2).half()}
    torch.save({**state, **unused}, tmp_path / f"{name}.pt")
    model = make(shape=shape)
    report = load_clip(model, tmp_path / f"{name}.pt")
    assert (report.missing, report.unexpected, len(report.matched)) == ([], [], len(layout))
    own = model.state_dict()
    assert all(bool((own[f"{BACKBONE}visual.{key}"] == n % 7).all()) for n, key in enumerate(layout))


def test_clip_of_another_size_is_refused_with_both_shapes(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "RN50.pt")
    with pytest.raises(
        UserError, match=r"visual\.conv1\.weight has shape \(1, 3, 3, 3\), the model's has \(2, 3, 3, 3\)"
    ):
        load_clip(make(shape=ResNetShape((1, 1, 1, 1), 4)), tmp_path / "RN50.pt")


def test_clip_without_an_image_tower_is_refused(tmp_path):
    torch.save({"transformer.weight": torch.zeros(2)}, tmp_path / "RN50.pt")
    with pytest.raises(UserError, match=r"no key that starts with 'visual\.'"):
        load_clip(make(), tmp_path / "RN50.pt")


def test_truncated_torchscript_archive_is_refused(clip, tmp_path):
    path = tmp_path / "RN50.pt"
    traced(clip).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UserError, match=r"RN50\.pt is .*damaged|RN50\.pt is no readable file"):
        load_clip(make(), path)


# --- BERT


@pytest.fixture
def bert(tmp_path):
    torch.manual_seed(5)
    bert = BertForPreTraining(BertConfig(**CONFIG, initializer_range=0.5))
    bert.save_pretrained(tmp_path)
    words = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "a", "dog"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    return bert


def test_bert_loads_text_layers_and_heads(bert, tmp_path):
    model = make()
    report = load_bert(model, str(tmp_path))
    theirs, ours = bert.state_dict(), model.state_dict()
    assert torch.equal(ours[WORDS], theirs[WORDS])
    for name in ("bert.encoder.layer.1.output.dense.weight", "bert.pooler.dense.bias", "cls.seq_relationship.weight"):
        assert torch.equal(ours[name], theirs[name]), name
    # What BERT has no part of, and nothing else, stays as it was built.
    assert all(name.startswith(("bert.encoder.visual_", "bert.encoder.visn_fc.")) for name in report.missing)
    fresh = make()
    assert_same_weights(model, fresh, prefix=BACKBONE)
    assert report.unexpected == []


def test_bert_without_heads_leaves_them_new(bert, tmp_path):
    """bert-base-uncased has all heads, a plain BertModel none; its keys lack the prefix, too."""
    bert.bert.save_pretrained(tmp_path / "plain")
    model = make()
    report = load_bert(model, str(tmp_path / "plain"))
    assert torch.equal(model.state_dict()[WORDS], bert.state_dict()[WORDS])
    assert "cls.seq_relationship.weight" in report.missing
    assert_same_weights(model, make(), prefix="cls.predictions.transform")


@pytest.mark.parametrize("lost", ["config.json", "vocab.txt"])
def test_bert_folder_that_lacks_a_file_is_refused(bert, tmp_path, lost):
    (tmp_path / lost).unlink()
    with pytest.raises(UserError, match=f"no BERT at .*{lost}"):
        read_bert(str(tmp_path))


def test_weights_of_another_size_than_the_configuration_are_refused(bert, tmp_path):
    BertConfig(**{**CONFIG, "intermediate_size": 64}).save_pretrained(tmp_path)
    with pytest.raises(UserError) as error:
        load_bert(make(), str(tmp_path))
    assert str(error.value) == (
        f"{tmp_path}: bert.encoder.layer.0.intermediate.dense.bias has shape (32,), by config.json it has (64,); the "
        "two files are not of one model"
    )


def test_vocabulary_larger_than_the_embedding_is_refused(bert, tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(f"word{number}" for number in range(40)))
    with pytest.raises(UserError, match=r"vocabulary has .* entries, config.json says 30"):
        read_bert(str(tmp_path))


# --- checkpoints


@pytest.mark.parametrize("prefix", ["", "module."])
def test_checkpoint_of_the_original_loads_whole(tmp_path, prefix):
    source, model = make(1, num_answers=4), make(2, num_answers=4)
    torch.save({prefix + key: tensor for key, tensor in original_state(source).items()}, tmp_path / "Epoch09_LXRT.pth")
    for given in ("Epoch09", "Epoch09_LXRT.pth"):
        report = load_weights(model, open_checkpoint(str(tmp_path / given)), None)
        assert (report.missing, report.unexpected) == ([], [])
        assert_same_weights(model, source)


def test_answer_head_may_be_new_and_may_be_left_over():
    model = make(2, num_answers=4)
    report = load_original(model, original_state(make(1)), "file")
    assert set(report.missing) == {name for name in model.state_dict() if name.startswith("answer_head.")}
    report = load_original(make(2), original_state(make(1, num_answers=4)), "file")
    assert set(report.unexpected) == set(make(num_answers=4).state_dict()) - set(make().state_dict())


def test_missing_part_of_the_trunk_is_an_error():
    state = original_state(make(1))
    del state["bert.pooler.dense.weight"]
    with pytest.raises(UserError, match=r"lacks 1 of the \d+ tensors .* bert\.pooler\.dense\.weight"):
        load_original(make(2), state, "file")


def test_untied_decoder_is_an_error():
    state = original_state(make(1))
    state[DECODER] = state[DECODER] + 1
    with pytest.raises(UserError, match="differs from the word embeddings"):
        load_original(make(2), state, "file")


class Hostile:
    """A pickle that would write a file if it were executed."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def test_pickled_code_is_refused_and_not_run(tmp_path):
    torch.save({"bert.pooler.dense.weight": Hostile(tmp_path / "harm")}, tmp_path / "x.pth")
    with pytest.raises(UserError, match=r"x\.pth is no readable file of tensors"):
        read_tensors(tmp_path / "x.pth")
    assert not (tmp_path / "harm").exists()


def test_file_of_something_else_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "x.pth")
    with pytest.raises(UserError, match="holds no state dict of tensors"):
        read_tensors(tmp_path / "x.pth")


def test_a_path_without_a_checkpoint_is_told_with_all_that_was_looked_for(tmp_path):
    run = tmp_path / "run"
    for name in ("Epoch01", "Epoch02"):
        (run / name).mkdir(parents=True)
        (run / name / "manifest.json").write_text("{}")
    (run / "Epoch01_LXRT.pth").write_bytes(b"")
    (tmp_path / "bert").mkdir()
    (tmp_path / "bert" / "config.json").write_text("{}")  # is a checkpoint of nobody here

    def message(path):
        with pytest.raises(UserError) as error:
            open_checkpoint(str(path))
        return str(error.value)

    looked_for = "with manifest.json or config.json, and neither Epoch03_LXRT.pth nor Epoch03.pth is beside it; "
    there_is = f"{run} holds Epoch01, Epoch01_LXRT.pth, Epoch02: name one of them"
    assert message(run / "Epoch03") == f"there is no folder {run / 'Epoch03'} {looked_for}{there_is}"
    assert message(run / "Epoch03_LXRT.pth") == message(run / "Epoch03")
    assert message(run).startswith(f"the folder {run} has neither manifest.json nor config.json")
    assert message(run).endswith(there_is)
    part = run / "Epoch02" / "mp_rank_00_model_states.pt"
    part.write_bytes(b"")
    assert message(part).endswith(f"the checkpoint is {run / 'Epoch02'} itself: name that folder")
    assert message(tmp_path / "ruN" / "Epoch03").endswith(f"nor is there one in {tmp_path}; check the path")
    assert "nor is there one in ." in message("x")
    assert message(tmp_path).endswith("nor has a run left BEST, LAST or a checkpoint in it; check the path")


@pytest.mark.parametrize("prefix", ["", "module.", "module.module.", "_orig_mod.", "module._orig_mod."])
def test_what_wrappers_put_before_names_is_taken_off(prefix, tmp_path):
    """As DataParallel in DataParallel, or torch.compile, leave it in a file."""
    model = make(1)
    torch.save({prefix + key: tensor for key, tensor in original_state(model).items()}, tmp_path / "Epoch01_LXRT.pth")
    other = make(2)
    load_weights(other, open_checkpoint(str(tmp_path / "Epoch01")), None)
    assert_same_weights(other, model)


def test_moments_of_another_algorithm_are_none_for_adamw():
    """A checkpoint whose backbone SGD trained with momentum, in a run whose backbone AdamW is to train."""
    weight = nn.Parameter(torch.zeros(2))
    groups = [{"algorithm": "adamw"}]
    zero = SimpleNamespace(
        optimizer=SimpleNamespace(param_groups=groups, state={}),
        single_partition_of_fp32_groups=[torch.zeros(2)],
        bit16_groups=[[weight]],
    )
    engine = SimpleNamespace(optimizer=zero, module=SimpleNamespace(named_parameters=lambda: [("conv1", weight)]))
    saved = SimpleNamespace(source="Epoch01", moment_keys=lambda name: {"momentum_buffer"})
    with pytest.raises(UserError, match=r"Epoch01 has no state of AdamW for conv1, .* --not_load_adam_optimizer"):
        restore_optimizers(engine, saved, ("adamw", "sgd"))


# --- position tables


def test_rows_stand_for_the_same_relative_places():
    """Twice as many: each old row's place lies between two new ones, a quarter of a row to each side."""
    table = torch.tensor([[0.0, 8.0], [4.0, 8.0], [12.0, 0.0]])
    doubled = torch.tensor([[0.0, 8.0], [1.0, 8.0], [3.0, 8.0], [6.0, 6.0], [10.0, 2.0], [12.0, 0.0]])
    assert torch.equal(resize_rows(table, 6), doubled)
    assert torch.equal(resize_rows(doubled, 3), torch.tensor([[0.5, 8.0], [4.5, 7.0], [11.0, 1.0]]))
    assert resize_rows(table, 3) is table


@pytest.mark.parametrize("pos_num", [5, 2])
def test_position_tables_with_other_rows_are_interpolated_and_told(tmp_path, pos_num):
    source, model = make(1), make(2, pos_num=pos_num)
    torch.save(original_state(source), tmp_path / "Epoch09_LXRT.pth")
    report = load_weights(model, open_checkpoint(str(tmp_path / "Epoch09")), None)
    told = f"position tables: 3 rows interpolated to {pos_num}, and so are their moments, if these are loaded"
    assert str(report).endswith(f"0 missing, 0 unexpected\n    {told}")
    theirs, ours = source.state_dict(), model.state_dict()
    for name, tensor in theirs.items():
        wanted = resize_rows(tensor, pos_num) if name in POSITION_TABLES else tensor
        assert torch.equal(ours[name], wanted), name
    assert all(ours[name].shape == (pos_num, SHAPE.channels) for name in POSITION_TABLES)


def test_position_tables_of_as_many_rows_are_taken_as_they_are(tmp_path):
    source, model = make(1), make(2)
    torch.save(original_state(source), tmp_path / "Epoch09_LXRT.pth")
    assert load_weights(model, open_checkpoint(str(tmp_path / "Epoch09")), None).notes == []
    assert_same_weights(model, source)


def test_position_tables_of_another_backbone_are_refused(tmp_path):
    state = {name: torch.zeros(5, 7) for name in POSITION_TABLES}
    torch.save({**original_state(make(1)), **state}, tmp_path / "Epoch09_LXRT.pth")
    with pytest.raises(UserError, match=r"x_position_embedding.weight has shape \(3, 7\), the model's has \(3, 64\)"):
        load_weights(make(2), open_checkpoint(str(tmp_path / "Epoch09")), None)


def test_moments_of_position_tables_are_interpolated_as_the_tables_are():
    """Those of other parameters still have to fit."""
    moments = {"exp_avg": torch.tensor([[0.0], [4.0]]), "exp_avg_sq": torch.tensor([[1.0], [9.0]])}

    def restore(name):
        parameter = nn.Parameter(torch.zeros(4, 1))
        whole = SimpleNamespace(start=0, numel=4)
        parameter._hp_mapping = SimpleNamespace(hp_fragment_address=whole, lp_fragment_address=whole)
        partition = torch.zeros(4)
        zero = SimpleNamespace(
            optimizer=SimpleNamespace(param_groups=[{"algorithm": "adamw"}], state={partition: {}}),
            single_partition_of_fp32_groups=[partition],
            bit16_groups=[[parameter]],
        )
        module = SimpleNamespace(named_parameters=lambda: [(name, parameter)])
        saved = SimpleNamespace(
            source="Epoch01", moment_keys=lambda _: set(moments), moments=lambda _: moments, steps=lambda _: 7.0
        )
        restore_optimizers(SimpleNamespace(optimizer=zero, module=module), saved, ("adamw",))
        return zero.optimizer.state[partition]

    state = restore(POSITION_TABLES[0])
    assert state["exp_avg"].tolist() == [0.0, 1.0, 3.0, 4.0]
    assert state["exp_avg_sq"].tolist() == [1.0, 3.0, 7.0, 9.0]
    assert state["step"] == 7
    with pytest.raises(UserError, match=r"exp_avg.* of bert.pooler.dense.bias has shape \(2, 1\), parameter \(4, 1\)"):
        restore("bert.pooler.dense.bias")


# --- words


CASED = Splitting(do_lower_case=False)


def described(words, splitting):
    visual = VisualShape(SHAPE, pos_num=3)
    return ModelDescription(BertConfig(**CONFIG).to_diff_dict(), visual, vocabulary=words, splitting=splitting)


@pytest.mark.parametrize(
    ("words", "splitting"),
    [
        (["a", "dog"], CASED),
        (["a", "dog", "new"], CASED),
        (["a"], Splitting(do_lower_case=False, strip_accents=False)),
        (["a", "dog"], None),
        (None, None),
    ],
)
def test_words_that_stay_what_they_were_are_taken(words, splitting):
    saved = SimpleNamespace(source="Epoch01", description=described(["a", "dog"], CASED))
    check_words(saved, described(words, splitting))
    saved.description = described(words, splitting)
    check_words(saved, described(["a", "dog"], CASED))
    saved.description = None  # a file of the original doesn't say
    check_words(saved, described(["cat"], Splitting()))


REMEDY = "; words would silently become others; give --bert the model that it was trained with"


@pytest.mark.parametrize(
    ("words", "splitting", "message"),
    [
        (
            ["a", "cat"],
            CASED,
            f"Epoch01 has learnt 'dog' as number 1 of its vocabulary, which is 'cat' in that of --bert{REMEDY}",
        ),
        (
            ["a", "dog"],
            Splitting(),
            "Epoch01 was trained with do_lower_case False, strip_accents None, tokenize_chinese_chars True, --bert has "
            f"do_lower_case True, strip_accents None, tokenize_chinese_chars True{REMEDY}, and the same "
            "--do_lower_case",
        ),
    ],
)
def test_words_that_would_become_others_are_refused(words, splitting, message):
    saved = SimpleNamespace(source="Epoch01", description=described(["a", "dog"], CASED))
    with pytest.raises(UserError) as error:
        check_words(saved, described(words, splitting))
    assert str(error.value) == message
