"""Philox-4x32-10, the counter-based generator of Triton and CUDA, on torch int64 tensors.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. A word depends on its
counter and key alone, so a draw is the same on any device, rank and batch layout.
"""

import torch
from torch import Tensor

ROUNDS = 10
WORD = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)


def _multiply(word: Tensor, constant: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product; int64 wraps, and the mask drops the sign's copies."""
    product = word * constant
    return (product >> 32) & WORD, product & WORD


def philox(key: int | Tensor, counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Four 32-bit random words per counter.

    Args:
        key: 64-bit seed, an int or an int64 tensor that broadcasts with the counter.
        counter: four int64 tensors that broadcast together, each in 0 .. 2**32 - 1.

    Returns:
        Four int64 tensors of the broadcast shape, each in 0 .. 2**32 - 1.
    """
    c0, c1, c2, c3 = torch.broadcast_tensors(*counter)
    k0, k1 = key & WORD, (key >> 32) & WORD
    for _ in range(ROUNDS):
        high0, low0 = _multiply(c0, MULTIPLIERS[0])
        high1, low1 = _multiply(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + WEYL[0]) & WORD, (k1 + WEYL[1]) & WORD
    return c0, c1, c2, c3
