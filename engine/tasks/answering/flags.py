"""The flags of launch/predict_vqa.py."""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from engine.errors import UserError


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
    start_timeout: int = HfArg(default=60, help="seconds that the ranks of several machines may start apart")
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
        for name in ("batch_size", "top_k", "start_timeout"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"--{name} {value}: at least 1 is needed")
        for name in ("num_workers", "seed", "max_unreadable_images"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)}: at least 0 is needed")
        if self.fp16 and self.bf16:
            raise UserError("--fp16 and --bf16 exclude each other; drop one")
