"""The flags that every training takes, as dataclasses; a task adds its own (engine/tasks).

A value comes from the command line, else from the recipe, else from the default here; parsing.py reads them.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from transformers.hf_argparser import HfArg

from engine.configuration.monitors import named_tools
from engine.errors import UserError

Options = TypeVar("Options")

AUTO: Any = "auto"  # in place of batch_size, until the device is known

# What yes and no meant where a flag has become a choice: in recipes, and in config.yaml of earlier runs.
FORMER_VALUES = {"activation_checkpointing": {"true": "all", "false": "none"}}


def of_flags(options: type[Options], config: Any, **others: Any) -> Options:
    """A dataclass whose fields have the names of flags, with their values.

    Args:
        others: fields that are no flags.
    """
    names = [field.name for field in fields(options) if field.name not in others]  # type: ignore[arg-type]
    return options(**{name: getattr(config, name) for name in names}, **others)


@dataclass
class DataConfig:
    """Which data, and how they become batches."""

    data_root: str = HfArg(
        default="data",
        help="folder that holds mscoco/, vg_raw_images/, images/ with your own, lxmert/, and vqa/ or another task's",
    )
    image_size_min: int = HfArg(default=384, help="short side of the padded image, in pixels")
    image_size_max: int = HfArg(default=640, help="long side of the padded image, in pixels")
    aspect_ratio_group_factor: int = HfArg(default=5, help="2 k + 2 groups of aspect ratio; a batch holds one group")
    sentences_per_image: int = HfArg(
        default=1, help="sentences that share a pass of their image through the backbone (docs/scaling.md)"
    )
    orient_after_resize: bool = HfArg(default=False, help="pad nearly square landscapes as portraits, as the original")
    same_order_each_epoch: bool = HfArg(default=False, help="don't reshuffle between epochs, as the original")
    max_seq_length: int = HfArg(default=20, help="tokens per sentence, [CLS] and [SEP] included")
    num_workers: int = HfArg(aliases=["--numWorkers"], default=4, help="data loading processes per rank")
    worker_start_method: Literal["fork", "spawn", "forkserver"] = HfArg(
        default="fork", help="how loading processes start; fork is much the quickest"
    )
    image_store: str | None = HfArg(default=None, help="LMDB that `prepare images` wrote, instead of the folders")
    image_decoder: Literal["pillow", "simplejpeg"] = HfArg(
        default="pillow", help="simplejpeg is faster, and up to 2 grey levels off the original"
    )
    cache_dir: str | None = HfArg(default=None, help="folder for prepared annotations; DATA_ROOT/cache if not given")
    tiny: bool = HfArg(default=False, help="the first 512 images of each split only, to try something")
    fast: bool = HfArg(default=False, help="the first 5,000 images of each split only")
    allow_missing_images: bool = HfArg(default=False, help="leave out sentences whose image has no file")
    max_unreadable_images: int = HfArg(default=10, help="damaged images to skip, over all ranks, before giving up")

    @property
    def most_images(self) -> int | None:
        """Of a split; those of the original's two flags."""
        return 512 if self.tiny else 5000 if self.fast else None


@dataclass
class ModelConfig:
    """What is trained, and from which weights."""

    bert: str = HfArg(
        default="bert-base-uncased",
        help="folder (config.json, vocab.txt, weights), hub name, or a checkpoint of this engine, for its words; that "
        "of --load if not given",
    )
    do_lower_case: bool | None = HfArg(
        default=None, help="read texts in lower case; if not given, as --bert's files say"
    )
    clip_model_name: Literal["RN50", "RN101", "RN50x4", "RN50x16", "RN50x64", "tiny"] = HfArg(
        default="RN50", help="the CLIP backbone"
    )
    clip_weights: str | None = HfArg(default=None, help="OpenAI's .pt file; ~/.cache/clip/NAME.pt if not given")
    from_scratch: bool = HfArg(aliases=["--fromScratch"], default=False, help="random weights; --bert gives only words")
    load: str | None = HfArg(
        default=None,
        help="checkpoint to start from, such as snap/pretrain/NAME/Epoch09, or the folder of a run; flags that shape "
        "the model or its input are as it was trained with, unless they are given",
    )
    not_load_scheduler: bool = HfArg(default=False, help="with --load: start the schedules anew")
    not_load_adam_optimizer: bool = HfArg(default=False, help="with --load: start the optimiser anew")
    sub_sampling: bool = HfArg(default=False, help="draw cells of the grid instead of taking all")
    sub_feat_num: int = HfArg(default=36, help="cells to draw per image")
    sub_sampling_in_evaluation: bool = HfArg(default=True, help="with --sub_sampling: draw in evaluation, too")
    use_positional_embedding: bool = HfArg(default=False, help="add learned row and column embeddings to the grid")
    pos_num: int = HfArg(default=25, help="rows of each position table")
    freeze_clip: bool = HfArg(default=False, help="don't train the backbone; its running statistics go on")
    freeze_batch_norm: bool = HfArg(default=False, help="keep the backbone's running statistics")
    dropout: float | None = HfArg(default=None, help="share of values that BERT drops; that of --bert if not given")
    activation_checkpointing: Literal["none", "early", "backbone", "all"] = HfArg(
        default="none",
        metadata={"nargs": "?", "const": "all"},
        help="what computes its activations twice, to keep few: the backbone's stem and first stage, all of it, or all",
    )
    compile: bool = HfArg(default=False, help="have torch.compile fuse the operators of BERT's layers")


