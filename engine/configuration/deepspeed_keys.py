"""What becomes of each key of DeepSpeed's configuration: taken, filled in, or refused, and why.

One table, from which the checks come; docs/deepspeed.md shows the same. A name with a dot is of a key in a section. Of
the sections that are taken, the table names what has to be checked here; the rest is checked by DeepSpeed's own classes
(engine/training/preflight/deepspeed.py), which know all of their keys.
"""

import difflib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Values:
    """Which values there may be, and how to say so."""

    fit: Callable[[Any], bool]
    described: str = ""


@dataclass(frozen=True)
class Key:
    """What becomes of a key.

    Args:
        why: of one that is taken, what it does; of one that is filled in, with what; of one that is refused, the reason
            and the remedy.
        values: those that may be in a file; of a key that is refused, those that ask for nothing.
    """

    fate: Literal["taken", "filled in", "refused"]
    why: str
    values: Values


def only(*values: Any) -> Values:
    """These, and no others that Python holds for equal, as it does 1 and true."""
    written = [json.dumps(value) for value in values]
    return Values(lambda value: json.dumps(value) in written, " or ".join(written))


def whole(least: int, most: float = float("inf")) -> Values:
    described = f"a whole number from {least}" + (f" to {most}" if most < float("inf") else "")
    return Values(lambda value: type(value) is int and least <= value <= most, described)


def is_size(value: Any) -> bool:
    """Whether it is a number of values, which may be written as 5e8."""
    return type(value) in (int, float) and 1 <= value <= 1e10 and value == int(value)


ANY = Values(lambda value: True)
BOOL = only(True, False)
SECTION = Values(lambda value: isinstance(value, dict), "an object")
DTYPE = only("fp32", "fp16", "bf16")


def taken(what: str, values: Values = SECTION) -> Key:
    return Key("taken", what, values)


def filled_in(why: str, values: Values = ANY) -> Key:
    return Key("filled in", why, values)


def refused(why: str, *harmless: Any) -> Key:
    return Key("refused", why, only(*harmless))


STAGE_3 = "only stage 3 heeds this, and it isn't supported; remove it"
STAGE_3_ALONE = (
    *("prefetch_bucket_size", "param_persistence_threshold", "model_persistence_threshold", "max_live_parameters"),
    *("max_reuse_distance", "gather_16bit_weights_on_model_save"),
    *("module_granularity_threshold", "use_all_reduce_for_fetch_params", "allgather_sequential"),
)
DISK = "it is for offload to disks, which only stage 3 can do, and it isn't supported; remove it"
REMOVED = "DeepSpeed has removed it; remove it here, too"
PRECISE = "both optimisers compute in fp32, and checkpoints keep its digits; remove it"
OWN_CHECKPOINTS = "this engine writes, verifies and reads its checkpoints itself; remove it"
NOT_DIVIDED = "each GPU has the whole model, and ranks only divide the samples; remove it"
OWN_SAMPLES = "batches come from this engine's own sampler, which resumes exactly; remove it"

