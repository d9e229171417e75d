"""What a step is made of, counted: operations and bytes on the meta device, kernels and memory while it runs."""

import os
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from deepspeed.accelerator import get_accelerator
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from engine.model.activations import gpu_operators
from engine.model.pretraining import ClipVilForPretraining

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler's own log would stand among the results
ALLOCATIONS_ONLY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")


def is_kernel(function: Any) -> bool:
    """Whether an operator computes anything: views and fresh memory don't."""
    is_view = any(each.alias_info is not None and not each.alias_info.is_write for each in function._schema.returns)
    return not is_view and function._schema.name.split("::")[-1] not in ALLOCATIONS_ONLY


# Batch norm reads its features once for their statistics and once to normalise them, if it does both; its backward pass
# adds up gradients, of gradients and features, before it reads both once more. The former of ours is two operators.
READ_AGAIN = {"native_batch_norm": 1, "native_batch_norm_backward": 2, "normalise_backward": 2}


class Traffic(TorchDispatchMode):
    """Counts operators, and bytes as if each read its inputs and wrote its results once, batch norm apart."""

    def __init__(self) -> None:
        super().__init__()
        self.operators, self.bytes, self.convolution_bytes = 0, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if is_kernel(function):
            self.operators += 1
            if function is torch.ops.aten.clone.default and args[0].is_meta:
                return result  # the meta device lays results out as it likes, and copies where a device would not
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            size = sum(tensor.numel() * tensor.itemsize for tensor in tensors)
            self.bytes += size
            again = READ_AGAIN.get(function._schema.name.split("::")[-1], 0)
            self.bytes += again * args[0].nbytes if again else 0
            if "convolution" in function._schema.name:
                self.convolution_bytes += size
        return result


