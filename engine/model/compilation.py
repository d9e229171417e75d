"""BERT's layers by torch.compile: bias and GELU, or dropout, residual and LayerNorm, as one kernel each."""

import copy
import time

import torch
import torch._inductor.config
from torch import nn
from torch._dynamo.utils import counters

from engine.model.encoder import Encoder


def compile_forward(module: nn.Module) -> None:
    """Compile a module for the sizes that it meets, without its hooks; its parameters keep their names."""
    module.forward = torch.compile(module.forward, dynamic=False, fullgraph=True)


def compile_layers(encoder: Encoder, batch: int, tokens: int) -> str:
    """Have the layers compiled for sequences (batch, tokens, h), and say in one line how that went.

    A copy of one of them is compiled and run here. The others share its code, so nothing is compiled in training, and
    an error leaves them as they are. Draws from the default generator.
    """
    torch._inductor.config.compile_threads = 1  # more would be processes, which nobody ends when a rank is killed
    layer = copy.deepcopy(encoder.layer[0]).train()
    weight = encoder.visn_fc.visn_fc.weight  # (h, C)
    hidden = torch.randn(batch, tokens, len(weight), dtype=weight.dtype, device=weight.device, requires_grad=True)
    words = torch.ones(batch, 1, dtype=torch.int64, device=weight.device)
    served, started = counters["inductor"]["fxgraph_cache_hit"], time.monotonic()
    try:
        compile_forward(layer)
        layer(hidden, encoder.attention_bias(words, hidden[:, 1:])).sum().backward()
    except Exception as error:  # the compiler has many
        cause = getattr(error, "inner_exception", error)
        reason = f"{type(cause).__name__}: {cause}".splitlines()[0]
        return f"warning: BERT's layers can't be compiled here, so they run as without --compile ({reason})"
    for each in encoder.layer:
        compile_forward(each)
    source = "from torch's cache" if counters["inductor"]["fxgraph_cache_hit"] > served else "anew"
    return f"BERT's layers compiled {source} in {time.monotonic() - started:.1f} s"