@dataclass
class OptimizationConfig:
    """Batch, optimisers, schedules, precision."""

    batch_size: int = HfArg(
        aliases=["--batchSize", "--micro_batch_size"],
        default=32,
        help="samples per GPU and pass; auto: as many as fit, by count, and make up --global_batch_size",
    )
    memory_limit: float | None = HfArg(default=None, help="GB that auto may fill, instead of the GPU's memory")
    gradient_accumulation_steps: int = HfArg(default=1, help="passes per optimiser step")
    global_batch_size: int | None = HfArg(default=None, help="samples per optimiser step; sets the accumulation")
    epochs: int = HfArg(
        aliases=["--epoch"],
        default=20,
        help="epochs that the schedules are laid out for; with --resume auto, there may be more than before",
    )
    stop_after_epoch: int | None = HfArg(default=None, help="stop when this epoch (counted from 1) is done")
    max_steps: int | None = HfArg(default=None, help="stop after this many optimiser steps")
    lr: float = HfArg(default=1e-4, help="peak rate of AdamW")
    weight_decay: float = HfArg(default=0.01, help="decay of AdamW's matrices")
    adam_epsilon: float = HfArg(default=1e-6, help="epsilon of AdamW")
    warmup_ratio: float = HfArg(default=0.1, help="share of all steps in which AdamW warms up")
    sgd_lr: float = HfArg(default=0.001, help="rate of SGD, for the backbone")
    sgd_momentum: float = HfArg(default=0.0, help="momentum of SGD")
    sgd_weight_decay: float = HfArg(default=0.0004, help="decay of SGD")
    use_adam_for_visual: bool = HfArg(default=False, help="AdamW for the backbone, too, with --sgd_lr and --schedule")
    schedule: str = HfArg(default="2,5", help="epochs at which SGD's rate falls to a tenth")
    max_grad_norm: float = HfArg(default=1.0, help="clip the norm of all gradients together")
    fp16: bool = HfArg(default=False, help="fp16 with a dynamic loss scale; needs a GPU")
    bf16: bool = HfArg(default=False, help="bf16")
    deepspeed_config: str | None = HfArg(default=None, help="DeepSpeed JSON instead of ds_configs/zero2_PRECISION.json")

    @property
    def precision(self) -> str:
        return "fp16" if self.fp16 else "bf16" if self.bf16 else "fp32"

    @property
    def milestones(self) -> list[int]:
        return [int(epoch) for epoch in self.schedule.split(",") if epoch]

    @property
    def last_epoch(self) -> int:
        return min(self.epochs, self.stop_after_epoch or self.epochs)


@dataclass
class RunConfig:
    """Where results go, and how much is told."""

    output: str = HfArg(default="snap/pretrain/run", help="folder for checkpoints and metrics.jsonl")
    resume: Literal["auto"] | None = HfArg(
        default=None, help="auto: go on from the newest checkpoint in --output, if there is one"
    )
    save_step: int | None = HfArg(default=None, help="optimiser steps between checkpoints within an epoch")
    keep: int | None = HfArg(default=None, help="training states to keep, the newest; weights of epochs stay")
    seed: int = HfArg(default=9595, help="seed of every random draw")
    deterministic: bool = HfArg(default=False, help="same bits on every run on the same GPU; slower")
    report_step: int = HfArg(default=200, help="micro-batches between reports")
    monitor: str | None = HfArg(
        aliases=["--monitors"],  # torchrun takes --monitor for a short form of two flags of its own
        default=None,
        help="also show every report in these, with commas: tensorboard,csv,wandb,comet",
    )
    stop_on: Literal["nonfinite"] | None = HfArg(
        default=None, help="nonfinite: end with an error at the first step whose gradients aren't finite"
    )
    start_timeout: int = HfArg(default=60, help="seconds that the ranks of several machines may start apart")