KEYS: dict[str, Key] = {
    # What the flags decide.
    "train_batch_size": filled_in("--batchSize x --gradient_accumulation_steps x GPUs"),
    "train_micro_batch_size_per_gpu": filled_in("--batchSize"),
    "gradient_accumulation_steps": filled_in("--gradient_accumulation_steps"),
    "gradient_clipping": filled_in("--max_grad_norm"),
    "fp16": filled_in("that of ds_configs/zero2_fp16.json, where --fp16 is given and a file has none", SECTION),
    "fp16.enabled": filled_in("whether --fp16 is given", BOOL),
    "fp16.initial_scale_power": taken("the first loss scale is 2 to this power", whole(0, 64)),
    "fp16.hysteresis": taken("so many steps overflow before the loss scale falls", whole(1)),
    "fp16.auto_cast": refused("the model casts its inputs itself; remove it", False),
    "fp16.fp16_master_weights_and_grads": refused(PRECISE, False),
    "bf16": filled_in("that of ds_configs/zero2_bf16.json, where --bf16 is given and a file has none", SECTION),
    "bf16.enabled": filled_in("whether --bf16 is given", BOOL),
    "bf16.immediate_grad_update": refused("ZeRO doesn't heed it; remove it", False),
    "bf16.bf16_master_weights_and_grads": refused(PRECISE, False),
    "bf16.bf16_optimizer_states": refused(PRECISE, False),
    "bfloat16": refused('it has another name now; write "bf16"'),
    "amp": refused(f"{REMOVED}, and give --fp16 or --bf16"),
    "torch_autocast": taken("as long as it is off"),
    "torch_autocast.enabled": refused("the kernels compute in one precision; remove it, and give --bf16", False),
    "data_types": taken("as below"),
    "data_types.grad_accum_dtype": taken("the precision in which micro-batches' gradients are added up", DTYPE),
    "data_types.param_dtype": refused("the precision comes from --fp16 and --bf16; remove it"),
    "data_types.buffer_dtype": refused("batch norm keeps its statistics in fp32; remove it"),
    "data_types.keep_in_fp32_modules": refused("all buffers stay in fp32; remove it", "auto", []),
    # Optimisers, ZeRO, and what ranks send.
    "optimizer": refused("both optimisers and schedules come from the recipe; remove it"),
    "scheduler": refused("both optimisers and schedules come from the recipe; remove it"),
    "zero_allow_untested_optimizer": filled_in("true: neither of the two optimisers is DeepSpeed's", only(True)),
    "zero_force_ds_cpu_optimizer": filled_in("false: the two optimisers may be offloaded, too", only(False)),
    "zero_optimization": filled_in("that of ds_configs for the precision, where a file has none", SECTION),
    "zero_optimization.stage": filled_in(
        "2, where a file has none; 0 has no fp32 weights for a checkpoint to keep, and 3 takes apart the weights that "
        "kernels and batch norm read whole, and has checkpoints of another form",
        only(1, 2),
    ),
    "zero_optimization.overlap_comm": filled_in('where it is "auto", whether there are several ranks'),
    "zero_optimization.contiguous_gradients": filled_in('where it is "auto", whether there is anything to send'),
    "zero_optimization.reduce_bucket_size": taken(
        "how many gradients ranks add up at once, which takes so much memory",
        Values(lambda value: value == "auto" or is_size(value), "a whole number from 1 to 10^10"),
    ),
    "zero_optimization.allgather_bucket_size": taken(
        "how many weights ranks give each other at once",
        Values(lambda value: value == "auto" or (is_size(value) and value % 2 == 0), "an even number from 2 to 10^10"),
    ),
    "zero_optimization.compute_grad_norm": taken("whether there is a norm, which clipping and offload need", BOOL),
    "zero_optimization.offload_optimizer": taken(
        "where the optimisers' state is, and where they compute",
        Values(SECTION.fit, 'an object, such as {"device": "cpu"},'),
    ),
    "zero_optimization.offload_optimizer.device": taken(
        '"cpu" is the host; only stage 3 can use a disk, and it isn\'t supported', only("none", "cpu")
    ),
    "zero_optimization.offload_optimizer.ratio": refused(STAGE_3, 1, 1.0),
    "zero_optimization.offload_optimizer.super_offload": refused(STAGE_3, False),
    "zero_optimization.offload_optimizer.cpuadam_cores_perc": refused(STAGE_3),
    "zero_optimization.offload_optimizer.nvme_path": refused(DISK),
    "zero_optimization.offload_optimizer.buffer_count": refused(DISK),
    "zero_optimization.offload_optimizer.pipeline_read": refused(DISK, False),
    "zero_optimization.offload_optimizer.pipeline_write": refused(DISK, False),
    "zero_optimization.offload_optimizer.fast_init": refused(DISK, False),
    "zero_optimization.offload_param": taken("as long as it is off"),
    "zero_optimization.offload_param.device": refused(STAGE_3, "none"),
    "zero_optimization.zero_hpz_partition_size": refused(STAGE_3, 1),
    "zero_optimization.zero_quantized_weights": refused(STAGE_3, False),
    "zero_optimization.zero_quantized_nontrainable_weights": refused(STAGE_3, False),
    "zero_optimization.zero_quantized_gradients": refused(STAGE_3, False),
    "zero_optimization.sub_group_size": refused(STAGE_3),
    "zero_optimization.memory_efficient_linear": refused(STAGE_3),
    "zero_optimization.pipeline_loading_checkpoint": refused(STAGE_3, False),
    "zero_optimization.override_module_apply": refused(STAGE_3),
    "zero_optimization.log_trace_cache_warnings": refused(STAGE_3, False),
    "zero_optimization.enable_sanity_checks": refused(STAGE_3, False),
    "zero_optimization.save_muon_momentum_buffer_in_memory": refused(STAGE_3, False),
    "zero_optimization.leaf_module": refused(STAGE_3),
    "zero_optimization.stage3_gather_fp16_weights_on_model_save": refused(STAGE_3),
    **{f"zero_optimization.stage3_{name}": refused(STAGE_3) for name in STAGE_3_ALONE},
    **{f"zero_optimization.{name}": refused(STAGE_3) for name in STAGE_3_ALONE},
    "zero_optimization.allgather_partitions": refused("DeepSpeed no longer heeds it; remove it", True),
    "zero_optimization.load_from_fp32_weights": refused(OWN_CHECKPOINTS, True),
    "zero_optimization.cpu_offload": refused(
        'it has another name now; write "offload_optimizer": {"device": "cpu"}', False
    ),
    "zero_optimization.cpu_offload_param": refused(STAGE_3, False),
    "zero_optimization.cpu_offload_use_pin_memory": refused(
        'it has moved; write "pin_memory" into "offload_optimizer"', False
    ),
    "zero_optimization.round_robin_gradients": refused(
        "DeepSpeed then finds fp32 weights by other places than it has put them, which changes weights; remove it",
        False,
    ),
    "zero_optimization.elastic_checkpoint": refused(
        "it gives checkpoints another form, and ours fit any number of ranks; remove it", False
    ),
    "zero_optimization.legacy_stage1": refused("DeepSpeed has dropped it; remove it", False),
    "zero_optimization.zenflow": refused("it brings an optimiser of its own in place of the recipe's two; remove it"),
    "prescale_gradients": taken("gradients are divided before ranks add them up; the mean is the same", BOOL),
    "gradient_predivide_factor": taken(
        "gradients are divided by this before, and by the rest after; the mean is the same",
        Values(lambda value: type(value) in (int, float) and 0 < value < float("inf"), "a number above 0"),
    ),
    "gradient_allreduce_op": refused("a sum would grow with the number of ranks, and rates with it; remove it", "mean"),
    "communication_data_type": taken("the precision in which ranks send gradients", DTYPE),
    "managed_gradient_accumulation": refused("the training loop says when a step is due; remove it", True),
    "disable_allgather": refused("DeepSpeed no longer heeds it; remove it", False),
    # What it tells.
    "steps_per_print": taken('DeepSpeed tells rates so often, with "log_level": "info"; cf. --report_step', whole(1)),
    "log_level": taken(
        'what DeepSpeed tells at least; "info" is filled in for the four keys below',
        only("debug", "info", "warning", "error", "critical"),
    ),
    "wall_clock_breakdown": taken("DeepSpeed tells how long forward, backward and step take", BOOL),
    "memory_breakdown": taken("DeepSpeed tells how much memory is used, at several places in each step", BOOL),
    "dump_state": taken("DeepSpeed tells all about its engine at the start", BOOL),
    "comms_logger": taken("DeepSpeed tells each communication with size and time"),
    "comms_logger.verbose": filled_in("true, as nothing is told otherwise", BOOL),
    "flops_profiler": taken("DeepSpeed counts the operations of each module in one step"),
    "flops_profiler.enabled": taken("whether it does", BOOL),
    "flops_profiler.profile_step": taken("in which step", whole(0)),
    "flops_profiler.recompute_fwd_factor": taken(
        "what checkpointing adds, in forward passes",
        Values(lambda value: type(value) in (int, float) and 0 <= value <= 1, "a number from 0 to 1"),
    ),
    "flops_profiler.module_depth": taken("how deep modules are told; -1 for all", whole(-1, 5)),
    "flops_profiler.top_modules": taken("how many are told at each depth", whole(1)),
    "flops_profiler.detailed": taken("whether each module is told", BOOL),
    "flops_profiler.output_file": taken(
        "where it is written, in place of the screen", Values(lambda value: isinstance(value, str), "a path")
    ),
    "timers": filled_in("off: DeepSpeed's timer of throughput waits for the device in each micro-batch", SECTION),
    "timers.throughput": taken("samples per second, each steps_per_print"),
    "timers.throughput.enabled": taken("whether it is told", BOOL),
    "timers.throughput.synchronized": taken("whether the device is waited for", BOOL),
    "tensorboard": taken("as with --monitor tensorboard"),
    "csv_monitor": taken("as with --monitor csv"),
    "wandb": taken("as with --monitor wandb"),
    "comet": taken("as with --monitor comet"),
    "disable_python_gc": taken("Python collects no garbage during the training", BOOL),
    # What this engine does itself, or has no use for.
    "checkpoint": refused(OWN_CHECKPOINTS, {}),
    "datastates_ckpt": refused(OWN_CHECKPOINTS),
    "nebula": refused(f"{REMOVED}; this engine writes its checkpoints itself"),
    "activation_checkpointing": refused("this engine has its own; remove it, and give --activation_checkpointing", {}),
    "compile": refused("this engine compiles its layers itself; remove it, and give --compile", {}),
    "graph_harvesting": refused(f"{REMOVED}; --compile is similar"),
    "dataloader_drop_last": refused(OWN_SAMPLES, False),
    "data_efficiency": taken("as long as it is off"),
    "data_efficiency.enabled": refused(OWN_SAMPLES, False),
    "curriculum_learning": refused(f"{REMOVED}; batches come from this engine's own sampler"),
    "elasticity": refused(f"{REMOVED}; --global_batch_size keeps the samples of a step on any number of GPUs"),
    "autotuning": taken("as long as it is off"),
    "autotuning.enabled": refused("--micro_batch_size auto and --find_batch_size do this; remove it", False),
    "hybrid_engine": taken("as long as it is off"),
    "hybrid_engine.enabled": refused("it is for models that write texts; remove it", False),
    "aio": refused("it is for offload to disks, which only stage 3 can do; remove it"),
    "weight_quantization": refused("it is for inference; remove it"),
    "compression_training": refused(REMOVED),
    "quantize_training": refused(REMOVED),
    "eigenvalue": refused(REMOVED),
    "progressive_layer_drop": refused(REMOVED),
    "sparse_attention": refused(REMOVED),
    "sparse_gradients": refused(REMOVED),
    "pipeline": refused(NOT_DIVIDED),
    "tensor_parallel": refused(NOT_DIVIDED),
    "expert_parallel": refused(NOT_DIVIDED),
    "use_data_before_expert_parallelism": refused(NOT_DIVIDED, False),
    "sequence_parallel_size": refused(NOT_DIVIDED, 1),
    "data_parallel_size": refused(NOT_DIVIDED),
    "seq_parallel_communication_data_type": refused(NOT_DIVIDED, "fp32"),
    "vocabulary_size": refused("DeepSpeed only warns of it, and words come with --bert; remove it"),
}
TOP_LEVEL = [name for name in KEYS if "." not in name]
# Sections whose keys DeepSpeed doesn't check: the table has all of them.
UNCHECKED = ("data_types", "flops_profiler", "timers", "timers.throughput")


