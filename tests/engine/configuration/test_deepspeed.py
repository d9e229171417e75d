"""DeepSpeed's JSON: what the flags fill in, what may be there, and what is refused with which reason."""

import json
from contextlib import nullcontext

import pytest

from engine.configuration.deepspeed import deepspeed_settings, is_offloaded, monitor_settings
from engine.configuration.deepspeed_keys import KEYS
from engine.configuration.parsing import parse
from engine.errors import UserError
from engine.tasks.pretraining import PretrainConfig, Pretraining
from engine.training.program import RECIPES, train


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_autos_are_filled_in_from_the_recipe(precision):
    config = PretrainConfig(batch_size=4, gradient_accumulation_steps=3, max_grad_norm=0.5)
    if precision != "fp32":
        setattr(config, precision, True)
    settings = deepspeed_settings(config, world_size=2)
    assert "auto" not in settings.values()
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert settings["gradient_accumulation_steps"] == 3
    assert settings["train_batch_size"] == 24
    assert settings["gradient_clipping"] == 0.5
    assert "auto" not in settings["zero_optimization"].values()
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["zero_optimization"]["contiguous_gradients"] is True
    alone = deepspeed_settings(config, world_size=1)["zero_optimization"]
    assert alone["overlap_comm"] is alone["contiguous_gradients"] is False
    assert settings["zero_allow_untested_optimizer"] is True
    for other in ("fp16", "bf16"):
        assert settings.get(other, {}).get("enabled", False) == (other == precision)


def own_json(folder, **change):
    """A valid JSON with `change` made, where None removes a key."""
    settings = {"gradient_clipping": "auto", "zero_optimization": {"stage": 2}, **change}
    path = folder / "own.json"
    path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
    return path


@pytest.mark.parametrize("own", [{}, {"timers": {"throughput": {"enabled": True}}}], ids=["no timers", "timers"])
def test_own_json_is_kept_where_it_agrees(tmp_path, own):
    path = own_json(tmp_path, train_batch_size=64, gradient_clipping=1.0, steps_per_print=7, **own)
    settings = deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=2)
    assert settings["train_batch_size"] == 64
    assert settings["steps_per_print"] == 7
    assert settings["timers"]["throughput"]["enabled"] == bool(own)


CONTRADICTIONS = {
    "batch": (
        {"train_micro_batch_size_per_gpu": 16},
        'has train_micro_batch_size_per_gpu 16, but --batchSize is 32; write "auto" there or change the flag',
    ),
    "accumulation": (
        {"gradient_accumulation_steps": 2},
        'has gradient_accumulation_steps 2, but --gradient_accumulation_steps is 1; write "auto" there or change',
    ),
    "whole_batch": (
        {"train_batch_size": 32},
        'has train_batch_size 32, but batch size x accumulation x GPUs is 64; write "auto" there or change the flag',
    ),
    "clipping": (
        {"gradient_clipping": 0.1},
        'has gradient_clipping 0.1, but --max_grad_norm is 1.0; write "auto" there or change the flag',
    ),
    "fp16": ({"fp16": {"enabled": True}}, "has fp16.enabled true, but the flags ask for fp32; add or drop --fp16"),
    "bf16": ({"bf16": {"enabled": True}}, "has bf16.enabled true, but the flags ask for fp32; add or drop --bf16"),
}


@pytest.mark.parametrize(("change", "message"), CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_json_that_contradicts_the_recipe_is_refused(tmp_path, change, message):
    path = own_json(tmp_path, **change)
    with pytest.raises(UserError) as error:
        deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=2)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)


def test_all_that_is_wrong_is_told_at_once(tmp_path):
    path = own_json(
        tmp_path, train_batch_size=32, zero_optimisation={}, amp={}, steps_per_print=0, bf16={"enabled": True}
    )
    with pytest.raises(UserError) as error:
        deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=2)
    assert str(error.value).splitlines() == [
        f"{path} has 5 settings that can't be:",
        '  1. train_batch_size 32, but batch size x accumulation x GPUs is 64; write "auto" there or change the flag',
        "  2. zero_optimisation, which DeepSpeed doesn't know; did you mean zero_optimization?",
        "  3. amp {}: DeepSpeed has removed it; remove it here, too, and give --fp16 or --bf16",
        f"  4. steps_per_print 0: a whole number from 1 is needed; {KEYS['steps_per_print'].why}",
        "  5. bf16.enabled true, but the flags ask for fp32; add or drop --bf16",
    ]


@pytest.mark.parametrize("own", [{}, {"fp16": {}, "bf16": {"enabled": "auto"}}], ids=["none", "sections"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_what_is_needed_is_filled_in(tmp_path, precision, own):
    """Whatever the flags say; a section that a file has isn't changed in anything else."""
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"zero_optimization": {"reduce_scatter": True}, **own}))
    config = PretrainConfig(deepspeed_config=str(path), fp16=precision == "fp16", bf16=precision == "bf16")
    settings = deepspeed_settings(config, world_size=1)
    assert settings["zero_optimization"] == {"stage": 2, "reduce_scatter": True}
    assert settings["zero_allow_untested_optimizer"] is True
    assert [name for name in ("fp16", "bf16") if settings.get(name, {}).get("enabled")] == [precision] * (
        precision != "fp32"
    )
    if precision == "fp16":
        assert ("loss_scale_window" in settings["fp16"]) == (not own)


