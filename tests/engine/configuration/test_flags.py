import dataclasses
from pathlib import Path

import pytest
import yaml

from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import TrainingConfig
from engine.configuration.parsing import parse, parse_command
from engine.configuration.recipes import recipe_names, to_yaml
from engine.errors import UserError
from engine.tasks.named import TASKS
from engine.tasks.pretraining import PretrainConfig
from engine.tasks.vqa import PredictVqaConfig, VqaConfig

RECIPES = Path(__file__).resolve().parents[3] / "launch" / "recipes"


def program_of(recipe: str) -> type[TrainingConfig]:
    named = max((name for name in TASKS if name in recipe), key=len, default=None)
    return PretrainConfig if named is None else TASKS[named].config_class


def read(*argv, recipes=RECIPES):
    return parse(PretrainConfig, list(argv), recipes)[0]


def message_of(*argv, recipes=RECIPES):
    """The error that a command line gives: always one line."""
    with pytest.raises(UserError) as error:
        read(*argv, recipes=recipes)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def recipes(tmp_path):
    """A folder with one small recipe."""
    (tmp_path / "small.yaml").write_text("epochs: 3\nlr: 0.5\ntask_qa: true\nload: null\n")
    return tmp_path


# --- the original's commands

STAGE_ONE = """
    --taskMatched --taskMaskLM --wordMaskRate 0.15 --objMaskRate 0.0 --train mscoco_train,mscoco_nominival,vgnococo
    --valid mscoco_minival --llayers 12 --xlayers 0 --rlayers 0 --visualLosses obj,attr,feat --fromScratch --taskQA
    --batchSize 32 --optim bert --lr 1e-4 --epochs 20 --tqdm --output snap/x --use_clip --visualbert_style
    --input_raw_images --vqa_style_transform --distributed --add_zero_padding --compress_data
    --gradient_accumulation_steps 2 --warmup_ratio 0.025 --report_step 200 --numWorkers 20 --sub_sampling
    --sub_feat_num 100 --schedule 12,17 --use_separate_optimizer_for_visual --sgd_lr 0.003 --sgd_momentum 0.0
    --sgd_weight_decay 0.0004 --use_positional_embedding --clip_model_name RN50 --aspect_ratio_group_factor 5
"""
STAGE_ONE_CONFIG = PretrainConfig(
    train="mscoco_train,mscoco_nominival,vgnococo",
    valid="mscoco_minival",
    task_matched=True,
    task_mask_lm=True,
    task_qa=True,
    word_mask_rate=0.15,
    from_scratch=True,
    batch_size=32,
    lr=1e-4,
    epochs=20,
    output="snap/x",
    gradient_accumulation_steps=2,
    warmup_ratio=0.025,
    report_step=200,
    num_workers=20,
    sub_sampling=True,
    sub_feat_num=100,
    schedule="12,17",
    sgd_lr=0.003,
    sgd_momentum=0.0,
    sgd_weight_decay=0.0004,
    use_positional_embedding=True,
    clip_model_name="RN50",
    aspect_ratio_group_factor=5,
)
STAGE_TWO = """
    --taskQA --load snap/x/Epoch09 --not_load_scheduler --not_load_adam_optimizer --qaSets vqa,gqa --multiGPU
    --fp16_opt_level O1 --batchSize=16 --clip_model_name RN50x4
"""
TWINS = {
    "--taskMatched": "--task_matched",
    "--taskMaskLM": "--task_mask_lm",
    "--taskQA": "--task_qa",
    "--wordMaskRate": "--word_mask_rate",
    "--objMaskRate": "--obj_mask_rate",
    "--visualLosses": "--visual_losses",
    "--fromScratch": "--from_scratch",
    "--batchSize": "--batch_size",
    "--numWorkers": "--num_workers",
    "--qaSets": "--qa_sets",
    "--multiGPU": "--multi_gpu",
}


