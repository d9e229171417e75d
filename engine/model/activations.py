"""What a model takes in memory, counted on torch's meta device: without a GPU, memory or computation."""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def cast_parameters(model: nn.Module, dtype: torch.dtype) -> None:
    """As DeepSpeed casts a model: its parameters, and not the buffers."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)


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


@contextmanager
def gpu_operators() -> Iterator[None]:
    """On the meta device, the operators that a GPU would run: attention that keeps no weights, dropout a byte mask."""
    with patch.object(F, "scaled_dot_product_attention", _attention), patch.object(F, "dropout", _dropout):
        yield


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


def pass_bytes(
    model: nn.Module, inputs: Mapping[str, Any], *, on_gpu: bool = True, with_gradients: bool = False
) -> int:
    """The most bytes that live at once in a forward and backward pass of model(**inputs).loss, on the meta device.

    Beside parameters, buffers and inputs. A parameter's gradient counts to the end with `with_gradients`, and else
    until it is there.
    """
    given = [*model.parameters(), *model.buffers(), *(value for value in inputs.values() if isinstance(value, Tensor))]
    living = Living(given)

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    trained = [] if with_gradients else [parameter for parameter in model.parameters() if parameter.requires_grad]
    hooks = [parameter.register_post_accumulate_grad_hook(drop) for parameter in trained]
    try:
        with torch.device("meta"), gpu_operators() if on_gpu else nullcontext(), living:
            model(**inputs).loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad()
    return living.peak
