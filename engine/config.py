"""The arguments of every program, declared once, as dataclasses.

A value comes from the command line, else from the recipe, else from the default here; engine.arguments reads them.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from transformers.hf_argparser import HfArg

from engine.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class DataConfig:
    """Which data, and how they become batches."""

    data_root: str = HfArg(default="data", help="folder that holds mscoco/, vg_raw_images/, lxmert/ and vqa/")
    image_size_min: int = HfArg(default=384, help="short side of the padded image, in pixels")
    image_size_max: int = HfArg(default=640, help="long side of the padded image, in pixels")
    aspect_ratio_group_factor: int = HfArg(default=5, help="2 k + 2 groups of aspect ratio; a batch holds one group")
    orient_after_resize: bool = HfArg(default=False, help="pad nearly square landscapes as portraits, as the original")
    same_order_each_epoch: bool = HfArg(default=False, help="don't reshuffle between epochs, as the original")
    max_seq_length: int = HfArg(default=20, help="tokens per sentence, [CLS] and [SEP] included")
    num_workers: int = HfArg(aliases=["--numWorkers"], default=4, help="data loading processes per rank")
    worker_start_method: Literal["fork", "spawn", "forkserver"] = HfArg(
        default="fork", help="how loading processes start; fork is much the quickest"
    )
    image_store: str | None = HfArg(default=None, help="LMDB that prepare.py images wrote, instead of the folders")
    image_decoder: Literal["pillow", "simplejpeg"] = HfArg(
        default="pillow", help="simplejpeg is faster, and up to 2 grey levels off the original"
    )
    cache_dir: str | None = HfArg(default=None, help="folder for prepared annotations; DATA_ROOT/cache if not given")
    allow_missing_images: bool = HfArg(default=False, help="leave out sentences whose image has no file")
    max_unreadable_images: int = HfArg(default=10, help="damaged images to skip, over all ranks, before giving up")


@dataclass
class ModelConfig:
    """What is trained, and from which weights."""

    bert: str = HfArg(default="bert-base-uncased", help="folder (config.json, vocab.txt, weights) or hub name")
    clip_model_name: Literal["RN50", "RN50x4", "tiny"] = HfArg(default="RN50", help="the CLIP backbone")
    clip_weights: str | None = HfArg(default=None, help="OpenAI's .pt file; ~/.cache/clip/NAME.pt if not given")
    from_scratch: bool = HfArg(aliases=["--fromScratch"], default=False, help="random weights; --bert gives only words")
    load: str | None = HfArg(default=None, help="checkpoint to start from, such as snap/pretrain/NAME/Epoch09")
    not_load_scheduler: bool = HfArg(default=False, help="with --load: start the schedules anew")
    not_load_adam_optimizer: bool = HfArg(default=False, help="with --load: start the optimiser anew")
    sub_sampling: bool = HfArg(default=False, help="draw cells of the grid instead of taking all")
    sub_feat_num: int = HfArg(default=36, help="cells to draw per image")
    sub_sampling_in_evaluation: bool = HfArg(default=True, help="with --sub_sampling: draw in evaluation, too")
    use_positional_embedding: bool = HfArg(default=False, help="add learned row and column embeddings to the grid")
    pos_num: int = HfArg(default=25, help="rows of each position table")
    freeze_batch_norm: bool = HfArg(default=False, help="keep the backbone's running statistics")
    activation_checkpointing: bool = HfArg(default=False, help="compute activations twice, to keep few of them")


@dataclass
class OptimizationConfig:
    """Batch, optimisers, schedules, precision."""

    batch_size: int = HfArg(aliases=["--batchSize", "--micro_batch_size"], default=32, help="samples per GPU and pass")
    gradient_accumulation_steps: int = HfArg(default=1, help="passes per optimiser step")
    global_batch_size: int | None = HfArg(default=None, help="samples per optimiser step; sets the accumulation")
    epochs: int = HfArg(aliases=["--epoch"], default=20, help="epochs that the schedules are laid out for")
    stop_after_epoch: int | None = HfArg(default=None, help="stop when this epoch (counted from 1) is done")
    max_steps: int | None = HfArg(default=None, help="stop after this many optimiser steps")
    lr: float = HfArg(default=1e-4, help="peak rate of AdamW")
    weight_decay: float = HfArg(default=0.01, help="decay of AdamW's matrices")
    adam_epsilon: float = HfArg(default=1e-6, help="epsilon of AdamW")
    warmup_ratio: float = HfArg(default=0.1, help="share of all steps in which AdamW warms up")
    sgd_lr: float = HfArg(default=0.001, help="rate of SGD, for the backbone")
    sgd_momentum: float = HfArg(default=0.0, help="momentum of SGD")
    sgd_weight_decay: float = HfArg(default=0.0004, help="decay of SGD")
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


@dataclass
class TrainingConfig(DataConfig, ModelConfig, OptimizationConfig, RunConfig):
    """What every training takes; each program adds its own."""

    train: str = HfArg(default="", help="annotation files to train on")
    valid: str = HfArg(default="", help="annotation files to validate on after each epoch; '' for none")

    def check(self, world_size: int) -> None:
        """Derive the accumulation and refuse what can't work, before anything is read.

        Raises:
            UserError: naming the flag to change.
        """
        for name in (
            "batch_size",
            "gradient_accumulation_steps",
            "epochs",
            "report_step",
            "image_size_min",
            "sub_feat_num",
            "pos_num",
        ):
            if getattr(self, name) < 1:
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
        if self.fp16 and self.bf16:
            raise UserError("--fp16 and --bf16 exclude each other; drop one (with a recipe: --fp16 false)")
        if self.fp16 and not fp16_is_supported():
            raise UserError(
                "--fp16 needs a GPU; on a CPU use --bf16, or neither for fp32 (with a recipe: --fp16 false)"
            )
        if self.load is None and (self.not_load_scheduler or self.not_load_adam_optimizer):
            raise UserError(
                "--not_load_scheduler and --not_load_adam_optimizer say what to leave out of --load; add --load PATH"
            )
        if self.load is not None and self.from_scratch:
            raise UserError("--load and --fromScratch exclude each other; drop one")
        if self.global_batch_size is not None:
            one_pass = self.batch_size * world_size
            if self.global_batch_size < 1 or self.global_batch_size % one_pass:
                raise UserError(
                    f"--global_batch_size {self.global_batch_size} is no multiple of {self.batch_size} samples x "
                    f"{world_size} GPUs = {one_pass}; change it or --batchSize"
                )
            self.gradient_accumulation_steps = self.global_batch_size // one_pass


@dataclass
class PretrainConfig(TrainingConfig):
    """Everything that launch/pretrain.py takes."""

    train: str = HfArg(default="mscoco_train,mscoco_nominival,vgnococo", help="annotation files in data/lxmert/")
    valid: str = HfArg(default="mscoco_minival", help="annotation files to validate on after each epoch; '' for none")
    qa_sets: str | None = HfArg(aliases=["--qaSets"], default=None, help="answers of these data sets only")
    word_mask_rate: float = HfArg(aliases=["--wordMaskRate"], default=0.15, help="share of words to mask")
    task_mask_lm: bool = HfArg(aliases=["--taskMaskLM"], default=True, help="predict masked words")
    task_matched: bool = HfArg(aliases=["--taskMatched"], default=True, help="tell matched from swapped captions")
    task_qa: bool = HfArg(aliases=["--taskQA"], default=False, help="answer questions")

    def check(self, world_size: int) -> None:
        super().check(world_size)
        if not 0.0 <= self.word_mask_rate <= 1.0:
            raise UserError(f"--word_mask_rate {self.word_mask_rate}: a share between 0 and 1 is needed")
        if self.word_mask_rate == 0.0 and self.task_mask_lm:
            raise UserError("--word_mask_rate 0 leaves no word to predict; add --no_task_mask_lm")
        if not (self.task_mask_lm or self.task_matched or self.task_qa):
            raise UserError("no task is left; turn on one of --taskMaskLM, --taskMatched, --taskQA")


@dataclass
class VqaConfig(TrainingConfig):
    """Everything that launch/finetune_vqa.py takes."""

    train: str = HfArg(default="train,nominival", help="annotation files in data/vqa/")
    valid: str = HfArg(default="minival", help="annotation files to score after each epoch; '' for none")
    output: str = HfArg(default="snap/vqa/run", help="folder for BEST, LAST, checkpoints and metrics.jsonl")
    load_lxmert: str | None = HfArg(
        aliases=["--loadLXMERT"], default=None, help="pre-trained checkpoint to take the trunk from"
    )
    load_lxmert_qa: str | None = HfArg(
        aliases=["--loadLXMERTQA"], default=None, help="pre-trained checkpoint to take the trunk and answers from"
    )
    loss_scale: float = HfArg(default=1.0, help="factor of the mean loss; 1 for the number of answers, as the original")
    human_answers: str | None = HfArg(
        default=None, help="official annotation files with ten answers a question, for the official accuracy"
    )
    allow_trained_on: bool = HfArg(default=False, help="score questions or images that were trained on")

    def check(self, world_size: int) -> None:
        super().check(world_size)
        if not 0 < self.loss_scale < float("inf"):
            raise UserError(f"--loss_scale {self.loss_scale}: a number above 0 is needed")
        starts = ["load", "load_lxmert", "load_lxmert_qa"]
        given = [name for name in starts if getattr(self, name) is not None] + ["fromScratch"] * self.from_scratch
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} exclude each other; drop one (with a recipe: --NAME '')")
        if self.human_answers and not self.valid:
            raise UserError("--human_answers are for the validation; add --valid, or leave them out")


@dataclass
class PredictConfig:
    """Answer the questions of a split with a fine-tuned model, and score them where their answers are known."""

    load: str = HfArg(default="", help="fine-tuned model, such as snap/vqa/NAME/BEST")
    test: str | None = HfArg(default=None, help="annotation files in data/vqa/, such as minival or test")
    question: str | None = HfArg(default=None, help="one question to answer, with --image")
    image: str | None = HfArg(default=None, help="image file that --question is about")
    output: str | None = HfArg(default=None, help="folder for the results; that of --load if not given")
    top_k: int | None = HfArg(default=None, help="also write this many answers of each question with probabilities")
    data_root: str = HfArg(default="data", help="folder that holds mscoco/ and vqa/")
    batch_size: int = HfArg(aliases=["--batchSize"], default=32, help="questions per GPU and pass")
    num_workers: int = HfArg(aliases=["--numWorkers"], default=4, help="data loading processes per rank")
    worker_start_method: Literal["fork", "spawn", "forkserver"] = HfArg(
        default="fork", help="how loading processes start; fork is much the quickest"
    )
    image_store: str | None = HfArg(default=None, help="LMDB that prepare.py images wrote, instead of the folders")
    image_decoder: Literal["pillow", "simplejpeg"] = HfArg(default="pillow", help="as in training")
    cache_dir: str | None = HfArg(default=None, help="folder for prepared annotations; DATA_ROOT/cache if not given")
    sub_sampling_in_evaluation: bool = HfArg(
        aliases=["--sub_sampling"], default=True, help="draw cells where the model was trained so; else take all"
    )
    seed: int = HfArg(default=9595, help="seed of the cells that are drawn")
    human_answers: str | None = HfArg(
        default=None, help="official annotation files with ten answers a question, for the official accuracy"
    )
    allow_trained_on: bool = HfArg(default=False, help="score questions or images that were trained on")
    max_unreadable_images: int = HfArg(default=0, help="damaged images to answer blindly before giving up")
    fp16: bool = HfArg(default=False, help="half precision; needs a GPU")
    bf16: bool = HfArg(default=False, help="bf16")

    def check(self) -> None:
        """Raises UserError, naming the flag to change."""
        if not self.load:
            raise UserError("which model? add --load snap/vqa/NAME/BEST")
        if (self.test is None) == (self.question is None):
            raise UserError("either --test SPLIT or --question TEXT --image FILE is needed")
        if (self.question is None) != (self.image is None):
            raise UserError("--question and --image go together; add the other one")
        for name in ("batch_size", "top_k"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} {value}: at least 1 is needed")
        for name in ("num_workers", "seed", "max_unreadable_images"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)}: at least 0 is needed")
        if self.fp16 and self.bf16:
            raise UserError("--fp16 and --bf16 exclude each other; drop one")
        if self.fp16 and not fp16_is_supported():
            raise UserError("--fp16 needs a GPU; on a CPU use --bf16, or neither for fp32")


@dataclass
class PrepareConfig:
    """What every command of launch/prepare.py takes."""

    data_root: str = HfArg(default="data", help="folder that holds mscoco/, vg_raw_images/ and lxmert/")
    json: str | None = HfArg(default=None, help="also write the summary to this file")


@dataclass
class AnnotationFilesConfig(PrepareConfig):
    """Commands that read annotation files."""

    train: str = HfArg(default="mscoco_train,mscoco_nominival,vgnococo", help="annotation files in data/lxmert/")
    valid: str = HfArg(default="mscoco_minival", help="those of the validation; '' for none")

    @property
    def splits(self) -> list[str]:
        return [names for names in (self.train, self.valid) if names]


@dataclass
class PrepareAnnotations(AnnotationFilesConfig):
    """Build the annotation stores that a training with the same flags opens."""

    bert: str = HfArg(default="bert-base-uncased", help="folder or hub name; gives the vocabulary")
    qa_sets: str | None = HfArg(aliases=["--qaSets"], default=None, help="answers of these data sets only")
    cache_dir: str | None = HfArg(default=None, help="folder for prepared annotations; DATA_ROOT/cache if not given")
    with_text: bool = HfArg(default=False, help="a second store that keeps the sentences themselves, too")


@dataclass
class PrepareImages(AnnotationFilesConfig):
    """Write the annotations' images to one LMDB, or complete it."""

    image_store: str | None = HfArg(default=None, help="folder of the LMDB; DATA_ROOT/images.lmdb if not given")
    resize: str | None = HfArg(
        default=None, help="short and long side, as in 384x640; the files as they are if not given"
    )
    quality: int = HfArg(default=95, help="JPEG quality of resized images")
    workers: int | None = HfArg(default=None, help="processes that encode; one a core if not given")