def test_command_of_the_original_can_be_pasted():
    assert read(*STAGE_ONE.split()) == STAGE_ONE_CONFIG


def test_snake_case_twins_give_the_same():
    assert read(*(TWINS.get(word, word) for word in STAGE_ONE.split())) == STAGE_ONE_CONFIG


@pytest.mark.parametrize(("flag", "twin"), TWINS.items(), ids=TWINS.keys())
def test_each_flag_has_its_twin(flag, twin):
    needs_value = {"--wordMaskRate": "0.5", "--objMaskRate": "0.0", "--batchSize": "7", "--numWorkers": "7"}
    value = [needs_value[flag]] if flag in needs_value else ["obj"] if flag in ("--visualLosses", "--qaSets") else []
    assert parse(PretrainConfig, [flag, *value], RECIPES) == parse(PretrainConfig, [twin, *value], RECIPES)


def test_second_stage_of_the_original_can_be_pasted():
    assert read(*STAGE_TWO.split()) == PretrainConfig(
        task_qa=True,
        load="snap/x/Epoch09",
        not_load_scheduler=True,
        not_load_adam_optimizer=True,
        qa_sets="vqa,gqa",
        batch_size=16,
        clip_model_name="RN50x4",
    )


def test_no_flags_give_the_defaults():
    assert read() == PretrainConfig()


def test_the_help_of_a_switch_says_which_flag_it_switches_off(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    told = " ".join(capsys.readouterr().out.split())
    assert "--no_task_matched, --no-task-matched switch --task_matched off --task_qa" in told
    assert "--taskMatched [TASK_MATCHED] tell matched from swapped captions (default: True)" in told


def test_tasks_that_are_on_can_be_turned_off():
    config = read("--no_task_matched", "--taskMaskLM", "false")
    assert (config.task_matched, config.task_mask_lm) == (False, False)


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("visualLosses", "obj"),
        ("visualLosses", ""),
        ("objMaskRate", "0"),
        ("optim", "BERT"),
        ("use_clip", "True"),
    ],
    ids=["fewer_losses", "no_losses", "whole_zero", "upper_case", "spelled_out"],
)
def test_other_spellings_of_constants_are_taken(flag, value):
    assert read(f"--{flag}", value) == PretrainConfig()


@pytest.mark.parametrize(
    ("flag", "value", "reason"),
    [
        ("llayers", "9", "the number of layers is that of the --bert configuration"),
        ("xlayers", "5", "there are no cross-modality layers"),
        ("rlayers", "5", "there are no object-relationship layers"),
        ("optim", "adam", "AdamW always trains the transformer"),
        ("optim", "b", "AdamW always trains the transformer"),
        ("visualLosses", "obj,box", "objects are not predicted, so none is used"),
        ("objMaskRate", "0.15", "objects are not masked"),
        ("fp16_opt_level", "O2", "fp16 always keeps fp32 masters and batch norm, as O1 did"),
        ("use_clip", "false", "the backbone is always a CLIP ResNet"),
        ("visualbert_style", "false", "one encoder always reads words and image together"),
        ("input_raw_images", "false", "features are always computed from images"),
        ("vqa_style_transform", "false", "images are always resized by their short side"),
        ("add_zero_padding", "false", "images are always padded to one size"),
        ("distributed", "false", "DeepSpeed always runs the ranks; start one with --num_gpus 1"),
        ("multiGPU", "false", "DeepSpeed always runs the ranks"),
        ("tqdm", "false", "progress is always shown"),
        ("compress_data", "false", "annotations are always in the shared store"),
        (
            "use_separate_optimizer_for_visual",
            "false",
            "the backbone always has its own; --use_adam_for_visual makes that AdamW, too",
        ),
    ],
)
def test_other_values_of_constants_are_refused_with_the_reason(flag, value, reason):
    assert message_of(f"--{flag}", value) == f"--{flag} {value} is not supported: {reason}; leave the flag out"


