"""What somebody types who comes from the original: every flag of its parser, and the commands of its README."""

import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from engine.configuration.flags import TrainingConfig
from engine.configuration.parsing import parse
from engine.distributed.ranks import Ranks
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig, Pretraining
from engine.tasks.vqa import Vqa, VqaConfig
from engine.training.program import RECIPES, train

PROGRAMS = {"pretrain": PretrainConfig, "finetune_vqa": VqaConfig}


class Taken(NamedTuple):
    """A field of the configuration that becomes `value`."""

    value: Any
    field: str
    given: str = ""  # behind the flag


class Refused(NamedTuple):
    """A line that names this."""

    advice: str
    given: str = ""


class Same(NamedTuple):
    """What is so here anyway."""

    given: str = ""


NO_VIT = Refused("the backbone is a CLIP ResNet (--clip_model_name)")
PRE_TRAINING = Refused("launch/pretrain.py")
FINE_TUNING = Refused("launch/finetune.py --task vqa")
BOTH: dict[str, Taken | Refused | Same] = {
    "--train": Taken("a,b", "train", "a,b"),
    "--valid": Taken("", "valid", ""),
    "--test": Refused("launch/predict.py --task vqa --load MODEL --test minival", "minival"),
    "--batchSize": Taken(256, "batch_size", "256"),
    "--optim": Same("bert"),
    "--lr": Taken(3e-5, "lr", "3e-5"),
    "--epochs": Taken(10, "epochs", "10"),
    "--dropout": Taken(0.3, "dropout", "0.3"),
    "--seed": Taken(1, "seed", "1"),
    "--output": Taken("snap/test", "output", "snap/test"),
    "--fast": Taken(True, "fast"),
    "--tiny": Taken(True, "tiny"),
    "--tqdm": Same(),
    "--load": Taken("snap/x/Epoch09", "load", "snap/x/Epoch09"),
    "--fromScratch": Taken(True, "from_scratch"),
    "--llayers": Same("12"),
    "--xlayers": Same("0"),
    "--rlayers": Same("0"),
    "--taskObjPredict": Refused("objects are not predicted; --taskMaskLM, --taskMatched and --taskQA are there"),
    "--visualLosses": Same("obj,attr,feat"),
    "--objMaskRate": Same("0.0"),
    "--multiGPU": Same(),
    "--numWorkers": Taken(20, "num_workers", "20"),
    "--input_raw_images": Same(),
    "--clip_model_name": Taken("RN50x4", "clip_model_name", "RN50x4"),
    "--use_clip": Same(),
    "--visualbert_style": Same(),
    "--report_step": Taken(7, "report_step", "7"),
    "--local_rank": Same("3"),
    "--fp16": Taken(True, "fp16"),
    "--nodes": Same("1"),
    "--distributed": Same(),
    "--freeze_clip": Taken(True, "freeze_clip"),
    "--vqa_style_transform": Same(),
    "--weight_decay": Taken(0.1, "weight_decay", "0.1"),
    "--adam_epsilon": Taken(1e-8, "adam_epsilon", "1e-8"),
    "--max_grad_norm": Taken(5.0, "max_grad_norm", "5.0"),
    "--use_adam_for_visual": Taken(True, "use_adam_for_visual"),
    "--fp16_opt_level": Same("O1"),
    "--aspect_ratio_group_factor": Taken(3, "aspect_ratio_group_factor", "3"),
    "--gradient_accumulation_steps": Taken(2, "gradient_accumulation_steps", "2"),
    "--use_h5_file": Refused("`python launch/prepare.py images` puts these in one file, for --image_store"),
    "--drop_boxes": Same(),
    "--image_size_min": Taken(224, "image_size_min", "224"),
    "--image_size_max": Taken(800, "image_size_max", "800"),
    "--dynamic_padding": Refused("images are always padded to one size, --image_size_min x --image_size_max"),
    "--vilt_style": NO_VIT,
    "--add_zero_padding": Same(),
    "--warmup_ratio": Taken(0.2, "warmup_ratio", "0.2"),
    "--use_vit": NO_VIT,
    "--save_step": Taken(500, "save_step", "500"),
    "--reset_pos_embedding": Same(),
    "--sub_sampling": Taken(True, "sub_sampling"),
    "--sub_feat_num": Taken(50, "sub_feat_num", "50"),
    "--use_separate_optimizer_for_visual": Same(),
    "--sgd_lr": Taken(0.01, "sgd_lr", "0.01"),
    "--sgd_momentum": Taken(0.9, "sgd_momentum", "0.9"),
    "--sgd_weight_decay": Taken(0.1, "sgd_weight_decay", "0.1"),
    "--schedule": Taken("12,17", "schedule", "12,17"),
    "--compress_data": Same(),
    "--use_lmdb": Refused(
        "`python launch/prepare.py images` writes an LMDB, and --image_store data/images.lmdb reads it"
    ),
    "--start_epoch": Refused("--resume auto finds the epoch", "9"),
    "--use_positional_embedding": Taken(True, "use_positional_embedding"),
    "--use_max_pooling": Refused("--sub_sampling makes sequences shorter"),
    "--pos_num": Taken(30, "pos_num", "30"),
    "--not_load_scheduler": Taken(True, "not_load_scheduler"),
    "--pad_square": Refused("give --image_size_min and --image_size_max the same value for a square canvas"),
    "--not_load_adam_optimizer": Taken(True, "not_load_adam_optimizer"),
    "--separate_image": Refused("a batch always holds each sentence with its image"),
}
OF_PROGRAM: dict[str, dict[str, Taken | Refused | Same]] = {
    "pretrain": {
        "--loadLXMERT": Refused("--load snap/x --not_load_scheduler --not_load_adam_optimizer", "snap/x"),
        "--loadLXMERTQA": Refused("--load snap/x --not_load_scheduler --not_load_adam_optimizer", "snap/x"),
        "--mceLoss": FINE_TUNING,
        "--taskMatched": Taken(True, "task_matched"),
        "--taskMaskLM": Taken(True, "task_mask_lm"),
        "--taskQA": Taken(True, "task_qa"),
        "--qaSets": Taken("vqa,gqa", "qa_sets", "vqa,gqa"),
        "--wordMaskRate": Taken(0.3, "word_mask_rate", "0.3"),
        "--loss_scale": FINE_TUNING._replace(given="500"),
        "--limit_source": Taken("mscoco,vg", "limit_source", "mscoco,vg"),
        "--skip_training": Refused("launch/predict.py --task vqa --load MODEL --test mscoco_minival"),
    },
    "finetune_vqa": {
        "--loadLXMERT": Taken("snap/x", "load_lxmert", "snap/x"),
        "--loadLXMERTQA": Taken("snap/x", "load_lxmert_qa", "snap/x"),
        "--mceLoss": Taken(True, "mce_loss"),
        "--taskMatched": PRE_TRAINING,
        "--taskMaskLM": PRE_TRAINING,
        "--taskQA": Same(),
        "--qaSets": PRE_TRAINING._replace(given="vqa"),
        "--wordMaskRate": PRE_TRAINING._replace(given="0.3"),
        "--loss_scale": Taken(500.0, "loss_scale", "500"),
        "--limit_source": PRE_TRAINING._replace(given="vqa"),
        "--skip_training": Refused("launch/predict.py --task vqa --load MODEL --test minival"),
    },
}


