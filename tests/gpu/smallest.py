"""Every kernel once, on the smallest shapes that reach all of its branches: what compute-sanitizer watches.

Each result is compared with the twin's, as the benchmark does before it times anything.

    compute-sanitizer --error-exitcode 1 python -m tests.gpu.smallest
"""

import itertools
import os

import torch

from kernels.benchmark import batch_norm, grid_subsample
from kernels.benchmark.shapes import Implementation, Shape
from kernels.grid_subsample import grid_subsample as subsample


def main() -> None:
    on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
    device = "cuda" if on_gpu else "cpu"
    count = 0
    for layout, dtype, samples in itertools.product(("nchw", "channels_last"), ("fp16", "bf16", "fp32"), (7, 15)):
        inputs = grid_subsample.Inputs(Shape("RN50", layout, dtype, 2, 3, 5, samples), device, seed=1)
        grid_subsample.check(Implementation(grid_subsample.ours), inputs)
        # Given positions that repeat a cell are chained, which drawn ones never are.
        repeated = torch.tensor([[4, 4, 1, 0, 4], [2, 3, 3, 2, 14]], device=device)
        tokens, _ = subsample(*inputs.leaves, None, 5, positions=repeated)
        tokens.sum().backward()
        shared = grid_subsample.Inputs(Shape("RN50", layout, dtype, 6, 3, 5, samples, 3), device, seed=1)
        grid_subsample.check(Implementation(grid_subsample.ours), shared)
        count += 3
    # More pixels than a program's stretch, and channels that no tile divides.
    for dtype, shortcut in itertools.product((torch.float16, torch.bfloat16, torch.float32), (False, True)):
        norm = batch_norm.Inputs(batch_norm.Shape("smallest", 72, 14, 20, shortcut), 2, dtype, device, seed=1)
        batch_norm.check(Implementation(batch_norm.ours), norm)
        count += 1
    if on_gpu:
        torch.cuda.synchronize()
    print(f"{count} calls of the kernels on {device}, all as the twins'")


if __name__ == "__main__":
    main()