# --- flags over recipe over defaults


def test_recipe_overrides_defaults_and_flags_override_the_recipe(recipes):
    assert read("--recipe", "small", recipes=recipes) == PretrainConfig(epochs=3, lr=0.5, task_qa=True)
    config = read("--epochs", "4", "--recipe", "small", "--taskQA", "false", recipes=recipes)
    assert config == PretrainConfig(epochs=4, lr=0.5, task_qa=False)


def test_an_empty_value_takes_back_the_recipes(recipes):
    (recipes / "small.yaml").write_text("load: snap/x/Epoch09\nvalid: mscoco_minival\n")
    assert read("--recipe", "small", recipes=recipes).load == "snap/x/Epoch09"
    assert read("--recipe", "small", "--load", "", "--valid", "", recipes=recipes) == PretrainConfig(valid="")


def test_recipe_may_be_a_file_anywhere(recipes):
    assert read("--recipe", str(recipes / "small.yaml")).epochs == 3


def test_program_flags_are_apart_from_the_configuration(recipes):
    _, arguments = parse(PretrainConfig, ["--print_config", "--local_rank=3", "--recipe", "small"], recipes)
    assert (arguments.print_config, arguments.local_rank, arguments.recipe) == ("flags", 3, "small")
    assert not parse(PretrainConfig, [], recipes)[1].print_config


def test_a_program_without_recipes_takes_what_deepspeed_adds():
    parse(PretrainConfig, ["--local-rank=1"], RECIPES)  # torch.distributed.launch's spelling
    argv = ["--local_rank=1", "--local-rank=1", "--load", "x", "--test", "minival"]
    config = parse_command(PredictVqaConfig, argv)
    assert (config.load, config.test) == ("x", "minival")


@pytest.mark.parametrize("name", recipe_names(RECIPES))
def test_every_recipe_is_complete_and_passes_the_checks(name):
    fields = {field.name for field in dataclasses.fields(program_of(name))}
    assert yaml.safe_load((RECIPES / f"{name}.yaml").read_text()).keys() == fields
    config = parse(program_of(name), ["--recipe", name], RECIPES)[0]
    config.check(world_size=8)
    deepspeed_settings(config, world_size=8)


def test_there_are_recipes_for_both_stages_of_each_model():
    names = recipe_names(RECIPES)
    assert {f"{model}_{stage}" for model in ("rn50", "rn50x4", "demo") for stage in ("stage_one", "stage_two")} <= set(
        names
    )


@pytest.mark.parametrize(
    "config",
    [
        PretrainConfig(),
        STAGE_ONE_CONFIG,
        PretrainConfig(valid="", adam_epsilon=1e-12, schedule="3", stop_after_epoch=2, bf16=True, output="a: b #c"),
        PretrainConfig(do_lower_case=False),
    ],
    ids=["defaults", "stage_one", "awkward_values", "three_states"],
)
def test_printed_configuration_is_a_recipe_for_itself(tmp_path, config):
    path = tmp_path / "printed.yaml"
    path.write_text(to_yaml(config))
    assert read("--recipe", str(path)) == config


@pytest.mark.parametrize("name", recipe_names(RECIPES))
def test_recipe_survives_print_and_read(tmp_path, name):
    config = parse(program_of(name), ["--recipe", name], RECIPES)[0]
    (tmp_path / "printed.yaml").write_text(to_yaml(config))
    assert parse(program_of(name), ["--recipe", str(tmp_path / "printed.yaml")], RECIPES)[0] == config


# --- what can't be read


@pytest.mark.parametrize(
    ("flag", "advice"),
    [
        ("--word_mask_rat", "did you mean --word_mask_rate?"),
        ("--batchsize", "did you mean --batch_size?"),
        ("--subsampling", "did you mean --sub_sampling?"),
        ("--xyzzy", "see --help"),
    ],
)
@pytest.mark.parametrize("value", [[], ["1"]], ids=["alone", "with_value"])
def test_unknown_flag_suggests_the_nearest(flag, advice, value):
    assert message_of(flag, *value) == f"unknown flag {flag}; {advice}"


