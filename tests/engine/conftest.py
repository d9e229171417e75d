"""Shared by the tests of models and of tasks."""

import pytest
import torch
from transformers import BertConfig

from engine.model.clip_resnet import SHAPES
from engine.model.encoder import VisualShape
from engine.model.question_answering import ClipVilForQuestionAnswering


@pytest.fixture
def answering_model() -> ClipVilForQuestionAnswering:
    """Tiny, with five answers and random weights."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return ClipVilForQuestionAnswering(config, VisualShape(SHAPES["tiny"], sub_feat_num=None), num_answers=5)
