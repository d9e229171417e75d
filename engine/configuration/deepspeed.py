"""DeepSpeed's own configuration: a file of one's own, or one of ds_configs, and what the flags decide."""

import copy
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from engine.configuration.deepspeed_keys import key_problems
from engine.configuration.flags import AUTO, OptimizationConfig, TrainingConfig
from engine.configuration.monitors import named_tools, take_sections
from engine.errors import UserError, numbered

DS_CONFIGS = Path(str(files("ds_configs")))
# What DeepSpeed's defaults don't suit. Its timer waits for the device twice in each micro-batch.
FILLED_IN = {
    "zero_allow_untested_optimizer": True,
    "zero_force_ds_cpu_optimizer": False,
    "timers": {"throughput": {"enabled": False}},
}
TELLING = ("wall_clock_breakdown", "memory_breakdown", "dump_state")  # at the level "info", which is off otherwise


def deepspeed_settings(config: OptimizationConfig, world_size: int) -> dict[str, Any]:
    """What DeepSpeed is given: the file's settings, with all that it leaves open filled in.

    Raises:
        UserError: if the file can't be read, or says what can't be, or something else than the flags. All such settings
            are named.
    """
    path, settings = read_settings(config)
    take_sections(settings, path)
    settings = copy.deepcopy(FILLED_IN) | settings
    from_flags = decided_by_flags(config, world_size)
    problems = [
        f'{key} {json.dumps(settings[key])}, but {flag} is {value}; write "auto" there or change the flag'
        for key, (flag, value) in from_flags.items()
        if settings.get(key, "auto") not in ("auto", value)
    ]
    settings |= {key: value for key, (_, value) in from_flags.items()}
    complete_sections(settings, config.precision, world_size)
    refuse(path, problems + setting_problems(settings, config))
    return settings


def decided_by_flags(config: OptimizationConfig, world_size: int) -> dict[str, tuple[str, Any]]:
    """The keys that say what flags do: which flag, and its value."""
    is_auto = config.batch_size == AUTO  # decided later, when the settings are made again
    samples = config.batch_size * config.gradient_accumulation_steps * world_size
    return {
        "train_micro_batch_size_per_gpu": ("--batchSize", config.batch_size),
        "gradient_accumulation_steps": (
            "--gradient_accumulation_steps",
            AUTO if is_auto else config.gradient_accumulation_steps,
        ),
        "train_batch_size": ("batch size x accumulation x GPUs", config.global_batch_size if is_auto else samples),
        "gradient_clipping": ("--max_grad_norm", config.max_grad_norm),
    }


def complete_sections(settings: dict[str, Any], precision: str, world_size: int) -> None:
    """Fill in what sections leave open. Those that are no objects are left as they are, to be refused."""
    sections = {name: section for name, section in settings.items() if isinstance(section, dict)}
    for name in {"fp16", "bf16"} & sections.keys():
        if sections[name].get("enabled", "auto") == "auto":
            sections[name]["enabled"] = name == precision
    if (zero := sections.get("zero_optimization")) is not None:
        if zero.get("stage", "auto") == "auto":
            zero["stage"] = 2
        if zero.get("overlap_comm") == "auto":
            zero["overlap_comm"] = world_size > 1  # a rank alone has nothing to send
        if zero.get("contiguous_gradients") == "auto":
            zero["contiguous_gradients"] = world_size > 1 or zero.get("overlap_comm") is True
    if sections.get("comms_logger", {}).get("enabled") is True:
        sections["comms_logger"].setdefault("verbose", True)
        settings.setdefault("log_level", "info")
    if any(settings.get(key) is True for key in TELLING):
        settings.setdefault("log_level", "info")


def settings_path(config: OptimizationConfig) -> Path:
    return Path(config.deepspeed_config or DS_CONFIGS / f"zero2_{config.precision}.json")


def read_settings(config: OptimizationConfig) -> tuple[Path, dict[str, Any]]:
    """The settings of --deepspeed_config, without nulls and comments, over the sections of ds_configs; and its path.

    Raises:
        UserError: if they can't be read.
    """
    path, ours = settings_path(config), DS_CONFIGS / f"zero2_{config.precision}.json"
    return path, read_json(ours) | read_json(path)


