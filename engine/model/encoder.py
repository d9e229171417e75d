"""The trunk: BERT over one sequence of caption tokens and sampled grid features.

    B sentences    G images    L caption tokens    S visual tokens    h hidden size    C backbone channels

Each sentence has an image of its own (G = B), unless `grid_of` says which one each has.

Modules are named so that a state dict has the original's keys (bert.encoder.visn_fc.visn_fc.weight ...).
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from engine.errors import UserError
from engine.model.clip_resnet import STRIDE, ClipResNet, ResNetShape, grid_side, run_block
from kernels.grid_subsample import grid_subsample

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


# Stages of the backbone, from the first, that --activation_checkpointing runs again.
CHECKPOINTED_STAGES = {"none": 0, "early": 1, "backbone": 4, "all": 4}
ROWS_PER_CELL = 25 / 20  # of position tables in the original, for the cells of 640 pixels
ALIGNMENT = 8  # elements; PyTorch's attention takes a bias as it is if its rows begin at multiples of this


@cache
def clip_statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """CLIP's mean and deviation, fp32 (3, 1, 1) each, copied to a device once: a copy makes the host wait."""
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return mean, std


def normalise_images(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images (B, 3, H, W), uint8, by CLIP's mean and standard deviation: in `dtype`, the channels of a pixel together.

    Floats count as normalised: only their dtype and layout change. The arithmetic is fp32's. The first and the last of
    its three passes over the images also change the dtype, and the first the layout.
    """
    if images.is_floating_point():
        return images.to(dtype, memory_format=torch.channels_last)
    mean, std = clip_statistics(images.device)
    normalised = torch.empty(images.shape, dtype=torch.float32, device=images.device, memory_format=torch.channels_last)
    torch.div(images, 255, out=normalised).sub_(mean)
    return torch.div(normalised, std, out=torch.empty_like(normalised, dtype=dtype))


@dataclass(frozen=True)
class VisualShape:
    """What the trunk does with images: the backbone, and how its grid becomes tokens."""

    backbone: ResNetShape
    sub_feat_num: int | None = 100  # cells drawn per image; None keeps all
    use_positional_embedding: bool = True
    pos_num: int = 25  # rows of each position table
    freeze_batch_norm: bool = False  # keep the backbone's running statistics, also in training


class Backbone(nn.Module):
    """The CLIP model with its image tower only, one level deep, as in the original's names."""

    def __init__(self, shape: ResNetShape) -> None:
        super().__init__()
        self.visual = ClipResNet(shape)


class PositionTables(nn.Module):
    """Two learned tables. The original's name for the table of grid rows is x, for columns y."""

    def __init__(self, pos_num: int, channels: int) -> None:
        super().__init__()
        self.x_position_embedding = nn.Embedding(pos_num, channels)
        self.y_position_embedding = nn.Embedding(pos_num, channels)


class VisualProjection(nn.Module):
    """Linear, LayerNorm, dropout: (B, S, C) -> (B, S, h)."""

    def __init__(self, channels: int, config: BertConfig) -> None:
        super().__init__()
        self.visn_fc = nn.Linear(channels, config.hidden_size)
        self.visn_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.visn_layer_norm(self.visn_fc(tokens)))


