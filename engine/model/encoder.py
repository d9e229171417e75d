"""The trunk: BERT over one sequence of caption tokens and sampled grid features.

    B images    L caption tokens    S visual tokens    h hidden size    C backbone channels

Modules are named so that a state dict has the original's keys (bert.encoder.visn_fc.visn_fc.weight ...).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer

from engine.errors import UserError
from engine.model.clip_resnet import ClipResNet, ResNetShape, run_block
from kernels.grid_subsample import grid_subsample

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def normalise_images(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) to fp32 with CLIP's mean and standard deviation; floats pass through unchanged."""
    if images.is_floating_point():
        return images
    mean = torch.tensor(CLIP_MEAN, device=images.device)[:, None, None]
    std = torch.tensor(CLIP_STD, device=images.device)[:, None, None]
    return images.float().div_(255).sub_(mean).div_(std)


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


class Encoder(nn.Module):
    """Images and embedded caption to the encoded sequence.

    Two switches, to be set on the finished model, say how it runs and not what it is:

        activation_checkpointing: in training, keep only the inputs of the stem and of each block and layer, and run
            them again for the backward pass. The numbers stay the same.
        sub_sampling_in_evaluation: draw cells also in evaluation, as the original does; False takes all, in order.
    """

    def __init__(self, config: BertConfig, visual: VisualShape) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.sub_sampling_in_evaluation = True
        self.visual = visual
        self.visual_model = Backbone(visual.backbone)
        if visual.use_positional_embedding:
            self.visual_pos = PositionTables(visual.pos_num, visual.backbone.channels)
        self.visn_fc = VisualProjection(visual.backbone.channels, config)
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.num_hidden_layers))

    def train(self, mode: bool = True) -> "Encoder":
        super().train(mode)
        if self.visual.freeze_batch_norm:
            self.visual_model.eval()
        return self

    @property
    def checkpointed(self) -> bool:
        """Of this module's own mode: the backbone, frozen, is in evaluation mode and still learns."""
        return self.activation_checkpointing and self.training and torch.is_grad_enabled()

    def grid(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 or normalised floats -> (B, C, H / 32, W / 32) in the backbone's dtype."""
        backbone = self.visual_model.visual
        return backbone(normalise_images(images).to(backbone.conv1.weight.dtype), self.checkpointed)

    def visual_tokens(
        self, grid: Tensor, sampling_state: Tensor | None, first_image: int, positions: Tensor | None
    ) -> Tensor:
        """Sampled cells of a grid (B, C, rows, columns), embedded by position and projected: (B, S, h)."""
        tables: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.visual.use_positional_embedding:
            tables = (self.visual_pos.x_position_embedding.weight, self.visual_pos.y_position_embedding.weight)
        num_samples = grid.shape[2] * grid.shape[3]
        if self.visual.sub_feat_num and (self.training or self.sub_sampling_in_evaluation):
            num_samples = self.visual.sub_feat_num
        tokens, _ = grid_subsample(
            grid, *tables, sampling_state, num_samples, first_image=first_image, positions=positions
        )
        return self.visn_fc(tokens)

    def attended(self, attention_mask: Tensor, visual_tokens: Tensor) -> Tensor:
        """The text's mask (B, L) and S visual tokens, all attended, as a mask for attention: bool (B, 1, 1, L + S)."""
        visual_mask = attention_mask.new_ones(visual_tokens.shape[:2])
        return torch.cat([attention_mask, visual_mask], dim=1).bool()[:, None, None, :]

    def forward(self, text: Tensor, visual_tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, h), (B, S, h) and the text's mask (B, L) -> encoded text (B, L, h) and visual tokens (B, S, h)."""
        hidden = torch.cat([text, visual_tokens], dim=1)
        attended = self.attended(attention_mask, visual_tokens)
        for layer in self.layer:
            hidden = run_block(layer, hidden, attended, checkpointed=self.checkpointed)
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
        first_image: int = 0,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode captions with their images.

        Args:
            input_ids, token_type_ids, attention_mask: int64 (B, L); the mask is 1 for tokens, 0 for padding.
            images: (B, 3, H, W), uint8, or floats that are normalised already.
            sampling_state, first_image, positions: see kernels.grid_subsample.

        Returns:
            encoded text (B, L, h), encoded visual tokens (B, S, h), pooled (B, h), feature grid (B, C, rows, columns).
        """
        text = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        grid = self.encoder.grid(images)
        visual_tokens = self.encoder.visual_tokens(grid, sampling_state, first_image, positions)
        language, vision = self.encoder(text, visual_tokens, attention_mask)
        return language, vision, self.pooler(language), grid


def check_grid(visual: VisualShape, height: int, width: int, stride: int) -> None:
    """Refuse an image size whose grid is too small to sample from or too large for the position tables."""
    rows, columns = height // stride, width // stride
    if visual.sub_feat_num and visual.sub_feat_num > rows * columns:
        raise UserError(
            f"--sub_feat_num {visual.sub_feat_num} is more than the {rows} x {columns} = {rows * columns} cells of a "
            f"{height} x {width} image; lower it or raise --image_size_min/--image_size_max"
        )
    if visual.use_positional_embedding and max(rows, columns) > visual.pos_num:
        raise UserError(
            f"a {height} x {width} image has a grid of {rows} x {columns} cells, the position tables have "
            f"{visual.pos_num} rows; raise --pos_num or lower --image_size_max"
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