@dataclass
class TrainingConfig(DataConfig, ModelConfig, OptimizationConfig, RunConfig):
    """What every training takes; each program adds its own."""

    train: str = HfArg(default="", help="annotation files to train on")
    valid: str = HfArg(default="", help="annotation files to validate on after each epoch; '' for none")

    @property
    def start(self) -> str | None:
        """The checkpoint that the run starts from."""
        return self.load

    @property
    def splits(self) -> dict[str, str]:
        """The names of what there is to train and to validate on."""
        return {split: names for split, names in (("train", self.train), ("valid", self.valid)) if names}

    def check(self, world_size: int) -> None:
        """Derive the accumulation and refuse what can't work, before anything is read.

        Raises:
            UserError: naming the flag to change.
        """
        self._check_numbers()
        self._check_combinations()
        self._derive_accumulation(world_size)

    def _check_numbers(self) -> None:
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "epochs",
            "report_step",
            "start_timeout",
            "image_size_min",
            "sub_feat_num",
            "pos_num",
            "sentences_per_image",
        ):
            if getattr(self, name) != AUTO and getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        if self.save_step == -1:  # the original's word for never
            self.save_step = None
        for name in ("stop_after_epoch", "max_steps", "save_step", "keep"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} {value}: at least 1 is needed")
        for name in ("num_workers", "max_unreadable_images", "aspect_ratio_group_factor", "seed", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise UserError(f"--{name} {getattr(self, name)}: at least 0 is needed")
        for name in ("sgd_momentum", "sgd_weight_decay", "max_grad_norm"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"--{name} {getattr(self, name)}: a number of 0 or more is needed")
        for name in ("lr", "sgd_lr", "adam_epsilon"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"--{name} {getattr(self, name)}: a number above 0 is needed")
        if self.max_seq_length < 3:
            raise UserError(f"--max_seq_length {self.max_seq_length}: at least 3, for [CLS], one word and [SEP]")
        if self.image_size_max < self.image_size_min:
            raise UserError(f"--image_size_max {self.image_size_max} is below --image_size_min {self.image_size_min}")
        if not 0.0 <= self.warmup_ratio <= 1.0:
            raise UserError(f"--warmup_ratio {self.warmup_ratio}: a share between 0 and 1 is needed")
        try:
            milestones = self.milestones
        except ValueError:
            raise UserError(
                f"--schedule {self.schedule!r}: epochs with commas between them are needed, as in 12,17"
            ) from None
        if milestones != sorted(set(milestones)) or any(epoch < 1 for epoch in milestones):
            raise UserError(f"--schedule {self.schedule!r}: epochs of 1 or more, in ascending order, are needed")
        if self.dropout is not None and not 0.0 <= self.dropout < 1.0:
            raise UserError(f"--dropout {self.dropout}: a share from 0 to below 1 is needed")
        if self.memory_limit is not None and not 0 < self.memory_limit < float("inf"):
            raise UserError(f"--memory_limit {self.memory_limit}: a number of GB above 0 is needed")

    def _check_combinations(self) -> None:
        named_tools(self.monitor)
        if self.freeze_clip and self.use_adam_for_visual:
            raise UserError("--freeze_clip leaves --use_adam_for_visual nothing to train; drop one")
        if self.fp16 and self.bf16:
            raise UserError("--fp16 and --bf16 exclude each other; drop one (with a recipe: --fp16 false)")
        if self.load is None and (self.not_load_scheduler or self.not_load_adam_optimizer):
            raise UserError(
                "--not_load_scheduler and --not_load_adam_optimizer say what to leave out of --load; add --load PATH"
            )
        if self.load is not None and self.from_scratch:
            raise UserError("--load and --fromScratch exclude each other; drop one")

    def _derive_accumulation(self, world_size: int) -> None:
        if self.batch_size != AUTO and self.batch_size % self.sentences_per_image:
            raise UserError(
                f"--batchSize {self.batch_size} counts sentences, and is no multiple of --sentences_per_image "
                f"{self.sentences_per_image}; change one of them"
            )
        if self.batch_size == AUTO:
            if self.global_batch_size is None:
                raise UserError("--micro_batch_size auto divides --global_batch_size, so give that as well")
            if self.global_batch_size < 1 or self.global_batch_size % world_size:
                raise UserError(
                    f"--global_batch_size {self.global_batch_size} is no multiple of {world_size} GPUs; change it"
                )
            if self.global_batch_size // world_size % self.sentences_per_image:
                raise UserError(
                    f"--global_batch_size {self.global_batch_size} on {world_size} GPUs is no multiple of "
                    f"--sentences_per_image {self.sentences_per_image}; change one of them"
                )
        elif self.global_batch_size is not None:
            one_pass = self.batch_size * world_size
            if self.global_batch_size < 1 or self.global_batch_size % one_pass:
                raise UserError(
                    f"--global_batch_size {self.global_batch_size} is no multiple of {self.batch_size} samples x "
                    f"{world_size} GPUs = {one_pass}; change it or --batchSize"
                )
            self.gradient_accumulation_steps = self.global_batch_size // one_pass
