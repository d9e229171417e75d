"""Pre-training: the trunk under three heads, and the plain sum of their losses."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform

from engine.model.encoder import Trunk, VisualShape, initialise_bert_weights

IGNORE = -1  # the label that no loss and no metric counts


class MaskedLMHead(nn.Module):
    """Encoded text to vocabulary scores. The decoder is the word embedding matrix, passed in, never copied."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, encoded: Tensor, word_embeddings: Tensor) -> Tensor:  # (B, L, h), (V, h) -> (B, L, V)
        return F.linear(self.transform(encoded), word_embeddings, self.bias)


class PretrainingHeads(nn.Module):
    """Masked words, and whether caption and image belong together."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.predictions = MaskedLMHead(config)
        self.seq_relationship = nn.Linear(config.hidden_size, 2)


class AnswerHead(nn.Module):
    """Pooled vector (B, h) to answer scores (B, answers)."""

    def __init__(self, hidden_size: int, num_answers: int) -> None:
        super().__init__()
        self.logit_fc = nn.Sequential(
            nn.Linear(hidden_size, hidden_size * 2),
            nn.GELU(),
            nn.LayerNorm(hidden_size * 2, eps=1e-12),
            nn.Linear(hidden_size * 2, num_answers),
        )

    def forward(self, pooled: Tensor) -> Tensor:
        return self.logit_fc(pooled)


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy over the labels that count; 0 where none does (the original gives NaN there)."""
    total = F.cross_entropy(scores.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total / (labels != IGNORE).sum().clamp(min=1)


@dataclass
class PretrainingOutput:
    """One forward pass. `metrics` holds (sum, count) pairs on the device, to be added over batches and ranks."""

    loss: Tensor
    losses: dict[str, Tensor]
    language: Tensor  # (B, L, h)
    vision: Tensor  # (B, S, h)
    pooled: Tensor  # (B, h)
    grid: Tensor  # (B, C, rows, columns)
    lm_scores: Tensor  # (B, L, V)
    matched_scores: Tensor  # (B, 2)
    answer_scores: Tensor | None  # (B, answers)
    metrics: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)


class ClipVilForPretraining(nn.Module):
    """CLIP-ViL with the heads of pre-training.

    Args:
        config: the BERT's configuration.
        visual: backbone and sub-sampling.
        num_answers: size of the answer table; None builds no answer head (a parameter that no loss reaches
            would stall ZeRO-2).
    """

    def __init__(self, config: BertConfig, visual: VisualShape, num_answers: int | None = None) -> None:
        super().__init__()
        self.bert = Trunk(config, visual)
        self.cls = PretrainingHeads(config)
        if num_answers is not None:
            self.answer_head = AnswerHead(config.hidden_size, num_answers)
        initialise_bert_weights(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor,
        masked_lm_labels: Tensor,
        matched_label: Tensor,
        ans: Tensor,
        sampling_state: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> PretrainingOutput:
        """Losses and scores of a batch; see Trunk.forward for the inputs.

        Labels are int64 with -1 for "doesn't count": masked_lm_labels (B, L), matched_label (B), ans (B).
        """
        language, vision, pooled, grid = self.bert(
            input_ids, token_type_ids, attention_mask, images, sampling_state, positions
        )
        lm_scores = self.cls.predictions(language, self.bert.embeddings.word_embeddings.weight)
        matched_scores = self.cls.seq_relationship(pooled)
        scored = {
            "mask_lm": (lm_scores.flatten(0, 1), masked_lm_labels.flatten()),
            "matched": (matched_scores, matched_label),
        }
        answer_scores = None
        if hasattr(self, "answer_head"):
            answer_scores = self.answer_head(pooled)
            scored["qa"] = (answer_scores, ans)

        losses, metrics = {}, {}
        for name, (scores, labels) in scored.items():
            losses[name] = cross_entropy(scores, labels)
            with torch.no_grad():
                count = (labels != IGNORE).sum()
                metrics[f"{name}_loss"] = (losses[name] * count, count)
                metrics[f"{name}_accuracy"] = ((scores.argmax(1) == labels).sum(), count)
        loss = torch.stack(list(losses.values())).sum()
        return PretrainingOutput(
            loss, losses, language, vision, pooled, grid, lm_scores, matched_scores, answer_scores, metrics
        )
