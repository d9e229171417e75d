"""A training's flags that come from the checkpoint that it starts from."""

import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from engine.checkpoint.description import ModelDescription, Preprocessing
from engine.checkpoint.formats.pretrained import save_pretrained
from engine.checkpoint.state import load_weights, open_checkpoint, read_words
from engine.configuration.bert import read_bert
from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.parsing import parse
from engine.distributed.ranks import ALONE
from engine.errors import UserError
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.tasks.pretraining import PretrainConfig, Pretraining
from engine.tasks.vqa import Vqa, VqaConfig
from engine.training.preflight.checks import check_weights, find_problems
from engine.training.preflight.inherited import inherit
from engine.training.program import RECIPES
from engine.training.run_folder import RunFolder
from engine.training.start import find_start

EARLIER = Path(__file__).parents[3] / "earlier" / "run"
READS = Preprocessing(max_seq_length=14, image_size_min=64, image_size_max=96)
SHAPED = {
    "clip_model_name": "tiny",
    "sub_sampling": True,
    "sub_feat_num": 5,
    "use_positional_embedding": True,
    "pos_num": 3,
    "image_size_min": 64,
    "image_size_max": 96,
    "orient_after_resize": False,
    "max_seq_length": 14,
}
TAKEN = ", ".join(f"--{name} {str(value).lower()}" for name, value in SHAPED.items())


@pytest.fixture
def described(scenes: Path) -> ModelDescription:
    bert, tokenizer = read_bert(str(scenes / "bert"))
    visual = VisualShape(SHAPES["tiny"], sub_feat_num=5, use_positional_embedding=True, pos_num=3)
    return ModelDescription.of(bert, visual, ["red", "blue"], tokenizer, preprocessing=READS)


@pytest.fixture
def model(described: ModelDescription, tmp_path: Path) -> Path:
    """A whole model of pre-training, whose head knows two answers."""
    folder = tmp_path / "model"
    save_pretrained(folder, described.build().state_dict(), {}, described, "a test")
    return folder


def settled(*flags: str, config_class: type = PretrainConfig) -> tuple[PretrainConfig, str | None]:
    config, arguments = parse(config_class, list(flags), RECIPES)
    told = inherit(config, arguments.typed, arguments.in_recipe)
    config.check(1)
    return config, told


def words_of(tokenizer: Tokenizer) -> dict[str, int]:
    return dict(tokenizer.get_vocab())


def test_load_alone_says_what_the_model_and_its_input_are(model: Path, scenes: Path) -> None:
    config, told = settled("--load", str(model))
    assert {name: getattr(config, name) for name in SHAPED} == SHAPED
    assert told == f"from {model}: {TAKEN}, BERT (1 layer of 32, 78 word pieces, dropout 0)"
    bert, tokenizer = read_words(config.bert)
    theirs, words = read_bert(str(scenes / "bert"))
    assert (bert.to_diff_dict(), words_of(tokenizer)) == (theirs.to_diff_dict(), words_of(words))
    of_batches = {"aspect_ratio_group_factor"}  # neither of the model nor of what it reads
    assert {field.name for field in fields(Preprocessing)} - of_batches <= SHAPED.keys()
    assert config.aspect_ratio_group_factor == 5


@pytest.mark.parametrize("flag", ["--load_lxmert", "--load_lxmert_qa", "--load"])
def test_fine_tuning_takes_them_over_as_well(flag: str, model: Path) -> None:
    config, _ = settled(flag, str(model), config_class=VqaConfig)
    assert {name: getattr(config, name) for name in SHAPED} == SHAPED
    assert (config.bert, config.aspect_ratio_group_factor) == (str(model), 0)


def test_a_flag_that_differs_is_told_with_both_values(model: Path) -> None:
    config, told = settled(
        "--load", str(model), "--image_size_max", "128", "--sub_sampling", "false", "--bert", "of/mine"
    )
    assert (config.image_size_max, config.sub_sampling, config.bert) == (128, False, "of/mine")
    assert told is not None
    taken, differs = told.splitlines()
    assert "--image_size_min 64" in taken
    assert not [word for word in ("--image_size_max", "--sub_sampling", "BERT") if word in taken]
    assert differs == (
        f"note: this training differs from that of {model}: --sub_sampling false (it had true), --image_size_max 128 "
        "(it had 96)"
    )


