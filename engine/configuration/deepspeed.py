"""DeepSpeed's own configuration, with what the flags decide filled in."""

import json
from pathlib import Path
from typing import Any

from engine.configuration.flags import AUTO, OptimizationConfig
from engine.errors import UserError

DS_CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def deepspeed_settings(config: OptimizationConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON with every "auto" filled in from the recipe.

    Raises:
        UserError: if the JSON can't be read or says something else than the recipe.
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
    if settings.get("zero_optimization", {}).get("stage") != 2:
        raise UserError(f"{path}: zero_optimization.stage has to be 2")
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