def key_problems(settings: dict[str, Any]) -> list[str]:
    """What the table says against settings, in its order: `KEY VALUE: REASON`, each in one line."""
    problems = [f"{name}, {unknown(name, TOP_LEVEL)}" for name in settings if name not in TOP_LEVEL]
    for section in UNCHECKED:
        names, found = keys_of(section), find(settings, section)
        found = found if isinstance(found, dict) else {}
        problems += [f"{section}.{name}, {unknown(name, names)}" for name in found if name not in names]
    for name, key in KEYS.items():
        value = find(settings, name)
        if value is not None and not key.values.fit(value):
            reason = key.why if key.fate == "refused" else f"{key.values.described} is needed; {key.why}"
            problems.append(f"{name} {json.dumps(value)}: {reason}")
    return problems


def find(settings: Any, name: str) -> Any:
    """A value, or None where there is none. The name has a dot for each section that it is in."""
    for part in name.split("."):
        settings = settings.get(part) if isinstance(settings, dict) else None
    return settings


def keys_of(section: str) -> list[str]:
    return [name.rpartition(".")[2] for name in KEYS if name.rpartition(".")[0] == section]


def unknown(name: str, names: Iterable[str]) -> str:
    """Of a key that isn't among `names`: what to write, or do, instead."""
    close = difflib.get_close_matches(name, list(names), n=1)
    return "which DeepSpeed doesn't know; " + (f"did you mean {close[0]}?" if close else "remove it")
