"""How much GPU memory a training takes, counted on torch's meta device: without a GPU, memory or computation.

    python -m engine.benchmark.memory

prints what autograd keeps between forward and backward pass, with and without activation checkpointing, and what the
parameters take together with their gradients and the optimisers' state.
"""

import weakref
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from engine.model.clip_resnet import SHAPES, Bottleneck
from engine.model.encoder import Trunk, VisualShape
from engine.optim.hybrid import BACKBONE

GB = 1e9
TOKENS, HEIGHT, WIDTH = 20, 384, 640
DEFAULT_BUCKET_SIZE = 500_000_000  # elements; DeepSpeed's default of reduce_bucket_size

NOTES = """\
Computed, not measured on a GPU. GB are 10^9 bytes. BERT base without heads, {} tokens, all {} cells of {} x {} images,
fp16 parameters, ZeRO-2 on one GPU, AdamW for the transformer, SGD without momentum for the backbone.

all        activations that autograd keeps
inputs     those that it keeps with checkpointing
block      what the largest block adds at most, with checkpointing, while it is run again
state      weights and gradients in fp16, weights in fp32, AdamW's moments in fp32

Not counted: gradients of activations, buffers of DeepSpeed and cuDNN, fragments, and the GPU's own context."""


def activation_bytes(model: nn.Module, inputs: Mapping[str, Any]) -> int:
    """Bytes that autograd keeps for the backward pass of model(**inputs), beside parameters, buffers and inputs."""
    return sum(_growth(model, inputs, ()))


def largest_block_bytes(model: nn.Module, inputs: Mapping[str, Any], kinds: tuple[type[nn.Module], ...]) -> int:
    """Of activation_bytes, those of the module of these kinds that keeps most, or of what runs between two of them."""
    return max(_growth(model, inputs, kinds))


def _growth(model: nn.Module, inputs: Mapping[str, Any], kinds: tuple[type[nn.Module], ...]) -> list[int]:
    """Bytes kept in each part of a forward pass; a part ends where a module of these kinds begins or ends."""
    given = [*model.parameters(), *model.buffers(), *(value for value in inputs.values() if isinstance(value, Tensor))]
    known = {tensor.untyped_storage()._cdata for tensor in given}
    # Views share a storage. The storages are held, so that none of their addresses is used twice.
    kept: dict[int, torch.UntypedStorage] = {}
    growth: list[int] = []

    def keep(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in known:
            kept[storage._cdata] = storage

    def end_part(*_: Any) -> None:
        growth.append(sum(storage.nbytes() for storage in kept.values()) - sum(growth))

    hooks = []
    for module in model.modules():
        if isinstance(module, kinds):
            hooks += [module.register_forward_pre_hook(end_part), module.register_forward_hook(end_part)]
    try:
        with saved_tensors_hooks(keep, lambda nothing: nothing):  # no backward pass will ask for them
            model(**inputs)
        end_part()
    finally:
        for hook in hooks:
            hook.remove()
    return growth


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, dropout_p: float, **_: Any) -> Tensor:
    bias = attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
    return torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True, dropout_p)[0]


def _dropout(tensor: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    return torch.native_dropout(tensor, p, training)[0]


class GpuOperators(TorchFunctionMode):
    """On the meta device, the operators that a GPU would run: attention that keeps no weights, dropout a byte mask."""

    operators: Mapping[Any, Callable[..., Tensor]] = {F.scaled_dot_product_attention: _attention, F.dropout: _dropout}

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.operators.get(function, function)(*args, **(kwargs or {}))


class Living(TorchDispatchMode):
    """Bytes of all storages that came into being under it and still live, and the most that lived at once."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.bytes = self.peak = 0
        self.watched = {tensor.untyped_storage()._cdata for tensor in known}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address, size = storage._cdata, storage.nbytes()
        if address not in self.watched:
            self.watched.add(address)
            weakref.finalize(storage, self._forget, address, size)
            self.bytes += size
            self.peak = max(self.peak, self.bytes)

    def _forget(self, address: int, size: int) -> None:
        self.watched.discard(address)
        self.bytes -= size


def pass_bytes(model: nn.Module, inputs: Mapping[str, Any], *, on_gpu: bool = True) -> int:
    """The most bytes that live at once in a forward and backward pass of model(**inputs).loss, on the meta device.

    Beside parameters, buffers and inputs. A parameter's gradient counts until it is there: ZeRO takes it then.
    """
    given = [*model.parameters(), *model.buffers(), *(value for value in inputs.values() if isinstance(value, Tensor))]
    living = Living(given)

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in model.parameters()]
    try:
        with torch.device("meta"), GpuOperators() if on_gpu else nullcontext(), living:
            model(**inputs).loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return living.peak


def training_bytes(
    model: nn.Module, inputs: Mapping[str, Any], settings: Mapping[str, Any], *, on_gpu: bool = True
) -> dict[str, int]:
    """What a training on one device takes at its peak, and the parts of it, in bytes.

    Args:
        model: a model for pre-training or fine-tuning on the meta device, its parameters in the training's dtype.
        settings: DeepSpeed's, ZeRO-2, with fused optimisers.

    Returns:
        state: weights, fp32 weights, AdamW's moments, buffers. buckets: ZeRO's, for gradients. passes: pass_bytes.
        peak: the state, the buckets, and the passes or, where these are small, two copies of all gradients behind them.

    Not counted: cuDNN's work space, fragments, and the device's own context.
    """
    parameters = dict(model.named_parameters())
    weights = sum(p.nbytes for p in parameters.values())
    fp32 = sum(p.numel() * (4 if BACKBONE in name else 12) for name, p in parameters.items())
    state = weights + fp32 + sum(buffer.nbytes for buffer in model.buffers())
    zero = settings["zero_optimization"]
    itemsize = next(iter(parameters.values())).itemsize
    number = 2 if zero.get("overlap_comm") else 1
    buckets = number * itemsize * int(zero.get("reduce_bucket_size", DEFAULT_BUCKET_SIZE))
    passes = pass_bytes(model, inputs, on_gpu=on_gpu)
    return {
        "state": state,
        "buckets": buckets,
        "passes": passes,
        "peak": state + buckets + max(passes, 2 * weights),
    }


def main() -> None:
    print(NOTES.format(TOKENS, HEIGHT // 32 * (WIDTH // 32), HEIGHT, WIDTH))
    print(f"\n{'backbone':9}{'micro-batch':>12}{'all':>8}{'inputs':>8}{'block':>8}{'state':>8}")
    for name in ("RN50", "RN50x4"):
        with torch.device("meta"):
            model = Trunk(BertConfig(), VisualShape(SHAPES[name], sub_feat_num=None)).half()
        state = sum(p.numel() * (8 if BACKBONE in path else 16) for path, p in model.named_parameters())
        for batch in (1, 8):
            with torch.device("meta"), GpuOperators():
                ids = torch.zeros(batch, TOKENS, dtype=torch.int64)
                images = torch.empty(batch, 3, HEIGHT, WIDTH, dtype=torch.uint8)
                inputs = {"input_ids": ids, "token_type_ids": ids, "attention_mask": ids, "images": images}
                model.encoder.activation_checkpointing = "none"
                everything = activation_bytes(model, inputs)
                block = largest_block_bytes(model, inputs, (Bottleneck, BertLayer))
                model.encoder.activation_checkpointing = "all"
                only_inputs = activation_bytes(model, inputs)
            row = "".join(f"{bytes / GB:8.2f}" for bytes in (everything, only_inputs, block, state))
            print(f"{name:9}{batch:12}{row}")


if __name__ == "__main__":
    main()
