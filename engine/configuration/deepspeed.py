"""DeepSpeed's own configuration, with what the flags decide filled in."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.configuration.flags import AUTO, OptimizationConfig, TrainingConfig
from engine.configuration.monitors import named_tools, take_sections
from engine.errors import UserError

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"
STAGE_3_ONLY = "only stage 3 heeds this, and it isn't supported; remove it"
# Of the section zero_optimization: the values that may be there, and why no other may.
SUPPORTED: dict[str, tuple[list[Any], str]] = {
    "stage": (
        [1, 2],
        "1 and 2 are supported; 0 has no fp32 weights for a checkpoint to keep, and 3 takes apart the weights that "
        "kernels and batch norm read whole, and has checkpoints of another form",
    ),
    "offload_optimizer.device": (
        ["none", "cpu"],
        'write "cpu" for the memory of the host; only stage 3 can use a disk, and it isn\'t supported',
    ),
    "offload_optimizer.ratio": ([1], STAGE_3_ONLY),
    "offload_optimizer.super_offload": ([False], STAGE_3_ONLY),
    "offload_param.device": (["none"], STAGE_3_ONLY),
    "zero_hpz_partition_size": ([1], STAGE_3_ONLY),
    "zero_quantized_weights": ([False], STAGE_3_ONLY),
    "zero_quantized_nontrainable_weights": ([False], STAGE_3_ONLY),
    "zero_quantized_gradients": ([False], STAGE_3_ONLY),
    "cpu_offload": ([False], 'it has another name now; write "offload_optimizer": {"device": "cpu"}'),
    "cpu_offload_param": ([False], STAGE_3_ONLY),
    "cpu_offload_use_pin_memory": ([False], 'it has moved; write "pin_memory" into "offload_optimizer"'),
    "round_robin_gradients": (
        [False],
        "DeepSpeed then finds fp32 weights by other places than it has put them, which changes weights; remove it",
    ),
    "elastic_checkpoint": ([False], "it gives checkpoints another form, and ours fit any number of ranks; remove it"),
    "legacy_stage1": ([False], "DeepSpeed has dropped it; remove it"),
    "zenflow": ([], "it brings an optimiser of its own in place of the recipe's two; remove it"),
}


def deepspeed_settings(config: OptimizationConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON with every "auto" filled in from the recipe.

    Raises:
        UserError: if the JSON can't be read or says something else than the recipe.
    """
    path, settings = read_settings(config)
    take_sections(settings, path)
    is_auto = config.batch_size == AUTO  # decided later, when this is called again
    samples = config.batch_size * config.gradient_accumulation_steps * world_size
    ours = {
        "train_micro_batch_size_per_gpu": ("--batchSize", config.batch_size),
        "gradient_accumulation_steps": (
            "--gradient_accumulation_steps",
            AUTO if is_auto else config.gradient_accumulation_steps,
        ),
        "train_batch_size": ("batch size x accumulation x GPUs", config.global_batch_size if is_auto else samples),
        "gradient_clipping": ("--max_grad_norm", config.max_grad_norm),
    }
    for key, (flag, value) in ours.items():
        if settings.get(key, "auto") not in ("auto", value):
            raise UserError(
                f'{path} has {key} {settings[key]}, but {flag} is {value}; write "auto" there or change the flag'
            )
        settings[key] = value
    for precision in ("fp16", "bf16"):
        if bool(settings.get(precision, {}).get("enabled", False)) != (config.precision == precision):
            raise UserError(f"{path} and the flags disagree on {precision}; add or drop --{precision}")
    check_zero(path, settings, config)
    for key in ("overlap_comm", "contiguous_gradients"):  # a rank alone has nothing to send
        if settings["zero_optimization"].get(key) == "auto":
            settings["zero_optimization"][key] = world_size > 1
    # Unless someone asks for it: DeepSpeed's timer of throughput waits for the device twice in each micro-batch.
    settings.setdefault("timers", {"throughput": {"enabled": False}})
    settings.setdefault("zero_force_ds_cpu_optimizer", False)  # ours may be offloaded, too
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise UserError(
                f"{path} has a section '{key}'; both optimisers and schedules come from the recipe, remove it"
            )
    return settings


def read_settings(config: OptimizationConfig) -> tuple[Path, dict[str, Any]]:
    """The DeepSpeed JSON as it is, and its path.

    Raises:
        UserError: if it can't be read.
    """
    path = Path(config.deepspeed_config or DS_CONFIGS / f"zero2_{config.precision}.json")
    try:
        settings = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"--deepspeed_config {path} can't be read: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    sections = (
        [settings.get(name, {}) for name in ("fp16", "bf16", "zero_optimization")] if isinstance(settings, dict) else []
    )
    if not sections or not all(isinstance(section, dict) for section in sections):
        raise UserError(f"{path} is no DeepSpeed configuration: an object with objects fp16, bf16, zero_optimization")
    return path, settings


def monitor_settings(config: TrainingConfig) -> dict[str, dict[str, Any]]:
    """The tools that are to show the metrics, chosen by --monitor or enabled in the DeepSpeed JSON, with what it says
    of each.

    Raises:
        UserError: for an unknown tool or setting.
    """
    path, settings = read_settings(config)
    sections = take_sections(settings, path)
    chosen = [*named_tools(config.monitor), *(name for name, section in sections.items() if section.get("enabled"))]
    return {
        name: {key: value for key, value in sections.get(name, {}).items() if key != "enabled" and value is not None}
        for name in chosen
    }


def check_zero(path: Path, settings: Mapping[str, Any], config: OptimizationConfig) -> None:
    """Refuse what DeepSpeed may do, but not with these two optimisers, their checkpoints and these kernels.

    Args:
        path: of the file that holds the settings.

    Raises:
        UserError: for the first such setting, with the reason.
    """
    zero = settings.get("zero_optimization", {})
    if "stage" not in zero:
        raise UserError(f"{path} has no zero_optimization.stage; write 1 or 2")
    for key in ("offload_optimizer", "offload_param"):
        if not isinstance(zero.get(key) or {}, dict):
            raise UserError(f'{path}: zero_optimization.{key} has to be an object, such as {{"device": "cpu"}}')
    for key, (values, reason) in SUPPORTED.items():
        found: Any = zero
        for name in key.split("."):
            found = (found or {}).get(name)
        if found is not None and found not in values:
            raise UserError(f"{path} has zero_optimization.{key} {json.dumps(found)}: {reason}")
    if zero.get("compute_grad_norm") is False and (config.max_grad_norm or is_offloaded(zero)):
        raise UserError(
            f"{path} has zero_optimization.compute_grad_norm false, but clipping and offload need the norm; remove it, "
            "or give --max_grad_norm 0 and drop offload_optimizer"
        )
    accumulated_in = (settings.get("data_types") or {}).get("grad_accum_dtype")
    if config.bf16 and zero["stage"] == 1 and accumulated_in not in (None, "bf16") and not is_offloaded(zero):
        raise UserError(
            f"{path} has data_types.grad_accum_dtype {accumulated_in}, for which stage 1 in bf16 takes an optimiser "
            "that isn't ZeRO's and has checkpoints of another form; remove it, or take stage 2"
        )


def is_offloaded(zero: Mapping[str, Any]) -> bool:
    """Whether the optimisers' state lies in the memory of the host, and they compute there."""
    return (zero.get("offload_optimizer") or {}).get("device") == "cpu"
