"""Shared by the tests of models, of tasks and of their training."""

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest
import torch
from deepspeed import comm
from transformers import BertConfig

from engine.distributed.joining import join
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


@pytest.fixture
def joined() -> Iterator[None]:
    """As a process without a launcher, which says in the environment that it is alone."""
    with patch.dict(os.environ):
        join()
        yield
    comm.destroy_process_group()  # and with it what DeepSpeed remembers of it
