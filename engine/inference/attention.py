"""Where words look: the attention that the last layer of BERT pays, which its fused operator doesn't give away.

    softmax(q k^T / sqrt(d) + bias)        Vaswani et al., "Attention Is All You Need", 2017, equation 1

It is a share of a word's attention. What it says of the reasons of an answer is limited: Jain and Wallace, "Attention
is not Explanation", 2019.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def projections(layer: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Queries and keys of one of BERT's layers as they are computed within the context: (B, T, h) each, by name."""
    seen: dict[str, Tensor] = {}
    attention = layer.get_submodule("attention.self")
    hooks = [
        attention.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.__setitem__(name, output)
        )
        for name in ("query", "key")
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def attention_to_cells(seen: dict[str, Tensor], heads: int, attention_mask: Tensor) -> Tensor:
    """The share of each word's attention that each cell gets, the mean over heads: fp32 (B, L, S).

    The rest goes to words, so that a row sums up to less than 1.

    Args:
        attention_mask: (B, L) of the text, 1 for tokens.
    """
    query, key = (seen[name].float().unflatten(-1, (heads, -1)).transpose(1, 2) for name in ("query", "key"))
    words = attention_mask.shape[1]
    scores = query[:, :, :words] @ key.transpose(2, 3) / query.shape[-1] ** 0.5  # (B, heads, L, L + S)
    scores[..., :words].masked_fill_(attention_mask[:, None, None] == 0, float("-inf"))
    return torch.softmax(scores, dim=-1)[..., words:].mean(1)