def flops(model: ClipVilForPretraining, inputs: dict[str, Any]) -> int:
    """Of forward and backward pass, matrix products and convolutions only; model and inputs on the meta device."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), gpu_operators(), counter:
        model(**inputs).loss.backward()
    return counter.get_total_flops()


def backbone_bytes(model: ClipVilForPretraining, images: Tensor) -> int:
    """Memory traffic of the backbone's forward and backward pass, at the least that its operators allow one by one.

    A kernel that reads its input twice, as batch norm may, moves more; one that fuses several operators moves less.
    """
    backbone = model.bert.encoder.visual_model.visual
    traffic = Traffic()
    with torch.device("meta"), traffic:
        grid = backbone(images.to(backbone.conv1.weight.dtype))
        grid.backward(torch.empty_like(grid))
    return traffic.bytes


def launches(step: Callable[[], object], device: str) -> int:
    """Kernels of a step on a GPU, copies and memory sets too; on a CPU, operators that would be kernels there."""
    if device == "cpu":
        with torch.compiler.set_stance("force_eager"), Traffic() as traffic:  # the compiler takes no such mode
            step()
        return traffic.operators
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiler:
        step()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


# Operators whose result the host has to know, be it a value or a size. So it does where a mask is an index.
READING = {f"aten::{name}" for name in ("_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2")}
INDEXING = {"aten::index", "aten::index_put", "aten::index_put_"}


class HostWaits(TorchDispatchMode):
    """Notes where the host waits for a GPU; on a CPU, where it would.

    That is where it reads a number or a size (`item`, `bool`, `tolist`, a mask as an index), copies to the host, copies
    to the device and waits for that, or synchronises. What lies on the host already costs nothing to read: what was
    made there (a batch of the loader, say), what `cpu` gives, and what is computed from that alone.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()
        self.on_host = WeakTensorKeyDictionary()
        self.patches = ExitStack()

    def note(self, kind: str) -> None:
        ours = ("/engine/", "/kernels/", "/deepspeed/", "/torch/optim/")
        frames = [f for f in traceback.extract_stack() if any(part in f.filename for part in ours)]
        frame = next((f for f in reversed(frames) if f.filename != __file__), None)
        place = f"{'/'.join(Path(frame.filename).parts[-3:])}, {frame.name}" if frame else "elsewhere"
        self.places[f"{place}: {kind}"] += 1

    def __enter__(self) -> "HostWaits":
        accelerator = type(get_accelerator())
        cpu, tolist, tensor, synchronize = Tensor.cpu, Tensor.tolist, torch.tensor, accelerator.synchronize
        to, from_numpy, empty = Tensor.to, torch.from_numpy, torch.empty

        def on_host(given: Tensor) -> Tensor:
            self.note("cpu")
            result = cpu(given).clone()
            self.on_host[result] = True
            return result

        def read(given: Tensor) -> Any:
            if given not in self.on_host:
                self.note("tolist")
            return tolist(given)

        def made(*arguments: Any, **options: Any) -> Tensor:
            result = tensor(*arguments, **options)
            if options.get("device") is None:
                self.on_host[result] = True
            else:
                self.note("torch.tensor(device=...)")
            return result

        def moved(given: Tensor, *arguments: Any, **options: Any) -> Tensor:
            result: Tensor = to(given, *arguments, **options)
            target = options.get("device", arguments[0] if arguments else None)
            if given not in self.on_host or not isinstance(target, torch.device | str):
                return result
            if not options.get("non_blocking"):
                self.note("to")
            result = result.clone()  # on a CPU it is the same tensor, else
            del self.on_host[result]
            return result

        def made_from(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def make(*arguments: Any, **options: Any) -> Tensor:
                result = function(*arguments, **options)
                if options.get("device") is None:
                    self.on_host[result] = True
                return result

            return make

        def waited(*arguments: Any, **options: Any) -> Any:
            self.note("synchronize")
            return synchronize(*arguments, **options)

        for owner, name, function in (
            (Tensor, "cpu", on_host),
            (Tensor, "tolist", read),
            (Tensor, "to", moved),
            (torch, "tensor", made),
            (torch, "from_numpy", made_from(from_numpy)),
            (torch, "empty", made_from(empty)),
            (accelerator, "synchronize", waited),
        ):
            self.patches.enter_context(patch.object(owner, name, function))
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.patches.close()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        from_host = bool(inputs) and all(each in self.on_host for each in inputs)
        name = function._schema.name
        by_mask = name in INDEXING and any(each.dtype == torch.bool for each in inputs[1:])
        if (name in READING or by_mask) and not from_host:
            self.note("item, bool or float" if name.endswith("dense") else name.removeprefix("aten::"))
        for leaf in tree_leaves(result):
            if from_host and isinstance(leaf, Tensor):
                self.on_host[leaf] = True
        return result


def host_waits(step: Callable[[], object], device: str) -> dict[str, int]:
    """Places in a step where the host waits for the GPU, with how often; on a CPU, where it would."""
    if device == "cpu":
        with HostWaits() as waits:
            step()
        return dict(waits.places)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    places = [f"{'/'.join(Path(each.filename).parts[-3:])}, line {each.lineno}" for each in caught]
    return dict(Counter(place for place, each in zip(places, caught, strict=True) if "synchroniz" in str(each.message)))


class Memory:
    """What is allocated in a block of code, by the allocator's own account: `kept` at its end, and the `peak` in it."""

    kept: int
    peak: int

    def __init__(self, device: str) -> None:
        self.on_gpu = device == "cuda"

    def __enter__(self) -> "Memory":
        if self.on_gpu:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()
        else:
            self.profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True)
            self.profiler.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()
            self.kept = torch.cuda.memory_allocated() - self.before
            self.peak = torch.cuda.max_memory_allocated() - self.before
            return
        self.profiler.__exit__(*error)
        self.kept = self.peak = 0
        events = self.profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            self.kept += event.nbytes()  # type: ignore[union-attr]
            self.peak = max(self.peak, self.kept)


COLLECTIVES = {
    "allreduce_": "all_reduce",
    "reduce_": "reduce",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "broadcast_": "broadcast",
}


class Collectives(TorchDispatchMode):
    """Notes the bytes of each message that a rank takes part in, by collective, where PyTorch hands it to the backend.

    So it sees those of torch.distributed as well as DeepSpeed's, in any process group. A message is what is reduced or
    sent as a whole, such as all that has been gathered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.messages: dict[str, list[int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.namespace == "c10d":
            name = function._schema.name.split("::")[-1]
            sizes = [sum(leaf.nbytes for leaf in tree_leaves(each) if isinstance(leaf, Tensor)) for each in args]
            self.messages.setdefault(COLLECTIVES.get(name, name), []).append(max(sizes))
        return function(*args, **(kwargs or {}))