def test_another_dropout_than_the_checkpoints_is_told(model: Path) -> None:
    _, told = settled("--load", str(model), "--dropout", "0.3")
    assert told is not None
    assert told.splitlines()[1:] == [f"note: this training differs from that of {model}: --dropout 0.3 (it had 0.0)"]


def test_a_recipe_counts_before_the_checkpoint_except_for_its_words(model: Path) -> None:
    """A recipe names a --bert always, and with another one than the checkpoint's nothing would go on."""
    config, told = settled("--recipe", "rn50_stage_two", "--load", str(model), "--clip_model_name", "tiny")
    assert (config.image_size_min, config.bert) == (384, str(model))
    assert told is not None
    assert "from" in told
    assert "--image_size_min 384 (it had 64)" in told
    assert settled("--recipe", "rn50_stage_two", "--load", str(model), "--bert", "x")[0].bert == "x"


def test_a_run_that_goes_on_needs_none_of_these_flags(tmp_path: Path) -> None:
    """They are its own; where its newest checkpoint is damaged, an older one has the same."""
    output = Path(shutil.copytree(EARLIER, tmp_path / "run"))
    shutil.copytree(output / "Step000006", output / "Step000009")
    (output / "Step000009" / "mp_rank_00_model_states.pt").write_bytes(b"cut")
    config, told = settled("--resume", "auto", "--output", str(output), "--load", "gone")
    assert told is None
    assert (config.clip_model_name, config.image_size_max, config.max_seq_length) == ("tiny", 96, 14)
    assert config.bert == str(output / "Step000006")
    kept, _ = settled("--resume", "auto", "--output", str(output), "--recipe", str(output / "config.yaml"))
    assert kept.bert == "data/bert"  # as the run had it
    kept.bert = config.bert
    shutil.rmtree(output / "Step000009")
    find_start(kept, RunFolder(output), ALONE, claim=False)
    assert kept.bert == "data/bert"  # what config.yaml names is there when --keep has deleted the checkpoint
    (output / "Step000006" / "mp_rank_00_model_states.pt").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .*run is whole"):  # and no word of another BERT
        settled("--resume", "auto", "--output", str(output), "--load", "gone")


def test_files_that_say_nothing_leave_the_flags_alone(model: Path, tmp_path: Path, described: ModelDescription) -> None:
    shutil.copy(EARLIER / "Step000006_LXRT.pth", tmp_path)
    config, told = settled("--load", str(tmp_path / "Step000006_LXRT.pth"))
    assert (told, config.image_size_min, config.bert) == (None, 384, "bert-base-uncased")
    wordless = replace(described, vocabulary=None)
    save_pretrained(tmp_path / "wordless", wordless.build().state_dict(), {}, wordless, "a test")
    config, told = settled("--load", str(tmp_path / "wordless"))
    assert told is not None
    assert told.splitlines() == [
        f"from {tmp_path / 'wordless'}: {TAKEN}",
        f"note: {tmp_path / 'wordless'} doesn't say what its words are; those of --bert bert-base-uncased are taken",
    ]


def test_a_checkpoint_that_cannot_be_read_is_told_at_once(tmp_path: Path) -> None:
    """Without its words there is nothing to look at; with --bert, all other problems are told beside it."""
    with pytest.raises(UserError, match=r"there is no folder .*gone .*check the path"):
        settled("--load", str(tmp_path / "gone"))
    assert settled("--load", str(tmp_path / "gone"), "--bert", "x")[1] is None
    config, arguments = parse(PretrainConfig, ["--load", str(tmp_path / "gone")], RECIPES)
    assert inherit(config, arguments.typed, arguments.in_recipe, only_print=True) is None


def test_a_fine_tuned_model_is_refused_in_a_pre_training(described: ModelDescription, tmp_path: Path) -> None:
    """At once, and not after flags were added that an error asked for."""
    answering = replace(described, architecture="question_answering")
    save_pretrained(tmp_path / "BEST", answering.build().state_dict(), {}, answering, "a test")
    config, _ = settled("--load", str(tmp_path / "BEST"))
    task = Pretraining.__new__(Pretraining)
    task.config, task.answers = config, None
    with pytest.raises(UserError, match=r"BEST is a fine-tuned model, which has no heads for masked words"):
        check_weights(config, task, replace(described, answers=None), tmp_path / "run")


