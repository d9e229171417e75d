"""CLIP-ViL for transformers, in plain PyTorch; this file and processing_clip_vil.py need nothing of the engine.

"How Much Can CLIP Benefit Vision-and-Language Tasks?" (Shen et al., 2021): CLIP's ResNet turns an image into a grid of
features, and a BERT reads the text and cells of the grid as one sequence.

    B texts    G images    L text tokens    S visual tokens    N cells of a grid    h hidden size    C backbone channels

Modules have the names that the engine's weights have.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.utils import ModelOutput

IGNORE = -1  # the label that no loss counts
INDEX_BITS = 10
WORD = 0xFFFFFFFF


class ClipVilConfig(PretrainedConfig):
    """BERT's values under BERT's names, the backbone's shape, and how images become tokens.

    Args:
        backbone_layers, backbone_width: blocks of each of the four stages, and channels of the stem.
        sub_feat_num: cells that training drew per image; None if it took all.
        pos_num: rows of each table of positions, the most rows or columns that a grid may have; None without tables.
        has_answer_head: whether there are scores for the answers in `id2label`.
        image_mean, image_std: of red, green and blue, where white is 1.
    """

    model_type = "clip-vil"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 768,
        num_hidden_layers: int = 12,
        num_attention_heads: int = 12,
        intermediate_size: int = 3072,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        layer_norm_eps: float = 1e-12,
        initializer_range: float = 0.02,
        backbone_layers: tuple[int, ...] = (3, 4, 6, 3),
        backbone_width: int = 64,
        sub_feat_num: int | None = 100,
        pos_num: int | None = 25,
        has_answer_head: bool = True,
        image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073),
        image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711),
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.layer_norm_eps = layer_norm_eps
        self.initializer_range = initializer_range
        self.backbone_layers = list(backbone_layers)
        self.backbone_width = backbone_width
        self.sub_feat_num = sub_feat_num
        self.pos_num = pos_num
        self.has_answer_head = has_answer_head
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        super().__init__(**kwargs)


# ------------------------------------------------------------------- images to visual tokens


class Bottleneck(nn.Module):
    """1x1, 3x3, (pool), 1x1 convolutions around a shortcut: CLIP pools where other ResNets have strides."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            # The odd first name leaves "0" and "1", OpenAI's names, to the parts that have weights.
            self.downsample = nn.Sequential(
                OrderedDict([("-1", self.pool), ("0", convolution), ("1", nn.BatchNorm2d(out_channels))])
            )

    def forward(self, x: Tensor) -> Tensor:  # (G, C, H, W) -> (G, C', H / stride, W / stride)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(self.pool(out)))
        return F.relu(out + self.downsample(x))