def test_nulls_and_comments_are_as_if_they_were_not_there(tmp_path):
    path = own_json(tmp_path, _comment="of mine", zero_optimization={"stage": 1, "_why": "slow network"})
    path.write_text(path.read_text().replace("{", '{"fp16": null, "steps_per_print": null, ', 1))
    settings = deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=1)
    assert settings["zero_optimization"] == {"stage": 1}
    assert not {"fp16", "steps_per_print", "_comment"} & settings.keys()


@pytest.mark.parametrize(
    ("own", "level"),
    [
        ({}, None),
        ({"memory_breakdown": False}, None),
        ({"wall_clock_breakdown": True}, "info"),
        ({"comms_logger": {"enabled": True}}, "info"),
        ({"dump_state": True, "log_level": "error"}, "error"),
    ],
)
def test_what_is_asked_for_is_told(tmp_path, own, level):
    """DeepSpeed tells it at the level "info", which a training has off."""
    config = PretrainConfig(deepspeed_config=str(own_json(tmp_path, **own)))
    assert deepspeed_settings(config, world_size=1).get("log_level") == level


@pytest.mark.parametrize("overlap", [True, False])
def test_gradients_are_contiguous_where_they_are_sent_or_overlap(tmp_path, overlap):
    """Alone and without, DeepSpeed copies some gradients of bf16 convolutions onto themselves, which torch refuses."""
    zero = {"overlap_comm": overlap, "contiguous_gradients": "auto"}
    config = PretrainConfig(deepspeed_config=str(own_json(tmp_path, zero_optimization=zero)))
    assert deepspeed_settings(config, world_size=1)["zero_optimization"]["contiguous_gradients"] is overlap


def test_what_deepspeed_is_given_is_printed(tmp_path, capsys):
    path = own_json(tmp_path, zero_optimization={"stage": 1}, csv_monitor={"enabled": True})
    flags = ["--recipe", "rn50_stage_one", "--fp16", "false", "--deepspeed_config", str(path)]
    train(Pretraining, [*flags, "--print_config", "deepspeed"])
    printed = json.loads(capsys.readouterr().out)
    config, _ = parse(PretrainConfig, flags, RECIPES)
    assert printed == deepspeed_settings(config, world_size=1)
    assert printed["zero_optimization"] == {"stage": 1}
    assert printed["train_micro_batch_size_per_gpu"] == config.batch_size


def test_missing_json_is_named(tmp_path):
    config = PretrainConfig(deepspeed_config=str(tmp_path / "gone.json"))
    with pytest.raises(UserError, match=r"--deepspeed_config .*gone\.json can't be read: No such file or directory"):
        deepspeed_settings(config, world_size=1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "can't be read: it is no text in UTF-8"),
        (b'["zero_optimization"]', "is no DeepSpeed configuration: an object, such as"),
        (b'{"fp16": {"enabled": false, "enabled": true}}', "has enabled twice; remove one of them"),
    ],
    ids=["bytes", "list", "twice"],
)
def test_a_file_that_says_nothing_clear_is_refused(tmp_path, content, message):
    path = tmp_path / "own.json"
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=1)
    assert f"{path} {message}" in str(error.value)


def test_broken_json_is_named_with_its_line(tmp_path):
    path = tmp_path / "broken.json"
    path.write_text('{\n"fp16": {},\n"bf16" {}\n}')
    with pytest.raises(UserError, match=r"broken\.json, line 3: not valid JSON \(Expecting ':' delimiter\)"):
        deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=1)


OFFLOAD = {"device": "cpu"}


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("offload", [None, {"device": "none"}, OFFLOAD, {**OFFLOAD, "pin_memory": True}])
def test_stages_and_offload_are_taken(tmp_path, stage, offload):
    path = own_json(tmp_path, zero_optimization={"stage": stage, "offload_optimizer": offload, "zenflow": None})
    settings = deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=2)
    assert settings["zero_optimization"]["stage"] == stage
    assert is_offloaded(settings["zero_optimization"]) == (offload not in (None, {"device": "none"}))
    assert settings["zero_force_ds_cpu_optimizer"] is False