@dataclass
class PrepareSizes(PrepareConfig):
    """Write mscoco/width_heigths.json, or complete it, for all images in the folders."""


@dataclass
class PrepareAnswers(AnnotationFilesConfig):
    """Make an answer table of the answers that the annotations give often enough."""

    min_count: int = HfArg(default=9, help="questions that an answer has to occur with")
    output: str | None = HfArg(default=None, help="file to write; DATA_ROOT/lxmert/all_ans.json if not given")
    force: bool = HfArg(default=False, help="replace a table that is there")


@dataclass
class PrepareVerify(PrepareAnnotations):
    """Check the whole data set, and estimate what a training on it takes."""

    image_store: str | None = HfArg(default=None, help="LMDB to check instead of the image folders")
    image_decoder: Literal["pillow", "simplejpeg"] = HfArg(default="pillow", help="as in training")
    image_size_min: int = HfArg(default=384, help="short side of the padded image, in pixels")
    image_size_max: int = HfArg(default=640, help="long side of the padded image, in pixels")
    batch_size: int = HfArg(aliases=["--batchSize"], default=32, help="samples per GPU and pass, for the estimates")
    num_workers: int = HfArg(aliases=["--numWorkers"], default=4, help="loading processes per rank, for the estimates")
    ranks: int = HfArg(default=8, help="ranks on this machine, for the estimates")
    decode: bool = HfArg(default=True, help="decode every image; what was decoded before and is unchanged is skipped")


