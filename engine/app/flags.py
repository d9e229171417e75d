"""The flags of launch/app.py."""

from dataclasses import dataclass
from typing import Literal

from transformers.hf_argparser import HfArg

from engine.errors import UserError

PORTS = 65535


@dataclass
class AppConfig:
    """Serve a page to try trained models on photos of your own."""

    load: str = HfArg(
        default="",
        help="models, with commas between them: runs' folders, BEST, LAST, checkpoints, or folders with safetensors",
    )
    host: str = HfArg(default="127.0.0.1", help="address to serve at; 0.0.0.0 lets the whole network in")
    port: int = HfArg(default=7860, help="port to serve at; 0 takes a free one")
    top_k: int = HfArg(default=5, help="answers, and guesses for each [MASK], that are shown")
    max_megabytes: int = HfArg(default=10, help="a request of more is refused")
    max_megapixels: int = HfArg(default=50, help="a photo of more is refused, before it is decoded")
    max_seconds: int = HfArg(default=20, help="what a request may take, from its upload to its answer")
    device: Literal["auto", "cpu", "cuda"] = HfArg(default="auto", help="auto is the GPU if there is one")
    fp16: bool = HfArg(default=False, help="half precision; needs a GPU")
    bf16: bool = HfArg(default=False, help="bf16")

    @property
    def folders(self) -> list[str]:
        """Of the models, in the order in which they are asked."""
        return [folder.strip() for folder in self.load.split(",") if folder.strip()]

    def check(self) -> None:
        """Raises UserError, naming the flag to change."""
        if not self.folders:
            raise UserError("which model? add --load snap/vqa/NAME/BEST, or several with commas between them")
        if not 0 <= self.port <= PORTS:
            raise UserError(f"--port {self.port}: a number from 0 to {PORTS} is needed")
        for name in ("top_k", "max_megabytes", "max_megapixels", "max_seconds"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: at least 1 is needed")
        if self.fp16 and self.bf16:
            raise UserError("--fp16 and --bf16 exclude each other; drop one")
