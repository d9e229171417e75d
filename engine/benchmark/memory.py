"""What fits into a GPU: the largest micro-batches of a training, by --activation_checkpointing and the GPU's memory.

    python -m engine.benchmark.memory --recipe rn50_stage_one --batch_size 32
    python -m engine.benchmark.memory --task vqa --recipe vqa_rn50x4 --gpus 4

It takes the flags of launch/pretrain.py, with --task those of launch/finetune.py, and --gpus, the number of GPUs among
which the optimisers' state is divided. Nothing is run, and no GPU, weights or data are needed: it is counted. A
checkpoint to start from (--load) says what the model is, as it does for a training.
"""

import sys
from collections.abc import Callable
from dataclasses import make_dataclass, replace
from types import SimpleNamespace
from typing import Any

from transformers import BertConfig
from transformers.hf_argparser import HfArg

from engine.configuration.deepspeed import deepspeed_settings
from engine.configuration.flags import AUTO, ModelConfig, TrainingConfig
from engine.configuration.parsing import parse
from engine.distributed.leaving import telling_errors
from engine.errors import UserError
from engine.importing import heavy_imports
from engine.tasks.answering.task import AnsweringTask
from engine.tasks.named import TASKS, picked_task
from engine.tasks.pretraining import Pretraining
from engine.tasks.task import Task
from engine.training.program import RECIPES

GB = 1e9
DEVICES = (16, 24, 40, 80)  # GB
MOST = 1 << 14  # samples that are tried
MOST_GPUS = 1 << 16
PRETRAINING_ANSWERS = 9500  # of LXMERT's table
NOTES = f"""
GB are 10^9 bytes, and {MOST:,} samples are the most that is tried. A tenth of a GPU's memory is left free: for its
context, cuDNN's work space, and fragments between allocations. Without activation checkpointing (none), each activation
is computed once; docs/tasks.md explains the rest.
`--dry_run --find_batch_size` measures on a GPU what is counted here."""

TaskClass = type[Task[Any]]


def read_flags(argv: list[str]) -> tuple[TaskClass, TrainingConfig, int]:
    """The task, its flags, and the number of GPUs.

    Raises:
        UserError: as the training's program would, or for a flag that says nothing of memory.
    """
    task: TaskClass = Pretraining
    if {"--help", "-h"} & set(argv):
        print(f"{__doc__}\nThe tasks: {', '.join(TASKS)}.\n")
    if any(word.split("=")[0] == "--task" for word in argv):
        task, argv = picked_task(argv, str(__doc__))
    gpus = ("gpus", int, HfArg(default=1, help="GPUs among which the optimisers' state is divided"))
    flags: Any = make_dataclass("MemoryConfig", [gpus], bases=(task.config_class,))
    config, program = parse(flags, argv, RECIPES)
    for name in ("print_config", "dry_run", "find_batch_size"):
        if getattr(program, name):
            raise UserError(f"--{name} belongs to the training's own program; leave it out here")
    if config.gpus < 1:
        raise UserError(f"--gpus {config.gpus}: at least 1 is needed")
    if config.gpus > MOST_GPUS:
        raise UserError(f"--gpus {config.gpus}: {MOST_GPUS:,} at most are counted")
    if config.batch_size == AUTO:
        raise UserError("--micro_batch_size auto takes what is counted here; give a number, such as the recipe's")
    if config.start is not None:
        with heavy_imports():
            from engine.training.preflight.inherited import inherit
        if told := inherit(config, program.typed, program.in_recipe):
            print(f"{told}\n")
    config.check(config.gpus)
    if config.batch_size > MOST:
        raise UserError(f"--batch_size {config.batch_size}: {MOST:,} samples at most are counted")
    return task, config, config.gpus


def answers_of(task: TaskClass, config: Any) -> int:
    """Rows of the answer head: those of the published data, as no file is read; 0 for a model without one."""
    return task.files.usual_answers if issubclass(task, AnsweringTask) else PRETRAINING_ANSWERS * config.task_qa


def count(task: TaskClass, config: Any, gpus: int) -> Callable[..., int]:
    """What counts the bytes that a micro-batch of so many samples takes at its peak.

    Raises:
        UserError: if there can be no such model.
    """
    from engine.checkpoint.state import read_words
    from engine.training.model import describe_model
    from engine.training.preflight.memory import peak_counter, what_to_count

    # The default is BERT base, whose shape transformers knows without the hub.
    is_usual = config.bert == ModelConfig().bert
    bert = BertConfig() if is_usual else read_words(config.bert, config.do_lower_case)[0]
    answers = [str(row) for row in range(answers_of(task, config))] or None
    without_data: Any = SimpleNamespace(
        encoder=SimpleNamespace(tokenizer=None), answers=answers, architecture=task.architecture, fine_tuned_on=None
    )
    described, settings = describe_model(config, bert, without_data), deepspeed_settings(config, gpus)
    return peak_counter(what_to_count(config, described, settings, gpus, float(config.sentences_per_image)))


def largest(peak: Callable[..., int], limit: float, step: int = 1) -> int:
    """The largest number of samples, a multiple of `step` up to MOST, that takes no more than `limit`; 0 for none.

    Memory grows almost in proportion, so the next number to try lies where a line between two others meets the limit.
    """
    low, high = step, MOST - MOST % step
    if peak(low) > limit:
        return 0
    if peak(high) <= limit:
        return high
    while high - low > step:
        share = (limit - peak(low)) / (peak(high) - peak(low))
        middle = low + min(max(int(share * (high - low)) // step * step, step), high - low - step)
        low, high = (middle, high) if peak(middle) <= limit else (low, middle)
    return low


def report(task: TaskClass, config: Any, gpus: int) -> None:
    """Print what is counted, a line for each --activation_checkpointing."""
    with heavy_imports():
        from engine.model.encoder import CHECKPOINTED_STAGES
        from engine.training.preflight.memory import RESERVE

    chosen = {part: replace(config, activation_checkpointing=part) for part in CHECKPOINTED_STAGES}
    peaks = {part: count(task, flags, gpus) for part, flags in chosen.items()}
    name = task.files.folder if issubclass(task, AnsweringTask) else "pre-training"
    cells = config.sub_feat_num if config.sub_sampling else "all"
    print(
        f"Counted, not measured: {name}, {config.clip_model_name} and {config.bert}, {answers_of(task, config):,} "
        f"answers,\n{config.max_seq_length} tokens, {cells} cells, {config.image_size_min} x {config.image_size_max} "
        f"images, {config.precision}, GPUs: {gpus}, micro-batches to a step: {config.gradient_accumulation_steps}.\n\n"
        f"{'':28}{'GB at the peak':>18}   largest micro-batch on a GPU of\n{'--activation_checkpointing':28}"
        f"{f'with {config.batch_size} samples':>18}" + "".join(f"{device:6} GB" for device in DEVICES)
    )
    for part, peak in peaks.items():
        print(f"{part:28}{peak(config.batch_size) / GB:18.2f}", end="", flush=True)
        limits = ((1 - RESERVE) * device * GB for device in DEVICES)
        print("".join(f"{largest(peak, limit, config.sentences_per_image):9,}" for limit in limits), flush=True)
    print(NOTES)


def main() -> None:
    with telling_errors():
        report(*read_flags(sys.argv[1:]))


if __name__ == "__main__":
    main()
