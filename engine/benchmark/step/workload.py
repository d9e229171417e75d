"""What a step works on: a model of stage one, and a batch of noise of a real one's sizes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import BertConfig, set_seed

from engine.benchmark.step.original import Baseline
from engine.benchmark.step.switches import SWITCHES
from engine.configuration.flags import OptimizationConfig
from engine.data.loading import Batch
from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.model.memory import cast_parameters
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

    def batch(self, images: int) -> Batch:
        """Noise, captions of 8 to 20 tokens, 15 % of the words masked."""
        generator = torch.Generator().manual_seed(SEED)

        def draw(high: int, *shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.randint(high, shape, generator=generator, dtype=dtype)

        ids = 1000 + draw(20_000, images, TOKENS)
        masked = torch.rand(images, TOKENS, generator=generator) < MASK_RATE
        masked[:, 1] = True
        masked[:, [0, -1]] = False  # [CLS] and [SEP]
        places, labels = pack_labels(torch.where(masked, ids, IGNORE).numpy(), MASK_RATE)
        inputs = {
            "input_ids": ids,
            "token_type_ids": torch.zeros_like(ids),
            "attention_mask": (torch.arange(TOKENS) < 8 + draw(13, images, 1)).long(),
            "images": draw(256, images, 3, self.height, self.width, dtype=torch.uint8),
            "masked_positions": torch.from_numpy(places),
            "masked_lm_labels": torch.from_numpy(labels),
            "matched_label": draw(2, images),
            "ans": torch.full((images,), IGNORE),
            "sampling_state": torch.tensor([SEED, 0, 0]),
        }
        return Batch(inputs, list(range(images)), [])

    def on_meta(self, images: int, turned: Iterable[str] = ()) -> tuple[ClipVilForPretraining, dict[str, Any]]:
        """The model as DeepSpeed casts it, with switches turned over, and its inputs: without memory, to be counted."""
        batch = self.batch(images)
        with torch.device("meta"):
            model = self.model()
        cast_parameters(model, DTYPES[self.dtype])
        for name in turned:
            batch = SWITCHES[name].batch(batch)
            if not name.startswith("compiled_"):  # the compiler counts nothing
                SWITCHES[name].model(model)
        return model, batch.to(torch.device("meta")).inputs


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