class ClipResNet(nn.Module):
    """CLIP's ResNet up to its last grid of features, without attention pooling."""

    def __init__(self, layers: list[int], width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        channels = width
        for stage, blocks in enumerate(layers):
            stage_width, stage_blocks = width * 2**stage, []
            for block in range(blocks):
                stage_blocks.append(Bottleneck(channels, stage_width, 2 if stage > 0 and block == 0 else 1))
                channels = stage_width * Bottleneck.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*stage_blocks))

    def forward(self, images: Tensor) -> Tensor:  # (G, 3, H, W) -> (G, 32 * width, H / 32, W / 32)
        x = F.relu(self.bn1(self.conv1(images)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x


class Backbone(nn.Module):
    """One level deep, as in CLIP, whose text tower isn't here."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.visual = ClipResNet(config.backbone_layers, config.backbone_width)


class PositionTables(nn.Module):
    """Two learned tables: x is that of the grid's rows, y of its columns."""

    def __init__(self, pos_num: int, channels: int) -> None:
        super().__init__()
        self.x_position_embedding = nn.Embedding(pos_num, channels)
        self.y_position_embedding = nn.Embedding(pos_num, channels)

    def forward(self, rows: int, columns: int) -> Tensor:  # (N, C), row by row
        if max(rows, columns) > self.x_position_embedding.num_embeddings:
            raise ValueError(
                f"a grid of {rows} x {columns} cells, of 32 x 32 pixels each, but the position tables have "
                f"{self.x_position_embedding.num_embeddings} rows; give smaller images"
            )
        of_rows, of_columns = self.x_position_embedding.weight[:rows], self.y_position_embedding.weight[:columns]
        return (of_rows[:, None] + of_columns).flatten(0, 1)


class VisualProjection(nn.Module):
    """Linear, LayerNorm, dropout: (B, S, C) -> (B, S, h)."""

    def __init__(self, channels: int, config: ClipVilConfig) -> None:
        super().__init__()
        self.visn_fc = nn.Linear(channels, config.hidden_size)
        self.visn_layer_norm = nn.LayerNorm(config.hidden_size, eps=1e-12)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.visn_layer_norm(self.visn_fc(tokens)))


def philox(key: Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """The first of four 32-bit random words of Philox-4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as
    1, 2, 3", 2011), as int64: of each counter, four tensors that broadcast, under a 64-bit key."""
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key & WORD, (key >> 32) & WORD
    for _ in range(10):
        a, b = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # int64 wraps; the masks drop the copies of the sign
        c0, c1, c2, c3 = ((b >> 32) & WORD) ^ c1 ^ k0, b & WORD, ((a >> 32) & WORD) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0


def draw_cells(state: Tensor, batch: int, num_cells: int, num_samples: int) -> Tensor:
    """Cells (batch, num_samples) of up to 1024, ascending and without replacement: those that the engine draws.

    Args:
        state: int64 (3,): seed, step, and the number of the first text. In the engine's evaluations, the step is 0 and
            the number is the text's place.
    """
    cells = torch.arange(num_cells, device=state.device)
    numbers = (state[2] + torch.arange(batch, device=state.device))[:, None]
    words = philox(state[0], (cells, numbers & WORD, state[1] & WORD, torch.zeros_like(cells)))
    keys = ((words << INDEX_BITS) | cells).sort(dim=1).values
    return (keys[:, :num_samples] & ((1 << INDEX_BITS) - 1)).sort(dim=1).values


# ------------------------------------------------------------------- BERT


class Embeddings(nn.Module):
    """Token ids and types (B, L) to vectors (B, L, h)."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        words = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        return self.dropout(self.LayerNorm(words + self.position_embeddings.weight[: input_ids.shape[1]]))


class SelfAttention(nn.Module):
    """(B, T, h) -> (B, T, h), all tokens to all tokens but the text's padding."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.num_attention_heads, config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        query, key, value = (
            layer(hidden).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, h / heads)
            for layer in (self.query, self.key, self.value)
        )
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout)
        return attended.transpose(1, 2).flatten(2)


class ResidualOutput(nn.Module):
    """Linear, dropout, shortcut, LayerNorm."""

    def __init__(self, in_features: int, config: ClipVilConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(in_features, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden: Tensor, shortcut: Tensor) -> Tensor:
        return self.LayerNorm(self.dropout(self.dense(hidden)) + shortcut)


class Attention(nn.Module):
    """Self-attention around which goes a shortcut."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.self = SelfAttention(config)
        self.output = ResidualOutput(config.hidden_size, config)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        return self.output(self.self(hidden, mask), hidden)


class Activated(nn.Module):
    """A linear layer and BERT's activation."""

    def __init__(self, out_features: int, config: ClipVilConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, out_features)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden: Tensor) -> Tensor:
        return self.activation(self.dense(hidden))