def test_unknown_flag_with_equals_sign_suggests_the_nearest():
    assert message_of("--word_mask_rat=0.2") == "unknown flag --word_mask_rat=0.2; did you mean --word_mask_rate?"


def test_abbreviations_are_no_flags():
    assert message_of("--max_step", "3") == "unknown flag --max_step; did you mean --max_steps?"


@pytest.mark.parametrize("flag", ["--batch_size", "--batchSize", "--micro_batch_size"])
def test_the_micro_batch_may_be_left_open_and_is_printed_so(tmp_path, flag):
    config, _ = parse(PretrainConfig, [flag, "auto", "--global_batch_size", "64"], RECIPES)
    config.check(2)
    path = tmp_path / "open.yaml"
    path.write_text(to_yaml(config))
    assert "batch_size: auto\n" in path.read_text()
    assert parse(PretrainConfig, ["--recipe", str(path)], RECIPES)[0] == config
    with pytest.raises(UserError, match="invalid int_or_auto value: 'many'"):
        parse(PretrainConfig, [flag, "many"], RECIPES)


@pytest.mark.parametrize(
    ("words", "choice"),
    [([], "all"), (["true"], "all"), (["False"], "none"), (["early"], "early"), (["backbone"], "backbone")],
)
def test_activation_checkpointing_is_a_choice_that_was_a_yes_or_no(words, choice):
    config, _ = parse(PretrainConfig, ["--activation_checkpointing", *words], RECIPES)
    assert config.activation_checkpointing == choice


@pytest.mark.parametrize(("word", "choice"), [("true", "all"), ("false", "none"), ("none", "none"), ("early", "early")])
def test_activation_checkpointing_of_earlier_recipes_is_read(tmp_path, word, choice):
    path = tmp_path / "earlier.yaml"
    path.write_text(f"activation_checkpointing: {word}\n")
    config, _ = parse(PretrainConfig, ["--recipe", str(path)], RECIPES)
    assert config.activation_checkpointing == choice


@pytest.mark.parametrize(
    ("argv", "parts"),
    [
        (["--epochs", "many"], ["--epochs", "invalid int value: 'many'"]),
        (["--epochs", "1.5"], ["--epochs", "invalid int value: '1.5'"]),
        (["--lr", "fast"], ["--lr", "invalid float value: 'fast'"]),
        (["--fp16", "perhaps"], ["--fp16", "perhaps"]),
        (["--clip_model_name", "RN152"], ["--clip_model_name", "RN152", "RN50x4"]),
        (["--worker_start_method", "thread"], ["--worker_start_method", "thread", "forkserver"]),
        (["--image_decoder", "opencv"], ["--image_decoder", "opencv", "simplejpeg"]),
        (["--activation_checkpointing", "late"], ["--activation_checkpointing", "late", "early"]),
        (["--lr"], ["--lr", "expected one argument"]),
        (["--recipe"], ["--recipe", "expected one argument"]),
    ],
    ids=[
        "word_for_int",
        "fraction_for_int",
        "word_for_float",
        "word_for_bool",
        "unknown_model",
        "unknown_start_method",
        "unknown_decoder",
        "unknown_part",
        "no_value",
        "no_recipe",
    ],
)
def test_wrong_value_names_the_flag(argv, parts):
    message = message_of(*argv)
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("lr: 1\nepochs: [3\nschedule: 2\n", "{path}, line 3: not valid YAML; mend it"),
        (
            "epoch: 3\n",
            "{path}: unknown setting epoch; use the names that --print_config prints, of this program",
        ),
        (
            "batchSize: 3\n",
            "{path}: unknown setting batchSize; use the names that --print_config prints, of this program",
        ),
        ("- epochs\n", "{path}: settings, one `name: value` a line, were expected; see --print_config"),
        ("", "{path}: settings, one `name: value` a line, were expected; see --print_config"),
    ],
    ids=["broken", "unknown", "alias", "list", "empty"],
)
def test_broken_recipe_is_named(tmp_path, content, message):
    path = tmp_path / "broken.yaml"
    path.write_text(content)
    assert message_of("--recipe", str(path)) == message.format(path=path)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("epochs: many\n", "invalid int value: 'many'"),
        ("lr: [1, 2]\n", "can't be [1, 2]"),
        ("fp16: perhaps\n", "perhaps"),
        ("clip_model_name: RN152\n", "invalid choice"),
        ("epochs: null\n", "has no value"),
        ("epochs: true\n", "can't be True"),
        ("output: false\n", "can't be False"),
    ],
    ids=["int", "list", "bool", "choice", "null", "bool_for_int", "bool_for_text"],
)
def test_wrong_value_in_a_recipe_is_refused(tmp_path, content, part):
    path = tmp_path / "wrong.yaml"
    path.write_text(content)
    message = message_of("--recipe", str(path))
    assert part in message
    assert content.split(":")[0] in message


