"""BEST and LAST: a folder with a model that takes the place of an older one."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig

from engine.checkpoint import load_pretrained
from engine.checkpoint.description import ModelDescription, Preprocessing
from engine.checkpoint.formats.pretrained import ModelFolder, read_description, save_pretrained
from engine.checkpoint.manifest import complete_checkpoints, read_manifest
from engine.checkpoint.state import open_checkpoint
from engine.configuration.bert import Splitting
from engine.data.trained_on import TrainedOn
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.model.question_answering import ClipVilForQuestionAnswering
from tests.conftest import small_tmpfs

BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 30}
DESCRIPTION = ModelDescription(
    BertConfig(**BERT).to_diff_dict(),
    VisualShape(SHAPES["tiny"], pos_num=3),
    ["yes", "no"],
    [f"word{n}" for n in range(30)],
    "question_answering",
    Preprocessing(14, 64, 96, orient_after_resize=True, aspect_ratio_group_factor=0),
    Splitting(do_lower_case=False, tokenize_chinese_chars=False),
)
SEEN = TrainedOn(np.array([-3, 8]), np.array([-5, 7]), np.array([2]))


def save(folder: Path, seed: int, score: float, **more: bool) -> ClipVilForQuestionAnswering:
    torch.manual_seed(seed)
    model: ClipVilForQuestionAnswering = DESCRIPTION.build()
    notes = {"score": score, "step": 12}
    save_pretrained(folder, model.state_dict(), {}, DESCRIPTION, "a test", trained_on=SEEN, notes=notes, **more)
    return model


def is_that(folder: Path, model: torch.nn.Module) -> bool:
    state = load_pretrained(folder).state_dict()
    return all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_a_better_model_takes_the_place_of_the_best(tmp_path: Path) -> None:
    first = save(tmp_path / "BEST", 1, 0.5)
    assert is_that(tmp_path / "BEST", first)
    with pytest.raises(UserError, match="BEST can't be written"):
        save(tmp_path / "BEST", 2, 0.6)
    assert is_that(tmp_path / "BEST", first)
    second = save(tmp_path / "BEST", 2, 0.6, replace=True)
    assert is_that(tmp_path / "BEST", second)
    assert not is_that(tmp_path / "BEST", first)
    assert read_manifest(tmp_path / "BEST")["score"] == 0.6
    assert [path.name for path in tmp_path.iterdir()] == ["BEST"]


def test_the_folder_says_all_that_a_prediction_needs(tmp_path: Path) -> None:
    save(tmp_path / "BEST", 1, 0.5)
    saved = open_checkpoint(str(tmp_path / "BEST"))
    assert isinstance(saved, ModelFolder)
    assert saved.description == DESCRIPTION
    assert saved.answers == ["yes", "no"]
    assert saved.trained_on is not None
    assert saved.trained_on.questions.tolist() == [-3, 8]
    assert saved.trained_on.images.tolist() == [-5, 7]
    assert saved.trained_on.question_ids.tolist() == [2]
    assert isinstance(load_pretrained(tmp_path / "BEST"), ClipVilForQuestionAnswering)


def test_a_model_is_no_state_to_go_on_from(tmp_path: Path) -> None:
    """Else --keep would delete BEST, and --resume try it."""
    save(tmp_path / "BEST", 1, 0.5)
    assert complete_checkpoints(tmp_path) == []


def test_a_full_disk_leaves_the_best_as_it_was(tmp_path: Path) -> None:
    with small_tmpfs(tmp_path / "disk", "1500k"):
        first = save(tmp_path / "disk" / "BEST", 1, 0.5)
        (tmp_path / "disk" / "more").write_bytes(bytes(500_000))
        with pytest.raises(UserError, match="the disk is full"):
            save(tmp_path / "disk" / "BEST", 2, 0.6, replace=True)
        assert is_that(tmp_path / "disk" / "BEST", first)
        assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["BEST", "more"]


def test_an_older_description_is_one_of_pretraining(tmp_path: Path) -> None:
    values = DESCRIPTION.to_dict()
    del values["architecture"], values["preprocessing"], values["splitting"]
    old = ModelDescription.from_dict(values, "a test")
    assert (old.architecture, old.preprocessing, old.splitting) == ("pretraining", Preprocessing(), None)
    assert Splitting.of(old.tokenizer()) == Splitting()
    with pytest.raises(UserError, match="doesn't describe a model of this version"):
        ModelDescription.from_dict({**values, "architecture": "unheard_of"}, "a test")


def test_a_cased_models_tokenizer_is_built_again(tmp_path: Path) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Café", "cafe", "一二", "x\u2028y"]
    save_pretrained(tmp_path / "BEST", {}, {}, replace(DESCRIPTION, vocabulary=words), "a test")
    tokenizer = read_description(tmp_path / "BEST").tokenizer()
    assert tokenizer.encode("Café cafe 一二 [MASK]", add_special_tokens=False).ids == [5, 6, 7, 4]