@dataclass
class PrepareDemo(PrepareConfig):
    """Draw the demo's small data set."""

    data_root: str = HfArg(default="data/demo", help="folder to draw the data set into")
    train_scenes: int = HfArg(default=5000, help="scenes to train on")
    valid_scenes: int = HfArg(default=500, help="held-out scenes")
    seed: int = HfArg(default=9595, help="seed of the scenes")


@dataclass
class PrepareDownload(PrepareConfig):
    """Fetch the original's data, verify and unpack them; whatever interrupted it, the same command goes on."""

    dry_run: bool = HfArg(default=False, help="only list addresses, sizes and what is there already")
    only: str = HfArg(default="", help="these of the listed names, with commas between them")
    unpack: bool = HfArg(default=True, help="unpack the images")
    remove_zip: bool = HfArg(default=False, help="remove an archive once it is unpacked")


@dataclass
class ConvertConfig:
    """What launch/convert.py takes beside --from and --to."""

    sources: list[tuple[str, str]] = dataclasses.field(default_factory=list, init=False)  # --from KIND PATH
    to: tuple[str, str] = dataclasses.field(default=("", ""), init=False)  # --to KIND PATH
    bert: str | None = HfArg(default=None, help="folder or hub name of the model's BERT; gives heads and vocabulary")
    answers: str | None = HfArg(default=None, help="table of the source's answer head, where its file doesn't say")
    new_answers: str | None = HfArg(default=None, help="table to make the answer head for; rows go by answer")
    sub_feat_num: int = HfArg(default=100, help="cells that the model reads per image, where no source says; 0 for all")
    module_prefix: bool = HfArg(default=True, help="--to lxrt: `module.` before each key; the original asks for it")
    allow_missing: bool = HfArg(default=False, help="start what no source has with random weights")
    allow_unexpected: bool = HfArg(default=False, help="leave out what the model doesn't have")
    allow_mismatched: bool = HfArg(default=False, help="leave out what has another shape, as if it were missing")
    seed: int = HfArg(default=9595, help="seed of random weights")


def fp16_is_supported() -> bool:
    """Some CPUs report fp16 too, but only a GPU gains from it."""
    from deepspeed.accelerator import get_accelerator

    return get_accelerator().device_name() != "cpu" and bool(get_accelerator().is_fp16_supported())


def deepspeed_settings(config: OptimizationConfig, world_size: int) -> dict[str, Any]:
    """The DeepSpeed JSON with every "auto" filled in from the recipe.

    Raises:
        UserError: if the JSON can't be read or says something else than the recipe.
    """
    path = Path(config.deepspeed_config or ROOT / "ds_configs" / f"zero2_{config.precision}.json")
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
    ours = {
        "train_micro_batch_size_per_gpu": ("--batchSize", config.batch_size),
        "gradient_accumulation_steps": ("--gradient_accumulation_steps", config.gradient_accumulation_steps),
        "train_batch_size": (
            "batch size x accumulation x GPUs",
            config.batch_size * config.gradient_accumulation_steps * world_size,
        ),
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
    for key in ("optimizer", "scheduler"):
        if key in settings:
            raise UserError(
                f"{path} has a section '{key}'; both optimisers and schedules come from the recipe, remove it"
            )
    return settings