def read_json(path: Path) -> dict[str, Any]:
    """A file's settings; `null` is as if the key weren't there, and so is a key that begins with `_`, a comment.

    Raises:
        UserError: if it can't be read, or says something twice.
    """

    def section(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise UserError(f"{path} has {' and '.join(twice)} twice; remove one of them")
        return {name: value for name, value in pairs if value is not None and not name.startswith("_")}

    try:
        settings = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=section)
    except OSError as error:
        raise UserError(f"--deepspeed_config {path} can't be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"--deepspeed_config {path} can't be read: it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {error.lineno}: not valid JSON ({error.msg})") from None
    if not isinstance(settings, dict):
        raise UserError(f'{path} is no DeepSpeed configuration: an object, such as {{"zero_optimization": ...}}')
    return settings


def refuse(path: Path, problems: list[str]) -> None:
    """Raises UserError if there are problems with a file's settings: a line for each."""
    if len(problems) == 1:
        raise UserError(f"{path} has {problems[0]}")
    if problems:
        raise UserError(f"{path} has {len(problems)} settings that can't be:{numbered(problems)}")


def monitor_settings(config: TrainingConfig) -> dict[str, dict[str, Any]]:
    """The tools that are to show the metrics, chosen by --monitor or enabled in the DeepSpeed JSON, with what it says
    of each.

    Raises:
        UserError: for an unknown tool or setting.
    """
    path, settings = read_settings(config)
    sections = take_sections(settings, path)
    chosen = [*named_tools(config.monitor), *(name for name, section in sections.items() if section.get("enabled"))]
    return {name: {key: value for key, value in sections.get(name, {}).items() if key != "enabled"} for name in chosen}


def setting_problems(settings: dict[str, Any], config: OptimizationConfig) -> list[str]:
    """What DeepSpeed may do, but not with these flags, two optimisers, their checkpoints and these kernels."""
    problems = key_problems(settings)
    for precision in ("fp16", "bf16"):
        section = settings.get(precision, {})
        enabled = section.get("enabled", False) if isinstance(section, dict) else None
        if isinstance(enabled, bool) and enabled != (config.precision == precision):
            problems.append(
                f"{precision}.enabled {json.dumps(enabled)}, but the flags ask for {config.precision}; "
                f"add or drop --{precision}"
            )
    return problems or combination_problems(settings, config)


def combination_problems(settings: dict[str, Any], config: OptimizationConfig) -> list[str]:
    """What can't be together, of settings that could be there each."""
    problems, zero = [], settings["zero_optimization"]
    divided = settings.get("prescale_gradients") or settings.get("gradient_predivide_factor", 1) != 1
    if divided and zero["stage"] == 2 and zero.get("reduce_scatter", True):
        problems.append(
            "prescale_gradients or gradient_predivide_factor, which stage 2 only takes with another way to add up; "
            'write "reduce_scatter": false into zero_optimization, or remove it: the mean is the same'
        )
    if zero.get("compute_grad_norm") is False and (config.max_grad_norm or is_offloaded(zero)):
        problems.append(
            "zero_optimization.compute_grad_norm false, but clipping and offload need the norm; remove it, or give "
            "--max_grad_norm 0 and drop offload_optimizer"
        )
    accumulated_in = settings.get("data_types", {}).get("grad_accum_dtype", "bf16")
    if config.bf16 and zero["stage"] == 1 and accumulated_in != "bf16" and not is_offloaded(zero):
        problems.append(
            f"data_types.grad_accum_dtype {accumulated_in}, for which stage 1 in bf16 takes an optimiser that isn't "
            "ZeRO's and has checkpoints of another form; remove it, or take stage 2"
        )
    return problems


def is_offloaded(zero: Mapping[str, Any]) -> bool:
    """Whether the optimisers' state lies in the memory of the host, and they compute there."""
    return (zero.get("offload_optimizer") or {}).get("device") == "cpu"