def test_a_folder_for_transformers_is_named_as_such(model: Path) -> None:
    """It has a config.json, too."""
    (model / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"model has config\.json but no manifest\.json: .*folder for transformers"):
        settled("--load", str(model))


def test_a_folder_without_rights_is_told_as_such(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != model)  # root may read all
    with pytest.raises(UserError, match=r"the folder .*model can't be read \(Permission denied\); mend its rights"):
        settled("--load", str(model))


def test_other_words_than_the_checkpoints_are_refused(model: Path, scenes: Path, tmp_path: Path) -> None:
    bert = Path(shutil.copytree(scenes / "bert", tmp_path / "bert"))
    words = (bert / "vocab.txt").read_text().splitlines()
    (bert / "vocab.txt").write_text("\n".join([*words[:-2], words[-1], words[-2]]) + "\n")
    flags = ["--load", str(model), "--data_root", str(scenes), "--num_workers", "0", "--output", str(tmp_path / "run")]
    flags += ["--train", "mscoco_train"]
    flags += ["--not_load_adam_optimizer", "--not_load_scheduler"]
    for more, expected in (
        ([], []),
        (["--bert", str(bert)], ["has learnt"]),
        (["--do_lower_case", "0"], ["trained with"]),
    ):
        config, _ = settled(*flags, *more)
        settings = deepspeed_settings(config, 1)
        problems = find_problems(config, Pretraining, ALONE, settings, torch.device("cpu"), thorough=False)
        assert len(problems) == len(expected)
        assert all(text in problem for text, problem in zip(expected, problems, strict=True))


def test_what_a_training_leaves_of_a_checkpoint_is_told_in_words(model: Path, described: ModelDescription) -> None:
    saved = open_checkpoint(str(model))
    without = replace(described, answers=None, visual=replace(described.visual, use_positional_embedding=False))
    assert str(load_weights(without.build(), saved, None)).splitlines()[1:] == [
        "    left out, 6 tensors: the answer head, as this training answers no questions and the file doesn't name the "
        "answers",
        "    left out, 2 tensors: the position tables, as --use_positional_embedding is off",
    ]
    config, _ = settled("--load_lxmert", str(model), config_class=VqaConfig)
    task = Vqa.__new__(Vqa)
    task.config = config
    answering = replace(described, architecture="question_answering", answers=["blue", "green", "Red"])
    told = str(load_weights(answering.build(), saved, answering.answers, without=task.unused())).splitlines()
    assert told[0] == f"{model}: 143 matched, 6 missing"
    assert told[-3:] == [
        f"    left out, 6 tensors: the answer head; --load_lxmert_qa {model} takes it, too",
        "    left out, 7 tensors: the heads for masked words and matching, which fine-tuning has no use for",
        "    the answer head begins with random weights",
    ]
    config.load_lxmert, config.load_lxmert_qa = None, str(model)
    told = str(load_weights(answering.build(), saved, answering.answers, without=task.unused())).splitlines()
    assert told[-1] == "    answers taken from there: 2 of 3, the others begin at 0"
    fewer = replace(answering, answers=["blue"])
    told = str(load_weights(fewer.build(), saved, fewer.answers, without=task.unused())).splitlines()
    assert told[-1] == "    answers taken from there: 1 of 1; left out: 1 of 2"


def test_an_answer_head_stays_in_a_training_that_does_not_answer(
    flags: Callable[..., list[str]], model: Path, described: ModelDescription
) -> None:
    config, _ = settled(*flags("--load", str(model), "--from_scratch", "false", "--task_matched", "false"))
    task = Pretraining.__new__(Pretraining)
    task.config = config
    assert task.kept_answers(open_checkpoint(str(model))) == ["red", "blue"]
    network = described.build()
    task.set_up(network)
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    heads = {
        name for name, _ in network.named_parameters() if name.startswith(("answer_head.", "cls.seq_relationship"))
    }
    assert (frozen, network.answers_questions) == (heads, False)
    config.task_qa = True
    assert task.kept_answers(open_checkpoint(str(model))) is None
