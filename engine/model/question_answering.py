"""Question answering: the trunk under the answer head, trained on soft scores."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig
from transformers.utils import ModelOutput

from engine.model.encoder import Trunk, VisualShape, initialise_bert_weights
from engine.model.metrics import NO_METRICS, MetricSums
from engine.model.pretraining import AnswerHead


@dataclass
class AnsweringOutput(ModelOutput):
    """One forward pass; a dict for DeepSpeed's sake, as that of pre-training is."""

    answer_scores: Tensor  # (B, answers), logits
    loss: Tensor | None = None
    bce: Tensor | None = None  # the mean over questions, and over answers where all count, before it is scaled
    metrics: MetricSums | None = None


class ClipVilForQuestionAnswering(nn.Module):
    """CLIP-ViL with an answer head; names are those of pre-training, so that its weights load.

    Args:
        config: the BERT's configuration.
        visual: backbone and sub-sampling.
        num_answers: how many answers there are to choose from.
    """

    def __init__(self, config: BertConfig, visual: VisualShape, num_answers: int) -> None:
        super().__init__()
        self.bert = Trunk(config, visual)
        self.answer_head = AnswerHead(config.hidden_size, num_answers)
        self.loss_scale: float = num_answers  # the loss is the mean over answers times this
        self.best_answer_only = False  # cross entropy of the answer with the highest score instead of all scores' BCE
        initialise_bert_weights(self, config.initializer_range)

    def forward(
        self,
        input_ids: Tensor,
        token_type_ids: Tensor,
        attention_mask: Tensor,
        images: Tensor,
        target: Tensor | None = None,
        is_labelled: Tensor | None = None,
        sampling_state: Tensor | None = None,
        positions: Tensor | None = None,
        grid_of: Tensor | None = None,
    ) -> AnsweringOutput:
        """Scores of all answers, and the loss where there is a target; see Trunk.forward for the other inputs.

        Args:
            target: each answer's score, fp32 (B, answers).
            is_labelled: which questions count, bool (B); None for all.
        """
        _, _, pooled, _ = self.bert(
            input_ids, token_type_ids, attention_mask, images, sampling_state, positions, grid_of
        )
        answer_scores = self.answer_head(pooled)
        if target is None:
            return AnsweringOutput(answer_scores, metrics=NO_METRICS)
        counts = torch.ones_like(target[:, 0]) if is_labelled is None else is_labelled.to(target.dtype)
        if self.best_answer_only:
            counts = counts * (target.amax(1) > 0)
            by_question = F.cross_entropy(answer_scores.float(), target.argmax(1), reduction="none")
        else:
            by_question = F.binary_cross_entropy_with_logits(answer_scores.float(), target, reduction="none").mean(1)
        total, count = (by_question * counts).sum(), counts.sum()
        bce = total / count.clamp(min=1)
        loss = bce * self.loss_scale
        with torch.no_grad():
            chosen = target.gather(1, answer_scores.argmax(1, keepdim=True))[:, 0]
            metrics = {"qa_loss": (loss * count, count), "qa_score": ((chosen * counts).sum(), count)}
        return AnsweringOutput(answer_scores=answer_scores, loss=loss, bce=bce, metrics=MetricSums.of(metrics))