def test_unknown_recipe_lists_those_there_are(recipes):
    expected = "there is no recipe large; choose one of small or give a YAML file"
    assert message_of("--recipe", "large", recipes=recipes) == expected


# --- what can't work

CANT_WORK = {
    **{
        f"{name}_zero": ({name: 0}, f"--{name} 0: at least 1 is needed")
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "epochs",
            "report_step",
            "image_size_min",
            "sub_feat_num",
            "stop_after_epoch",
            "max_steps",
        )
    },
    **{
        f"{name}_negative": ({name: -1}, f"--{name} -1: at least 0 is needed")
        for name in ("num_workers", "max_unreadable_images", "aspect_ratio_group_factor")
    },
    "no_room_for_a_word": ({"max_seq_length": 2}, "--max_seq_length 2: at least 3, for [CLS], one word and [SEP]"),
    "sizes_swapped": (
        {"image_size_min": 640, "image_size_max": 384},
        "--image_size_max 384 is below --image_size_min 640",
    ),
    "mask_rate_in_percent": ({"word_mask_rate": 15.0}, "--word_mask_rate 15.0: a share between 0 and 1 is needed"),
    "negative_warm_up": ({"warmup_ratio": -0.1}, "--warmup_ratio -0.1: a share between 0 and 1 is needed"),
    "nothing_masked": (
        {"word_mask_rate": 0.0},
        "--word_mask_rate 0 leaves no word to predict; add --no_task_mask_lm",
    ),
    "no_task": (
        {"task_mask_lm": False, "task_matched": False},
        "no task is left; turn on one of --taskMaskLM, --taskMatched, --taskQA",
    ),
    "schedule_of_words": (
        {"schedule": "12;17"},
        "--schedule '12;17': epochs with commas between them are needed, as in 12,17",
    ),
    "schedule_descends": (
        {"schedule": "17,12"},
        "--schedule '17,12': epochs of 1 or more, in ascending order, are needed",
    ),
    "schedule_repeats": ({"schedule": "2,2"}, "--schedule '2,2': epochs of 1 or more, in ascending order, are needed"),
    "schedule_from_zero": (
        {"schedule": "0,3"},
        "--schedule '0,3': epochs of 1 or more, in ascending order, are needed",
    ),
    "two_precisions": (
        {"fp16": True, "bf16": True},
        "--fp16 and --bf16 exclude each other; drop one (with a recipe: --fp16 false)",
    ),
    "scheduler_of_nothing": (
        {"not_load_scheduler": True},
        "--not_load_scheduler and --not_load_adam_optimizer say what to leave out of --load; add --load PATH",
    ),
    "optimizer_of_nothing": (
        {"not_load_adam_optimizer": True},
        "--not_load_scheduler and --not_load_adam_optimizer say what to leave out of --load; add --load PATH",
    ),
    "two_starts": ({"load": "x", "from_scratch": True}, "--load and --fromScratch exclude each other; drop one"),
    "odd_global_batch": (
        {"global_batch_size": 100, "batch_size": 32},
        "--global_batch_size 100 is no multiple of 32 samples x 2 GPUs = 64; change it or --batchSize",
    ),
    "auto_without_global_batch": (
        {"batch_size": "auto"},
        "--micro_batch_size auto divides --global_batch_size, so give that as well",
    ),
    "auto_with_odd_global_batch": (
        {"batch_size": "auto", "global_batch_size": 33},
        "--global_batch_size 33 is no multiple of 2 GPUs; change it",
    ),
    "no_memory": ({"memory_limit": 0.0}, "--memory_limit 0.0: a number of GB above 0 is needed"),
    "global_batch_zero": (
        {"global_batch_size": 0},
        "--global_batch_size 0 is no multiple of 32 samples x 2 GPUs = 64; change it or --batchSize",
    ),
}


