"""What the original does, one way each, in place of what the engine does; and all of them as one baseline.

The functions change a ClipVilForPretraining in place; its numbers stay the same, up to rounding.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, AdamW
from transformers.models.bert.modeling_bert import BertLayer

from engine.benchmark.backbones import run_plainly
from engine.benchmark.step.parts import Recorder
from engine.configuration.flags import OptimizationConfig
from engine.data.loading import Batch
from engine.model.encoder import Encoder, normalise_images
from engine.model.pretraining import IGNORE, ClipVilForPretraining
from engine.training.engine import groups_of
from kernels.benchmark.grid_subsample import draw_on_host

MASKED = -10000.0  # what the original adds to the attention scores of padding


def as_loaded(batch: Batch, device: torch.device) -> Batch:
    """As a loader hands it over: in pinned memory where it goes to a GPU."""
    return batch.pin_memory() if device.type == "cuda" else batch


def float_images(batch: Batch) -> Batch:
    """Images normalised by the loading workers: fp32, four times the bytes."""
    return Batch({**batch.inputs, "images": normalise_images(batch.inputs["images"])}, batch.numbers, batch.unreadable)


def label_all_words(batch: Batch) -> Batch:
    """Labels for all positions, -1 where there is none, so that all are scored."""
    inputs = dict(batch.inputs)
    labels = torch.full_like(inputs["input_ids"], IGNORE)
    labels.view(-1)[inputs.pop("masked_positions")] = inputs["masked_lm_labels"]
    return Batch({**inputs, "masked_lm_labels": labels}, batch.numbers, batch.unreadable)


def sample_on_the_host(model: ClipVilForPretraining) -> None:
    """NumPy draws image by image, an int64 index of the tokens' size goes to the device, tables go to all cells."""

    def visual_tokens(
        encoder: Encoder, grid: Tensor, sampling_state: Tensor | None, positions: Tensor | None, grid_of: Tensor | None
    ) -> Tensor:
        if grid_of is not None:
            grid = grid[grid_of]
        batch, channels, rows, columns = grid.shape
        cells = grid.permute(0, 2, 3, 1)
        if encoder.visual.use_positional_embedding:
            tables = encoder.visual_pos
            row_table, column_table = tables.x_position_embedding.weight, tables.y_position_embedding.weight
            cells = cells + (row_table[:rows, None] + column_table[None, :columns])
        cells = cells.flatten(1, 2)
        if encoder.visual.sub_feat_num:
            if positions is None:
                positions = draw_on_host(batch, rows * columns, encoder.visual.sub_feat_num)
            cells = cells.gather(1, positions.unsqueeze(-1).expand(-1, -1, channels).to(grid.device))
        return encoder.visn_fc(cells)

    model.bert.encoder.visual_tokens = partial(visual_tokens, model.bert.encoder)  # type: ignore[method-assign]


def eager_attention(model: ClipVilForPretraining) -> None:
    """Scores, an additive mask, softmax, dropout and a product, each an operator of its own."""
    encoder = model.bert.encoder
    bias = encoder.attention_bias
    encoder.attention_bias = lambda *inputs: bias(*inputs).clamp(min=MASKED)  # type: ignore[method-assign]
    for module in encoder.layer.modules():
        if hasattr(module, "config"):
            module.config._attn_implementation = "eager"  # type: ignore[union-attr]


def plain_feed_forward(model: ClipVilForPretraining) -> None:
    """transformers' own, which keeps both what goes into GELU and what comes out of it."""
    for layer in model.bert.encoder.layer:
        layer.feed_forward_chunk = partial(BertLayer.feed_forward_chunk, layer)  # type: ignore[assignment]


def in_the_original_way(model: ClipVilForPretraining) -> None:
    for change in (sample_on_the_host, eager_attention, plain_feed_forward, run_plainly):
        change(model)


class Baseline:
    """One step as the original's code does it, on today's PyTorch: autocast for apex's O1, no DeepSpeed.

    Weights are fp32 and cast for each pass, the loss has a dynamic scale, two optimisers update parameter by parameter,
    and one norm over all gradients clips them.
    """

    def __init__(
        self, model: ClipVilForPretraining, batch: Batch, config: OptimizationConfig, device: torch.device
    ) -> None:
        in_the_original_way(model)
        self.model = model.to(device).train()
        self.batch, self.config, self.device = as_loaded(label_all_words(float_images(batch)), device), config, device
        self.dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(config.precision)
        groups = groups_of(model, config)
        self.optimizers = [AdamW(groups[:2], foreach=False), SGD(groups[2:], foreach=False)]
        self.scaler = torch.amp.GradScaler(device.type, enabled=config.fp16)
        self.recorder = Recorder(device)
        self.recorder.attach(self.model)

    def forward(self, inputs: dict[str, Any]) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
            return self.model(**inputs).loss

    def step(self) -> None:
        self.recorder.begin("images to device")
        inputs = Batch(self.batch.inputs, [], []).to(self.device).inputs
        self.recorder.begin("host")
        loss = self.forward(inputs)
        self.scaler.scale(loss).backward()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        self.recorder.begin("host")
        for optimizer in self.optimizers:
            optimizer.zero_grad()

    def close(self) -> None:
        """Nothing holds it."""