def original_flags() -> dict[str, str]:
    """Every flag of the original's parser, with its kind."""
    text = (Path(__file__).parent / "original_flags.txt").read_text()
    return dict(re.findall(r"^(--\w+) +(\w+)", text, re.MULTILINE))


@pytest.mark.parametrize("program", PROGRAMS)
@pytest.mark.parametrize("flag", original_flags())
def test_every_flag_of_the_original_is_taken_or_refused_with_what_to_use(flag, program):
    expected = BOTH.get(flag) or OF_PROGRAM[program][flag]
    is_switch = original_flags()[flag] == "switch"
    argv = [flag] if is_switch else [flag, expected.given]
    if isinstance(expected, Refused):
        with pytest.raises(UserError) as error:
            parse(PROGRAMS[program], argv, RECIPES)
        assert str(error.value).startswith(f"{' '.join(argv)} is not supported: ")
        assert expected.advice in str(error.value)
        return
    config = parse(PROGRAMS[program], argv, RECIPES)[0]
    changed = {expected.field: expected.value} if isinstance(expected, Taken) else {}
    assert config == replace(PROGRAMS[program](), **changed)


def test_there_are_all_80_flags_of_the_original():
    names = original_flags()
    assert len(names) == 80
    for program in PROGRAMS:
        assert names.keys() == BOTH.keys() | OF_PROGRAM[program].keys()


def test_a_vit_is_refused_with_what_there_is():
    with pytest.raises(UserError, match=r"'ViT-B/32' \(choose from 'RN50', .*; the backbone is a CLIP ResNet"):
        parse(PretrainConfig, ["--clip_model_name", "ViT-B/32"], RECIPES)


def test_what_to_type_in_place_of_a_test_run_is_written_out():
    argv = ["--load", "snap/vqa/x/BEST", "--test", "test", "--output", "snap/vqa/test"]
    with pytest.raises(UserError) as error:
        parse(VqaConfig, argv, RECIPES)
    command = "launch/predict.py --task vqa --load snap/vqa/x/BEST --test test --output snap/vqa/test"
    assert command in str(error.value)