@pytest.mark.parametrize(("change", "message"), CANT_WORK.values(), ids=CANT_WORK.keys())
def test_what_cant_work_is_refused_with_the_flag_to_change(change, message):
    with pytest.raises(UserError) as error:
        PretrainConfig(**change).check(world_size=2)
    assert str(error.value) == message


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"schedule": ""},
        {"schedule": "1"},
        {"num_workers": 0, "max_unreadable_images": 0, "aspect_ratio_group_factor": 0},
        {"word_mask_rate": 0.0, "task_mask_lm": False},
        {"task_mask_lm": False, "task_matched": False, "task_qa": True},
        {"load": "x", "not_load_scheduler": True, "not_load_adam_optimizer": True},
        {"image_size_min": 384, "image_size_max": 384},
        {"warmup_ratio": 0.0},
        {"bf16": True},
    ],
    ids=[
        "defaults",
        "no_milestones",
        "one_milestone",
        "zeros_that_mean_something",
        "no_masking",
        "questions_only",
        "weights_only",
        "square",
        "no_warm_up",
        "bf16",
    ],
)
def test_what_can_work_passes_unchanged(change):
    config = PretrainConfig(**change)
    config.check(world_size=2)
    assert config == PretrainConfig(**change)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 8), (2, 4), (8, 1)])
def test_global_batch_size_sets_the_accumulation(world_size, accumulation):
    config = PretrainConfig(global_batch_size=256, batch_size=32, gradient_accumulation_steps=5)
    config.check(world_size)
    assert config.gradient_accumulation_steps == accumulation


@pytest.mark.parametrize(
    ("change", "precision"),
    [({}, "fp32"), ({"bf16": True}, "bf16"), ({"fp16": True}, "fp16")],
    ids=lambda value: str(value),
)
def test_precision(change, precision):
    assert PretrainConfig(**change).precision == precision


@pytest.mark.parametrize(("stop", "last"), [(None, 20), (5, 5), (30, 20)])
def test_last_epoch_is_the_earlier_of_the_two(stop, last):
    assert PretrainConfig(epochs=20, stop_after_epoch=stop).last_epoch == last


def test_torchrun_lets_each_flag_pass():
    """It refuses those behind the script that could be short for two of its own, such as --monitor; by one of its names
    at least, each flag has to arrive."""
    from torch.distributed.run import get_args_parser

    torchrun = get_args_parser()
    for config_class in (PretrainConfig, VqaConfig):
        for field in dataclasses.fields(config_class):
            names = [f"--{field.name}", *field.metadata.get("aliases", [])]
            assert any(torchrun_takes(torchrun, name) for name in names), names


def torchrun_takes(torchrun, name):
    try:
        return torchrun.parse_args(["pretrain.py", name, "value"]).training_script_args == [name, "value"]
    except SystemExit:
        return False
