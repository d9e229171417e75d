"""What a step works on: a model of stage one, and a batch of noise of a real one's sizes."""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, set_seed

from engine.benchmark.step.original import Baseline
from engine.benchmark.step.switches import SWITCHES
from engine.configuration.flags import OptimizationConfig
from engine.data.loading import Batch
from engine.errors import UserError
from engine.model.activations import cast_parameters
from engine.model.clip_resnet import SHAPES, STRIDE
from engine.model.encoder import VisualShape, check_grid
from engine.model.pretraining import IGNORE, ClipVilForPretraining
from engine.tasks.masking import pack_labels
from engine.tasks.pretraining import PretrainingOptions
from kernels.benchmark.shapes import DTYPES

TOKENS, HEAD_SIZE = 20, 64
MASK_RATE = PretrainingOptions.word_mask_rate
SEED = 9595


@dataclass(frozen=True)
class Workload:
    """The sizes that a run compares on."""

    backbone: str
    layers: int
    hidden_size: int
    sub_feat_num: int
    height: int
    width: int
    dtype: str

    def config(self, images: int) -> OptimizationConfig:
        return OptimizationConfig(batch_size=images, fp16=self.dtype == "fp16", bf16=self.dtype == "bf16")

    def model(self) -> ClipVilForPretraining:
        """Random weights, the same at each call; masked words and matching, with BERT's dropout."""
        set_seed(SEED)
        bert = BertConfig(
            num_hidden_layers=self.layers,
            hidden_size=self.hidden_size,
            num_attention_heads=self.hidden_size // HEAD_SIZE,
            intermediate_size=4 * self.hidden_size,
        )
        return ClipVilForPretraining(bert, VisualShape(SHAPES[self.backbone], self.sub_feat_num))

    def batch(self, sentences: int, sentences_per_image: int = 1) -> Batch:
        """Noise, captions of 8 to 20 tokens, 15 % of the words masked. More sentences to an image leave out images."""
        generator = torch.Generator().manual_seed(SEED)

        def draw(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.randint(high, shape, generator=generator, dtype=dtype)

        ids = 1000 + draw(20_000, sentences, TOKENS)
        masked = torch.rand(sentences, TOKENS, generator=generator) < MASK_RATE
        masked[:, 1] = True
        masked[:, [0, -1]] = False  # [CLS] and [SEP]
        places, labels = pack_labels(torch.where(masked, ids, IGNORE).numpy(), MASK_RATE)
        inputs = {
            "input_ids": ids,
            "token_type_ids": torch.zeros_like(ids),
            "attention_mask": (torch.arange(TOKENS) < 8 + draw(13, sentences, 1)).long(),
            "images": draw(256, sentences, 3, self.height, self.width, dtype=torch.uint8),
            "masked_positions": torch.from_numpy(places),
            "masked_lm_labels": torch.from_numpy(labels),
            "matched_label": draw(2, sentences),
            "ans": torch.full((sentences,), IGNORE),
            "sampling_state": torch.tensor([SEED, 0, 0]),
        }
        if sentences_per_image > 1:
            inputs["images"] = inputs["images"][::sentences_per_image].contiguous()
            inputs["grid_of"] = torch.arange(sentences) // sentences_per_image
        return Batch(inputs, list(range(sentences)), [])

    def on_meta(
        self, sentences: int, turned: Iterable[str] = (), sentences_per_image: int = 1
    ) -> tuple[ClipVilForPretraining, dict[str, Any]]:
        """The model as DeepSpeed casts it, with switches turned over, and its inputs: without memory, to be counted."""
        batch = self.batch(sentences, sentences_per_image)
        with torch.device("meta"):
            model = self.model()
        cast_parameters(model, DTYPES[self.dtype])
        for name in turned:
            batch = SWITCHES[name].batch(batch)
            if not name.startswith("compiled_"):  # the compiler counts nothing
                SWITCHES[name].model(model)
        return model, batch.to(torch.device("meta")).inputs


def add_flags(parser: argparse.ArgumentParser, here: str) -> None:
    """The flags that say which model, on what; `here` is the device that DeepSpeed has found."""
    parser.add_argument("--device", choices=["cuda", "cpu"], default=here)
    parser.add_argument("--model", choices=list(SHAPES), default="RN50")
    parser.add_argument("--dtype", choices=list(DTYPES), help="fp16; on a CPU fp32")
    parser.add_argument("--layers", type=int, default=12, help="of BERT")
    parser.add_argument("--hidden_size", type=int, default=768, help="of BERT, a multiple of 64")
    parser.add_argument("--sub_feat_num", type=int, default=100, help="cells drawn for a sequence")
    parser.add_argument(
        "--image_size", type=int, nargs=2, default=[384, 640], metavar=("HEIGHT", "WIDTH"), help="384 640"
    )
    parser.add_argument("--rounds", type=int, help="times that each is measured; 10, on a CPU 5")
    parser.add_argument("--steps", type=int, help="steps on end each time; 4, on a CPU 1")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures")


def settle_flags(parser: argparse.ArgumentParser, options: argparse.Namespace, here: str, command: list[str]) -> None:
    """Fill in what depends on the device. Where that isn't `here`, the command begins anew."""
    if options.device != here:
        if options.device == "cuda":
            parser.error("--device cuda: DeepSpeed finds no GPU here; --device cpu measures the CPU")
        # DeepSpeed chooses its accelerator once, when it is imported.
        os.execve(sys.executable, [sys.executable, "-m", *command], {**os.environ, "DS_ACCELERATOR": "cpu"})
    on_gpu = options.device == "cuda"
    for name, usual in (("dtype", ("fp32", "fp16")), ("rounds", (5, 10)), ("steps", (1, 4))):
        if getattr(options, name) is None:
            setattr(options, name, usual[on_gpu])


def check_sizes(options: argparse.Namespace) -> None:
    """Raises UserError, naming the flag to change."""
    if options.dtype == "fp16" and options.device == "cpu":
        raise UserError("--dtype fp16 needs a GPU; on a CPU use bf16 or fp32")
    if options.hidden_size < HEAD_SIZE or options.hidden_size % HEAD_SIZE:
        raise UserError(f"--hidden_size {options.hidden_size}: a multiple of {HEAD_SIZE} is needed")
    if any(side < STRIDE or side % STRIDE for side in options.image_size):
        raise UserError(f"--image_size {options.image_size}: multiples of {STRIDE} are needed")
    height, width = options.image_size
    check_grid(VisualShape(SHAPES[options.model], options.sub_feat_num), height, width)


def check_files(*paths: Path | None) -> None:
    """Raises UserError if one of them can't be written."""
    for path in paths:
        if path is not None:
            with writing(path):
                path.touch()


def write_figures(path: Path | None, figures: dict[str, Any]) -> None:
    """Raises UserError if the file can't be written; with None there is none."""
    if path is not None:
        with writing(path):
            path.write_text(json.dumps(figures, indent=1) + "\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """In place, not as engine.files does it: figures may go to /dev/stdout."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from None


def plain_pass(baseline: Baseline) -> Callable[[], None]:
    """Forward and backward pass of the baseline's modules alone: inputs on the device, no draw, no update."""
    model, inputs = baseline.model, Batch(baseline.batch.inputs, [], []).to(baseline.device).inputs
    trunk, encoder = model.bert, model.bert.encoder

    def run() -> None:
        with torch.autocast(baseline.device.type, baseline.dtype, enabled=baseline.dtype is not None):
            words = trunk.embeddings(input_ids=inputs["input_ids"], token_type_ids=inputs["token_type_ids"])
            cells = encoder.visual_model.visual(inputs["images"]).flatten(2).transpose(1, 2)
            tokens = encoder.visn_fc(cells[:, : encoder.visual.sub_feat_num])
            language, _ = encoder(words, tokens, inputs["attention_mask"])
            scores = model.cls.predictions(language, trunk.embeddings.word_embeddings.weight)
            matched = model.cls.seq_relationship(trunk.pooler(language))
            loss = F.cross_entropy(scores.flatten(0, 1), inputs["masked_lm_labels"].flatten(), ignore_index=IGNORE)
            loss = loss + F.cross_entropy(matched, inputs["matched_label"])
        loss.backward()
        model.zero_grad()

    return run
