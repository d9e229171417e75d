"""Draws that a run can't be repeated or resumed without, compared with recorded ones: another version may draw others.

engine/configuration/bert.py does the same for words.
"""

import platform
import random

import numpy as np
import torch

from engine.data.sampler import TrainingSampler, Weights
from engine.errors import other_numbers
from kernels.backend import triton, use_triton
from kernels.sampling import sample_cells

SEED = 9595
SENTENCES, ORDER = 8, [6, 2, 7, 0, 3, 1, 4, 5]
SAMPLE = [0.48462416062862623, 6738, 8]
# Of an image of 384 x 640 pixels. A training on such images needs the kernel that this compiles on a GPU anyway.
CELLS, DRAWN = 240, [43, 56, 66, 110, 116, 152, 210, 215]


def check_draws(cells_on: torch.device | None) -> None:
    """Refuse libraries that draw otherwise than those that the recorded draws are of.

    Args:
        cells_on: where the run draws cells of images; None if it reads all of them.

    Raises:
        UserError: naming the library that draws otherwise.
    """
    whole = Weights((1.0,), np.zeros(SENTENCES, np.uint16))
    order = TrainingSampler(np.zeros(SENTENCES, np.uint8), 1, seed=SEED, weights=whole).order().tolist()
    if order != ORDER:
        raise other_numbers(f"numpy {np.__version__}", f"an epoch's order of {SENTENCES} sentences", order, ORDER)
    draws = random.Random(f"{SEED}/mscoco_train/0/0")
    sample = [draws.random(), draws.randrange(30522), draws.choices(range(9), weights=range(9))[0]]
    if sample != SAMPLE:
        raise other_numbers(f"Python {platform.python_version()}", "the draws of a sample", sample, SAMPLE)
    if cells_on is not None:
        cells = sample_cells(torch.tensor([SEED, 3, 11], device=cells_on), 1, CELLS, len(DRAWN))[0][0].tolist()
        if cells != DRAWN:
            runs = f"triton {triton.__version__}" if use_triton(cells_on.type) else f"torch {torch.__version__}"
            raise other_numbers(runs, f"the drawn cells of {CELLS}", cells, DRAWN)
