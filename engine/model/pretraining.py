"""Pre-training: the trunk under three heads, and the plain sum of their losses."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertPredictionHeadTransform
from transformers.utils import ModelOutput

from engine.model.encoder import Trunk, VisualShape, initialise_bert_weights
from engine.model.metrics import NO_METRICS, MetricSums

IGNORE = -1  # the label that no loss and no metric counts


class MaskedLMHead(nn.Module):
    """Encoded text to vocabulary scores. The decoder is the word embedding matrix, passed in, never copied."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__()
        self.transform = BertPredictionHeadTransform(config)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, encoded: Tensor, word_embeddings: Tensor) -> Tensor:  # (..., h), (V, h) -> (..., V)
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


def cross_entropy(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of the cross entropies of scores (N, classes) with the labels (N) that count, and their number; fp32."""
    total = F.cross_entropy(scores.float(), labels, ignore_index=IGNORE, reduction="sum")
    return total, (labels != IGNORE).sum(dtype=torch.float32)


@dataclass
class PretrainingOutput(ModelOutput):
    """One forward pass. K is the number of masked positions, if they are given, else B * L.

    DeepSpeed looks for tensors in it, as in any dict, to know when the backward pass begins.
    """

    loss: Tensor | None = None  # None without labels
    losses: dict[str, Tensor] | None = None
    language: Tensor | None = None  # (B, L, h)
    vision: Tensor | None = None  # (B, S, h)
    pooled: Tensor | None = None  # (B, h)
    grid: Tensor | None = None  # (G, C, rows, columns)
    lm_scores: Tensor | None = None  # (K, V), or (B, L, V)
    matched_scores: Tensor | None = None  # (B, 2)
    answer_scores: Tensor | None = None  # (B, answers)
    metrics: MetricSums | None = None


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
        self.answers_questions = num_answers is not None  # False leaves an answer head out of scores and losses
        if num_answers is not None:
            self.answer_head = AnswerHead(config.hidden_size, num_answers)
        initialise_bert_weights(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor,
        masked_lm_labels: Tensor | None = None,
        matched_label: Tensor | None = None,
        ans: Tensor | None = None,
        masked_positions: Tensor | None = None,
        sampling_state: Tensor | None = None,
        positions: Tensor | None = None,
        grid_of: Tensor | None = None,
    ) -> PretrainingOutput:
        """Scores of a batch, and the losses of what has labels; see Trunk.forward for the inputs.

        Labels are int64 with -1 for "doesn't count": masked_lm_labels (B, L), matched_label (B), ans (B). A loss is the
        mean over the labels that count, and 0 where none does (the original gives NaN there).

        Args:
            masked_positions: int64 (K,), places in B * L. If given, words are scored there and nowhere else, and
                masked_lm_labels is (K,).
        """
        language, vision, pooled, grid = self.bert(
            input_ids, token_type_ids, attention_mask, images, sampling_state, positions, grid_of
        )
        words = language
        if masked_positions is not None:
            words = language.flatten(0, 1).index_select(0, masked_positions)
        lm_scores = self.cls.predictions(words, self.bert.embeddings.word_embeddings.weight)
        matched_scores = self.cls.seq_relationship(pooled)
        scored = {
            "mask_lm": (lm_scores.flatten(0, -2), masked_lm_labels),
            "matched": (matched_scores, matched_label),
        }
        answer_scores = None
        if self.answers_questions:
            answer_scores = self.answer_head(pooled)
            scored["qa"] = (answer_scores, ans)

        losses: dict[str, Tensor] = {}
        metrics: dict[str, tuple[Tensor, Tensor]] = {}
        for name, (scores, labels) in scored.items():
            if labels is None:
                continue
            labels = labels.flatten()
            total, count = cross_entropy(scores, labels)
            losses[name] = total / count.clamp(min=1)
            right = (scores.argmax(1) == labels).sum(dtype=torch.float32)
            metrics |= {f"{name}_loss": (total, count), f"{name}_accuracy": (right, count)}
        loss = torch.stack(list(losses.values())).sum() if losses else None
        return PretrainingOutput(
            loss=loss,
            losses=losses,
            language=language,
            vision=vision,
            pooled=pooled,
            grid=grid,
            lm_scores=lm_scores,
            matched_scores=matched_scores,
            answer_scores=answer_scores,
            metrics=MetricSums.of(metrics) if metrics else NO_METRICS,
        )
