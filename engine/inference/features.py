"""What a model makes of images and sentences before any head, for programs that go on from there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import BertConfig

from engine.checkpoint.description import ModelDescription
from engine.model.clip_resnet import grid_side


class Column(NamedTuple):
    """What one of the features is for a single pair."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def row_bytes(self) -> int:
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Features:
    """Features of N pairs of an image and a sentence, on the CPU. Those that aren't int64 have the model's dtype.

    T word pieces, padded    K cells that were read    H hidden size    R cells of an image    C the backbone's channels

    The image is divided into rows and columns of cells, which have numbers: row * columns + column. Landscapes and
    portraits have as many, in grids that lie on their sides to each other.
    """

    input_ids: Tensor  # int64 (N, T): the word pieces, with [CLS] in front, [SEP] at the end and [PAD] behind it
    attention_mask: Tensor  # int64 (N, T): 1 for word pieces, 0 for padding
    language: Tensor  # (N, T, H): BERT's output for the word pieces; that of padding means nothing
    vision: Tensor  # (N, K, H): BERT's output for the cells that were read
    cells: Tensor  # int64 (N, K): which ones these are, ascending
    pooled: Tensor  # (N, H): the pair as a whole, which answers are chosen from
    grid: Tensor  # (N, R, C): the backbone's output for every cell, before BERT and without the sentence
    grid_shape: Tensor  # int64 (N, 2): rows and columns of cells

    def __len__(self) -> int:
        return len(self.pooled)

    def grid_of(self, number: int) -> Tensor:
        """The backbone's output for one of the images, as it lies in the image: (rows, columns, C)."""
        rows, columns = self.grid_shape[number].tolist()
        return self.grid[number].view(rows, columns, -1)

    def tensors(self) -> dict[str, Tensor]:
        """By their names."""
        return {name: getattr(self, name) for name in NAMES}

    def put(self, rows: Sequence[int], others: "Features") -> None:
        """Write the features of some pairs into these rows."""
        for name, tensor in self.tensors().items():
            tensor[list(rows)] = getattr(others, name)

    @classmethod
    def empty(cls, columns: Mapping[str, Column], number: int) -> "Features":
        """Room for so many pairs."""
        return cls(**{name: torch.empty(number, *shape, dtype=dtype) for name, (dtype, shape) in columns.items()})


NAMES = tuple(field.name for field in fields(Features))


def columns_of(description: ModelDescription, dtype: torch.dtype, *, sub_sampling: bool) -> dict[str, Column]:
    """What each of a model's features is for a single pair, by name.

    Args:
        dtype: of the model's weights.
        sub_sampling: whether it draws cells, if it was trained so.
    """
    reads, visual = description.preprocessing, description.visual
    hidden, words = BertConfig.from_dict(description.bert).hidden_size, reads.max_seq_length
    cells = grid_side(reads.image_size_min) * grid_side(reads.image_size_max)
    read = visual.sub_feat_num if visual.sub_feat_num and sub_sampling else cells
    whole = torch.int64
    return {
        "input_ids": Column(whole, (words,)),
        "attention_mask": Column(whole, (words,)),
        "language": Column(dtype, (words, hidden)),
        "vision": Column(dtype, (read, hidden)),
        "cells": Column(whole, (read,)),
        "pooled": Column(dtype, (hidden,)),
        "grid": Column(dtype, (cells, visual.backbone.channels)),
        "grid_shape": Column(whole, (2,)),
    }