def test_words_that_belong_to_no_flag_are_the_launchers():
    with pytest.raises(UserError, match="'0,1' belongs to no flag; GPUs, port and machines are given to the launcher"):
        parse(PretrainConfig, ["0,1", "my_run", "9590", "8", "--fp16"], RECIPES)


@pytest.mark.parametrize(("variable", "nodes"), [("CROSS_SIZE", 2), ("GROUP_WORLD_SIZE", 2), (None, 1)])
def test_nodes_are_those_that_the_launcher_has_started(monkeypatch, variable, nodes):
    for name in ("CROSS_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if variable is not None:
        monkeypatch.setenv(variable, str(nodes))
    Ranks.check_nodes(nodes)
    Ranks.check_nodes(None)
    with pytest.raises(UserError, match=f"--nodes 3, but the launcher has started {nodes}; name the machines to it"):
        Ranks.check_nodes(3)


# --- the commands of its README, from the first flag on; what comes before is the launcher's

STAGE = (
    "--fp16 --gradient_accumulation_steps 2 --batchSize {batch} --lr {lr} --aspect_ratio_group_factor 5 "
    "--add_zero_padding --compress_data --warmup_ratio 0.025 --report_step 200 --numWorkers 20 "
    "--train mscoco_train,mscoco_nominival,vgnococo --epochs {epochs} --sub_sampling --sub_feat_num 100 "
    "--schedule {schedule} --use_separate_optimizer_for_visual --sgd_lr 0.003 --sgd_momentum 0.0 "
    "--use_positional_embedding{more}"
)
STAGE_TWO = " --load snap/pretrain/{}/Epoch09 --not_load_scheduler --taskQA --not_load_adam_optimizer"
FINE_TUNE = (
    "--fp16 --gradient_accumulation_steps 8 --batchSize 8 --lr 5e-5 --loss_scale 500 --warmup_ratio 0.05 "
    "--report_step 400 --use_separate_optimizer_for_visual --sgd_lr 0.001 --sgd_momentum 0.0 --epoch 5 --schedule 2 "
    "--use_positional_embedding --pos_num 25 --clip_model_name RN50x4"
)
README = {
    "rn50_stage_one": STAGE.format(batch=32, lr="1e-4", epochs=20, schedule="12,17", more=""),
    "rn50_stage_two": STAGE.format(
        batch=32, lr="5e-5", epochs=11, schedule="4,8", more=STAGE_TWO.format("clip_rn50_stage_one")
    ),
    "rn50x4_stage_one": STAGE.format(
        batch=30, lr="5e-5", epochs=20, schedule="12,17", more=" --clip_model_name RN50x4"
    ),
    "rn50x4_stage_two": STAGE.format(
        batch=30, lr="2.75e-5", epochs=11, schedule="4,9", more=STAGE_TWO.format("clip_rn50x4_stage_one")
    ),
    "vqa_rn50x4": f"{FINE_TUNE} --loadLXMERTQA snap/pretrain/clip_rn50x4_stage_two/Epoch11",
}
# What the recipes of the same names say otherwise: where, how often and how long; and in stage two of RN50x4 the
# backbone, which that command forgets, so that the original, too, can't load the weights that it names.
OURS = {"output", "save_step", "keep", "stop_after_epoch", "sub_feat_num", "num_workers", "clip_model_name"}


@pytest.mark.parametrize("name", README)
def test_command_of_the_readme_prints_the_recipe_of_the_same_name(name, capsys, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    task = Vqa if "vqa" in name else Pretraining
    train(task, [*README[name].split(), "--print_config"])
    printed = yaml.safe_load(capsys.readouterr().out)
    config: TrainingConfig = parse(task.config_class, ["--recipe", name], RECIPES)[0]
    assert printed["fp16"] is True
    recipe = asdict(config)
    assert printed.keys() == recipe.keys()
    assert {key for key in recipe if printed[key] != recipe[key]} <= OURS
    assert (printed["clip_model_name"] == recipe["clip_model_name"]) == (name != "rn50x4_stage_two")


def test_the_readmes_test_command_is_answered_with_the_one_to_type():
    argv = [*FINE_TUNE.split(), "--load", "snap/vqa/vqa_clip_rn50x4/BEST", "--test", "minival", "--print_config"]
    with pytest.raises(
        UserError, match=r"launch/predict\.py --task vqa --load snap/vqa/vqa_clip_rn50x4/BEST --test minival"
    ):
        parse(VqaConfig, argv, RECIPES)
