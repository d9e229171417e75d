"""The flags that fine-tuning on any task with questions has, and those of predicting."""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from engine.configuration.flags import TrainingConfig
from engine.configuration.tables import TableConfig
from engine.errors import UserError

SAFETENSORS = ".safetensors"
PARTS = ("language", "vision", "pooled", "grid")  # of engine.inference.features.Features


@dataclass
class FineTuningConfig(TrainingConfig):
    """What every fine-tuning takes."""

    aspect_ratio_group_factor: int = HfArg(default=0, help="as in pre-training, where it is 5; 0: by orientation alone")
    load_lxmert: str | None = HfArg(
        aliases=["--loadLXMERT"],
        default=None,
        help="pre-trained checkpoint, or folder of a run, to take the trunk from",
    )
    load_lxmert_qa: str | None = HfArg(
        aliases=["--loadLXMERTQA"], default=None, help="the same to take the trunk and answers from"
    )
    allow_trained_on: bool = HfArg(default=False, help="score questions or images that were trained on")

    @property
    def start(self) -> str | None:
        return self.load or self.load_lxmert_qa or self.load_lxmert

    def check(self, world_size: int) -> None:
        super().check(world_size)
        starts = ["load", "load_lxmert", "load_lxmert_qa"]
        given = [name for name in starts if getattr(self, name) is not None] + ["fromScratch"] * self.from_scratch
        if len(given) > 1:
            raise UserError(f"--{given[0]} and --{given[1]} exclude each other; drop one (with a recipe: --NAME '')")


@dataclass
class SoftScoresConfig(FineTuningConfig):
    """What a fine-tuning takes in which several answers to a question may be right."""

    loss_scale: float = HfArg(default=1.0, help="factor of the mean loss; 1 for the number of answers, as the original")
    mce_loss: bool = HfArg(aliases=["--mceLoss"], default=False, help="cross entropy of a question's best answer")

    def check(self, world_size: int) -> None:
        super().check(world_size)
        if not 0 < self.loss_scale < float("inf"):
            raise UserError(f"--loss_scale {self.loss_scale}: a number above 0 is needed")


@dataclass
class PredictionConfig:
    """What a prediction takes beside the columns of tables, which --pairs may need."""

    load: str = HfArg(
        default="", help="fine-tuned model, such as snap/vqa/NAME/BEST, or its run's folder; any for --features"
    )
    test: str | None = HfArg(default=None, help="annotation files in the task's folder, such as VQA's minival or test")
    question: str | None = HfArg(default=None, help="one question, or hypothesis, with --image")
    image: str | None = HfArg(default=None, help="image file that --question is about")
    pairs: str | None = HfArg(
        default=None, help="tables, shards or datasets with images and sentences of your own, for --features"
    )
    features: str | None = HfArg(
        default=None, help="write features to this file, NAME.safetensors, instead of answers; any checkpoint will do"
    )
    feature_parts: str = HfArg(default=",".join(PARTS), help="what to write of each pair; `pooled` alone is small")
    output: str | None = HfArg(default=None, help="folder for the results; that of --load if not given")
    top_k: int | None = HfArg(default=None, help="also write this many answers of each question with probabilities")
    data_root: str = HfArg(default="data", help="folder that holds the images' and the task's folders")
    batch_size: int = HfArg(aliases=["--batchSize"], default=32, help="questions per GPU and pass")
    num_workers: int = HfArg(aliases=["--numWorkers"], default=4, help="data loading processes per rank")
    worker_start_method: Literal["fork", "spawn", "forkserver"] = HfArg(
        default="fork", help="how loading processes start; fork is much the quickest"
    )
    image_store: str | None = HfArg(default=None, help="LMDB that `prepare images` wrote, instead of the folders")
    image_decoder: Literal["pillow", "simplejpeg"] = HfArg(default="pillow", help="as in training")
    cache_dir: str | None = HfArg(default=None, help="folder for prepared annotations; DATA_ROOT/cache if not given")
    sub_sampling_in_evaluation: bool = HfArg(
        aliases=["--sub_sampling"], default=True, help="draw cells where the model was trained so; else take all"
    )
    seed: int = HfArg(default=9595, help="seed of the cells that are drawn")
    allow_trained_on: bool = HfArg(default=False, help="score questions or images that were trained on")
    max_unreadable_images: int = HfArg(
        default=0, help="damaged images to answer blindly, or to take as black ones for --features, before giving up"
    )
    start_timeout: int = HfArg(default=60, help="seconds that the ranks of several machines may start apart")
    fp16: bool = HfArg(default=False, help="half precision; needs a GPU")
    bf16: bool = HfArg(default=False, help="bf16")

    def check(self) -> None:
        """Raises UserError, naming the flag to change."""
        if not self.load:
            raise UserError("which model? add --load snap/vqa/NAME/BEST")
        if sum(asked is not None for asked in (self.test, self.question, self.pairs)) != 1:
            raise UserError(
                "either --test SPLIT or --question TEXT --image FILE is needed; or --pairs FILE for --features"
            )
        if (self.question is None) != (self.image is None):
            raise UserError("--question and --image go together; add the other one")
        self._check_features()
        for name in ("batch_size", "top_k", "start_timeout"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} {value}: at least 1 is needed")
        for name in ("num_workers", "seed", "max_unreadable_images"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)}: at least 0 is needed")
        if self.fp16 and self.bf16:
            raise UserError("--fp16 and --bf16 exclude each other; drop one")

    def _check_features(self) -> None:
        if self.features is None:
            if self.pairs is not None:
                raise UserError("--pairs has no questions of a task to answer; add --features NAME.safetensors")
            return
        if not self.features.endswith(SAFETENSORS):
            raise UserError(f"--features {self.features}: a name that ends in {SAFETENSORS} is needed")
        unknown = [part for part in self.kept_parts if part not in PARTS]
        if unknown or not self.kept_parts:
            raise UserError(f"--feature_parts {self.feature_parts}: some of {', '.join(PARTS)} are needed")
        for name in ("output", "top_k"):
            if getattr(self, name) is not None:
                raise UserError(f"--{name} is about answers, and --features writes none; drop one of the two")

    @property
    def kept_parts(self) -> list[str]:
        return [part for part in self.feature_parts.split(",") if part]


@dataclass
class PredictConfig(TableConfig, PredictionConfig):
    """Answer the questions of a split with a fine-tuned model, and score them where their answers are known.

    With --features, write what any model makes of images and sentences instead.
    """