class Layer(nn.Module):
    """One of BERT's: attention, then two linear layers."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.intermediate = Activated(config.intermediate_size, config)
        self.output = ResidualOutput(config.intermediate_size, config)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        hidden = self.attention(hidden, mask)
        return self.output(self.intermediate(hidden), hidden)


# ------------------------------------------------------------------- both together


class Encoder(nn.Module):
    """Images and embedded text to the encoded sequence."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.backbone_width * 32
        self.visual_model = Backbone(config)
        if config.pos_num is not None:
            self.visual_pos = PositionTables(config.pos_num, channels)
        self.visn_fc = VisualProjection(channels, config)
        self.layer = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))

    def grid(self, images: Tensor) -> Tensor:
        """Images (G, 3, H, W), uint8, or floats that are normalised already -> (G, C, H / 32, W / 32)."""
        if not images.is_floating_point():
            mean, std = (
                torch.tensor(values, device=images.device)[:, None, None]
                for values in (self.config.image_mean, self.config.image_std)
            )
            images = (images / 255 - mean) / std
        backbone = self.visual_model.visual
        return backbone(images.to(backbone.conv1.weight.dtype))

    def visual_tokens(
        self, grid: Tensor, sampling_state: Tensor | None, positions: Tensor | None, grid_of: Tensor | None
    ) -> Tensor:
        """Cells of grids (G, C, rows, columns), embedded by position and projected: (B, S, h)."""
        _, channels, rows, columns = grid.shape
        cells = grid.flatten(2).transpose(1, 2)  # (G, N, C)
        if self.config.pos_num is not None:
            cells = cells + self.visual_pos(rows, columns)
        if grid_of is not None:
            cells = cells[grid_of]
        if positions is None and sampling_state is not None and self.config.sub_feat_num is not None:
            positions = draw_cells(sampling_state, len(cells), rows * columns, self.config.sub_feat_num)
        if positions is not None:
            cells = cells.gather(1, positions.long()[..., None].expand(-1, -1, channels))
        return self.visn_fc(cells)

    def forward(self, text: Tensor, visual_tokens: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        """(B, L, h), (B, S, h) and the text's mask (B, L) -> encoded text (B, L, h) and visual tokens (B, S, h)."""
        hidden = torch.cat([text, visual_tokens], dim=1)
        seen = torch.cat([attention_mask != 0, attention_mask.new_ones(visual_tokens.shape[:2], dtype=torch.bool)], 1)
        for layer in self.layer:
            hidden = layer(hidden, seen[:, None, None])
        return hidden[:, : text.shape[1]], hidden[:, text.shape[1] :]


class Pooler(nn.Module):
    """First token through a linear layer; unlike BERT's, without tanh."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, encoded: Tensor) -> Tensor:  # (B, L, h) -> (B, h)
        return self.dense(encoded[:, 0])


class Trunk(nn.Module):
    """Embeddings, encoder and pooler."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)
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
        """Encode texts with their images. Without `sampling_state` and `positions`, all cells are read, in order.

        Args:
            input_ids, token_type_ids, attention_mask: int64 (B, L); the mask is 1 for tokens, 0 for padding.
            images: (G, 3, H, W), uint8, or floats that are normalised already.
            sampling_state: int64 (3,), see `draw_cells`; has the model read `config.sub_feat_num` cells of each image.
            positions: int64 (B, S), numbers of the cells to read, row by row from 0, instead of drawing.
            grid_of: int64 (B,), the image of each text; None where each has its own, and G = B.

        Returns:
            encoded text (B, L, h), encoded visual tokens (B, S, h), pooled (B, h), feature grid (G, C, rows, columns).
        """
        text = self.embeddings(input_ids, token_type_ids)
        grid = self.encoder.grid(images)
        visual_tokens = self.encoder.visual_tokens(grid, sampling_state, positions, grid_of)
        language, vision = self.encoder(text, visual_tokens, attention_mask)
        return language, vision, self.pooler(language), grid


class AnswerHead(nn.Module):
    """Pooled vector (B, h) to answer scores (B, answers)."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        width = config.hidden_size * 2
        self.logit_fc = nn.Sequential(
            nn.Linear(config.hidden_size, width),
            nn.GELU(),
            nn.LayerNorm(width, eps=1e-12),
            nn.Linear(width, config.num_labels),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        return self.logit_fc(pooled)


class Transform(Activated):
    """Linear, activation, LayerNorm: (..., h) -> (..., h)."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__(config.hidden_size, config)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.LayerNorm(super().forward(hidden))


class MaskedLMHead(nn.Module):
    """Encoded text (B, L, h) to scores of words (B, L, V). The decoder is the word embeddings."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.transform = Transform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, encoded: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.transform(encoded), word_embeddings, self.bias)


class PretrainingHeads(nn.Module):
    """Masked words, and whether text and image belong together."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__()
        self.predictions = MaskedLMHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class ClipVilPreTrainedModel(PreTrainedModel):
    """What both models share."""

    config_class = ClipVilConfig
    base_model_prefix = "bert"


@dataclass
class PretrainingOutput(ModelOutput):
    """One forward pass; a score is a logit."""

    loss: Tensor | None = None  # the sum of the losses of the labels that are given
    language: Tensor | None = None  # (B, L, h)
    vision: Tensor | None = None  # (B, S, h)
    pooled: Tensor | None = None  # (B, h)
    grid: Tensor | None = None  # (G, C, rows, columns)
    lm_scores: Tensor | None = None  # (B, L, V)
    matched_scores: Tensor | None = None  # (B, 2): they don't belong together, they do
    answer_scores: Tensor | None = None  # (B, answers)


class ClipVilForPretraining(ClipVilPreTrainedModel):
    """CLIP-ViL with the heads of pre-training."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__(config)
        self.bert = Trunk(config)
        self.cls = PretrainingHeads(config)
        if config.has_answer_head:
            self.answer_head = AnswerHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor,
        masked_lm_labels: Tensor | None = None,
        matched_label: Tensor | None = None,
        ans: Tensor | None = None,
        sampling_state: Tensor | None = None,
        positions: Tensor | None = None,
        grid_of: Tensor | None = None,
    ) -> PretrainingOutput:
        """Scores, and the loss where there are labels; see Trunk.forward for the other inputs.

        Labels are int64 with -1 for "doesn't count": masked_lm_labels (B, L), matched_label (B), ans (B). A loss is the
        mean over the labels that count, and 0 where none does.
        """
        inputs = (input_ids, token_type_ids, attention_mask, images, sampling_state, positions, grid_of)
        language, vision, pooled, grid = self.bert(*inputs)
        lm_scores = self.cls.predictions(language, self.bert.embeddings.word_embeddings.weight)
        matched_scores = self.cls.seq_relationship(pooled)
        answer_scores = self.answer_head(pooled) if self.config.has_answer_head else None
        losses = [
            F.cross_entropy(scores.flatten(0, -2).float(), labels.flatten(), ignore_index=IGNORE, reduction="sum")
            / (labels != IGNORE).sum().clamp(min=1)
            for scores, labels in ((lm_scores, masked_lm_labels), (matched_scores, matched_label), (answer_scores, ans))
            if scores is not None and labels is not None
        ]
        loss = torch.stack(losses).sum() if losses else None
        return PretrainingOutput(loss, language, vision, pooled, grid, lm_scores, matched_scores, answer_scores)


@dataclass
class AnsweringOutput(ModelOutput):
    """One forward pass."""

    loss: Tensor | None = None
    answer_scores: Tensor | None = None  # (B, answers), logits in the order of config.id2label


class ClipVilForQuestionAnswering(ClipVilPreTrainedModel):
    """CLIP-ViL with an answer head."""

    def __init__(self, config: ClipVilConfig) -> None:
        super().__init__(config)
        self.bert = Trunk(config)
        self.answer_head = AnswerHead(config)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor,
        target: Tensor | None = None,
        sampling_state: Tensor | None = None,
        positions: Tensor | None = None,
        grid_of: Tensor | None = None,
    ) -> AnsweringOutput:
        """Scores of all answers, and the loss where there is a target; see Trunk.forward for the other inputs.

        Args:
            target: each answer's score from 0 to 1, fp32 (B, answers). The loss is the binary cross entropy, summed
                over answers and averaged over questions.
        """
        inputs = (input_ids, token_type_ids, attention_mask, images, sampling_state, positions, grid_of)
        answer_scores = self.answer_head(self.bert(*inputs)[2])
        loss = None
        if target is not None:
            loss = F.binary_cross_entropy_with_logits(answer_scores.float(), target) * target.shape[1]
        return AnsweringOutput(loss, answer_scores)