REFUSED = {
    "stage 0": ({"stage": 0}, "stage 0: 1 or 2 is needed; 2, where a file has none; 0 has no fp32 weights"),
    "stage 3": ({"stage": 3}, "3 takes apart the weights that kernels and batch norm read whole"),
    "weights": ({"offload_param": OFFLOAD}, 'offload_param.device "cpu": only stage 3 heeds this'),
    "disk": ({"offload_optimizer": {"device": "nvme"}}, 'device "nvme": "none" or "cpu" is needed'),
    "a part": ({"offload_optimizer": {**OFFLOAD, "ratio": 0.5}}, "offload_optimizer.ratio 0.5: only stage 3 heeds"),
    "superchip": ({"offload_optimizer": {**OFFLOAD, "super_offload": True}}, "super_offload true: only stage 3 heeds"),
    "word": ({"offload_optimizer": "cpu"}, 'offload_optimizer "cpu": an object, such as {"device": "cpu"}, is needed'),
    "groups": ({"zero_hpz_partition_size": 2}, "zero_hpz_partition_size 2: only stage 3 heeds this"),
    "quantized weights": ({"zero_quantized_weights": True}, "zero_quantized_weights true: only stage 3 heeds this"),
    "quantized gradients": ({"zero_quantized_gradients": True}, "zero_quantized_gradients true: only stage 3"),
    "old name": ({"cpu_offload": True}, 'cpu_offload true: it has another name now; write "offload_optimizer"'),
    "round robin": (
        {"round_robin_gradients": True},
        "round_robin_gradients true: DeepSpeed then finds",
    ),
    "elastic": ({"elastic_checkpoint": True}, "it gives checkpoints another form"),
    "old stage 1": ({"legacy_stage1": True}, "DeepSpeed has dropped it; remove it"),
    "zenflow": ({"zenflow": {"topk_ratio": 0.1}}, "it brings an optimiser of its own in place of the recipe's two"),
    "no norm to clip by": ({"compute_grad_norm": False}, "clipping and offload need the norm"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_zero_may_not_do_here_is_refused_with_the_reason(tmp_path, change, message):
    path = own_json(tmp_path, zero_optimization={"stage": 2, **change})
    with pytest.raises(UserError) as error:
        deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=2)
    assert str(error.value).startswith(f"{path}")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_without_clipping_the_norm_may_be_left_out_but_not_with_offload(tmp_path):
    zero = {"stage": 1, "compute_grad_norm": False}
    config = PretrainConfig(deepspeed_config=str(own_json(tmp_path, zero_optimization=zero)), max_grad_norm=0.0)
    assert deepspeed_settings(config, world_size=2)["zero_optimization"]["compute_grad_norm"] is False
    own_json(tmp_path, zero_optimization={**zero, "offload_optimizer": OFFLOAD})
    with pytest.raises(UserError, match="clipping and offload need the norm"):
        deepspeed_settings(config, world_size=2)


@pytest.mark.parametrize(("zero", "works"), [({"stage": 2}, True), ({"stage": 1}, False)], ids=["stage 2", "stage 1"])
def test_bf16_accumulates_in_fp32_in_stage_2_only(tmp_path, zero, works):
    own = {"zero_optimization": zero, "bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    config = PretrainConfig(deepspeed_config=str(own_json(tmp_path, **own)), bf16=True)
    expected = nullcontext() if works else pytest.raises(UserError, match="stage 1 in bf16 takes an optimiser that")
    with expected:
        deepspeed_settings(config, world_size=2)


def test_monitors_are_taken_out_for_ours(tmp_path):
    """DeepSpeed's engine, given them, would read the loss at each step."""
    sections = {
        "tensorboard": {"enabled": True, "output_path": "tb", "job_name": None},
        "csv_monitor": {"enabled": False, "job_name": "mine"},
        "wandb": {"team": "ours"},
    }
    config = PretrainConfig(deepspeed_config=str(own_json(tmp_path, **sections)), monitor="wandb, csv")
    assert not {"tensorboard", "csv_monitor", "wandb", "comet"} & deepspeed_settings(config, world_size=1).keys()
    chosen = {"wandb": {"team": "ours"}, "csv": {"job_name": "mine"}, "tensorboard": {"output_path": "tb"}}
    assert monitor_settings(config) == chosen
    config.monitor = None
    assert monitor_settings(config) == {"tensorboard": {"output_path": "tb"}}
    assert monitor_settings(PretrainConfig(monitor="comet")) == {"comet": {}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wandb": True}, 'wandb has to be an object, such as {"enabled": true}'),
        ({"wandb": {"enabled": "yes"}}, "wandb.enabled 'yes': type bool is needed"),
        (
            {"csv_monitor": {"enabled": True, "path": "x"}},
            "csv_monitor.path isn't known; there are enabled, output_path",
        ),
        ({"comet": {"samples_log_interval": "5"}}, "comet.samples_log_interval '5': type int is needed"),
    ],
    ids=["no object", "no bool", "misspelt", "no number"],
)
def test_a_monitor_that_deepspeed_would_not_understand_is_refused(tmp_path, change, message):
    path = own_json(tmp_path, **change)
    with pytest.raises(UserError) as error:
        deepspeed_settings(PretrainConfig(deepspeed_config=str(path)), world_size=1)
    assert str(error.value).startswith(f"{path}: {message}")