class GeluLinear(torch.autograd.Function):
    """linear(gelu(x)), which keeps x alone and computes gelu(x) again in the backward pass.

    x is (B, T, n), weight (m, n), bias (m), and the result (B, T, m). Numbers are those of the two operators.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.linear(F.gelu(x), weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, 1)
        of_weight = rows.t() @ F.gelu(x).flatten(0, 1)
        of_x = torch.ops.aten.gelu_backward((rows @ weight).view_as(x), x)
        return of_x, of_weight, rows.sum(0)


class Layer(BertLayer):
    """A layer of BERT that keeps for the backward pass what goes into GELU, but not what comes out of it."""

    def feed_forward_chunk(self, attention_output: Tensor) -> Tensor:
        if getattr(self.intermediate.intermediate_act_fn, "act", None) is not F.gelu:  # config.json names another
            return super().feed_forward_chunk(attention_output)
        output = self.output
        hidden = self.intermediate.dense(attention_output)
        hidden = GeluLinear.apply(hidden, output.dense.weight, output.dense.bias)
        return output.LayerNorm(output.dropout(hidden) + attention_output)


class Encoder(nn.Module):
    """Images and embedded caption to the encoded sequence.

    Two switches, to be set on the finished model, say how it runs and not what it is:

        activation_checkpointing: one of CHECKPOINTED_STAGES. In training, keep only the inputs of the blocks of these
            stages, and of the stem; with `all`, of BERT's layers, too. Run them again for the backward pass. The
            numbers stay the same.
        sub_sampling_in_evaluation: draw cells also in evaluation, as the original does; False takes all, in order.
    """

    def __init__(self, config: BertConfig, visual: VisualShape) -> None:
        super().__init__()
        self.activation_checkpointing = "none"
        self.sub_sampling_in_evaluation = True
        self.visual = visual
        self.visual_model = Backbone(visual.backbone)
        if visual.use_positional_embedding:
            self.visual_pos = PositionTables(visual.pos_num, visual.backbone.channels)
        self.visn_fc = VisualProjection(visual.backbone.channels, config)
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        if self.visual.freeze_batch_norm:
            self.visual_model.eval()
        return self

    @property
    def checkpointed(self) -> str:
        """Of this module's own mode: the backbone, frozen, is in evaluation mode and still learns."""
        return self.activation_checkpointing if self.training and torch.is_grad_enabled() else "none"

    def grid(self, images: Tensor) -> Tensor:
        """(G, 3, H, W) uint8 or normalised floats -> (G, C, H / 32, W / 32) in the backbone's dtype."""
        backbone = self.visual_model.visual
        return backbone(normalise_images(images, backbone.conv1.weight.dtype), CHECKPOINTED_STAGES[self.checkpointed])

    def visual_tokens(
        self, grid: Tensor, sampling_state: Tensor | None, positions: Tensor | None, grid_of: Tensor | None
    ) -> Tensor:
        """Sampled cells of grids (G, C, rows, columns), embedded by position and projected: (B, S, h).

        Raises:
            UserError: if cells have to be drawn, and neither `sampling_state` nor `positions` says which.
        """
        tables: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.visual.use_positional_embedding:
            tables = (self.visual_pos.x_position_embedding.weight, self.visual_pos.y_position_embedding.weight)
        num_samples = num_cells = grid.shape[2] * grid.shape[3]
        if self.visual.sub_feat_num and (self.training or self.sub_sampling_in_evaluation):
            num_samples = self.visual.sub_feat_num
        if num_samples < num_cells and sampling_state is None and positions is None:
            raise UserError(
                f"this model reads {num_samples} of the {num_cells} cells of an image, and nothing says which; give "
                "sampling_state=torch.tensor([seed, 0, 0]) on the model's device, or in evaluation let it read all "
                "cells, with sub_sampling=False of load_pretrained"
            )
        tokens, _ = grid_subsample(grid, *tables, sampling_state, num_samples, positions=positions, grid_of=grid_of)
        return self.visn_fc(tokens)

    def attention_bias(self, attention_mask: Tensor, visual_tokens: Tensor) -> Tensor:
        """What is added to the scores of attention: -inf where the text's mask (B, L) is 0, else 0; (B, 1, 1, L + S).

        It has the dtype of the visual tokens (B, S, h), and every layer takes it as it is. A mask of booleans would be
        turned into such a bias by each layer anew.
        """
        words = attention_mask.shape[1]
        tokens = words + visual_tokens.shape[1]
        bias = visual_tokens.new_zeros(len(attention_mask), 1, 1, tokens + -tokens % ALIGNMENT)
        bias[..., :words].masked_fill_(attention_mask[:, None, None] == 0, float("-inf"))
        return bias[..., :tokens]

    def forward(self, text: Tensor, visual_tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, h), (B, S, h) and the text's mask (B, L) -> encoded text (B, L, h) and visual tokens (B, S, h)."""
        hidden = torch.cat([text, visual_tokens], dim=1)
        bias = self.attention_bias(attention_mask, visual_tokens)
        for layer in self.layer:
            hidden = run_block(layer, hidden, bias, checkpointed=self.checkpointed == "all")
        return hidden[:, : text.shape[1]], hidden[:, text.shape[1] :]


class Pooler(nn.Module):
    """First token through a linear layer; unlike BERT's, without tanh."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, encoded: Tensor) -> Tensor:  # (B, L, h) -> (B, h)
        return self.dense(encoded[:, 0])


class Trunk(nn.Module):
    """Embeddings, encoder and pooler: what pre-training and fine-tuning share."""

    def __init__(self, config: BertConfig, visual: VisualShape) -> None:
        super().__init__()
        config._attn_implementation = "sdpa"
        self.embeddings = BertEmbeddings(config)
        # As in the original: position 0 and token type 0 never get a gradient.
        self.embeddings.position_embeddings.padding_idx = 0
        self.embeddings.token_type_embeddings.padding_idx = 0
        self.encoder = Encoder(config, visual)
        self.pooler = Pooler(config)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor,
        sampling_state: Tensor | None = None,
        positions: Tensor | None = None,
        grid_of: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode captions with their images.

        Args:
            input_ids, token_type_ids, attention_mask: int64 (B, L); the mask is 1 for tokens, 0 for padding.
            images: (G, 3, H, W), uint8, or floats that are normalised already.
            sampling_state, positions: see kernels.grid_subsample.
            grid_of: int64 (B,), the image of each sentence; None where each has its own, and G = B.

        Returns:
            encoded text (B, L, h), encoded visual tokens (B, S, h), pooled (B, h), feature grid (G, C, rows, columns).
        """
        text = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        grid = self.encoder.grid(images)
        visual_tokens = self.encoder.visual_tokens(grid, sampling_state, positions, grid_of)
        language, vision = self.encoder(text, visual_tokens, attention_mask)
        return language, vision, self.pooler(language), grid


def check_grid(visual: VisualShape, height: int, width: int) -> None:
    """Refuse an image size whose grid is too small to sample from or too large for the position tables."""
    rows, columns = grid_side(height), grid_side(width)
    if not rows * columns:
        raise UserError(f"a {height} x {width} image has no cell of {STRIDE} x {STRIDE}; raise --image_size_min")
    if visual.sub_feat_num and visual.sub_feat_num > rows * columns:
        raise UserError(
            f"--sub_feat_num {visual.sub_feat_num} is more than the {rows} x {columns} = {rows * columns} cells of a "
            f"{height} x {width} image; lower it or raise --image_size_min/--image_size_max"
        )
    longest = max(rows, columns)
    if visual.use_positional_embedding and longest > visual.pos_num:
        raise UserError(
            f"a {height} x {width} image has a grid of {rows} x {columns} cells, the position tables have "
            f"{visual.pos_num} rows; raise --pos_num to {math.ceil(longest * ROWS_PER_CELL)}, which is in proportion "
            f"to the original's ({longest} at least), or lower --image_size_max"
        )


def initialise_bert_weights(module: nn.Module, standard_deviation: float) -> None:
    """BERT's initialisation for every module but the backbone's: normal matrices, zero biases, plain LayerNorm."""
    for child in module.children():
        if not isinstance(child, Backbone):
            initialise_bert_weights(child, standard_deviation)
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=standard_deviation)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
