"""The tensors of a TorchScript archive, as OpenAI publishes CLIP, read without running what else is in it.

torch.jit.load compiles the archive's code and runs its modules' __setstate__. Here data.pkl is unpickled with three
functions that make tensors and inert stand-ins for modules; anything else that it names is refused.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._utils import _rebuild_parameter, _rebuild_tensor_v2

from engine.errors import UserError

# The storages' types have no other use than their dtype.
DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}
REBUILD = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): OrderedDict,
}


class Module:
    """Stands for an object of the archive's own classes; it only remembers its attributes."""

    def __setstate__(self, attributes: Any) -> None:
        self.attributes = attributes if isinstance(attributes, dict) else {}


class TensorsOnly(pickle.Unpickler):
    """Builds tensors and Modules."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, torch.UntypedStorage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if module.split(".")[0] == "__torch__":
            return Module
        if module == "torch.jit._pickle":  # lists of one type
            return lambda values: list(values)
        if (module, name) not in REBUILD:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return REBUILD[module, name]

    def persistent_load(self, identity: Any) -> torch.storage.TypedStorage:
        _, dtype, key, *_ = identity
        if key not in self.storages:
            data = bytearray(self.archive.read(f"{self.root}data/{key}"))
            self.storages[key] = (
                torch.frombuffer(data, dtype=torch.uint8).untyped_storage() if data else torch.UntypedStorage(0)
            )
        return torch.storage.TypedStorage(wrap_storage=self.storages[key], dtype=dtype, _internal=True)


def is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The state dict of a TorchScript module: parameters and buffers by their dotted names.

    Raises:
        UserError: if the archive is damaged, or names anything but tensors and its own modules.
    """
    try:
        with zipfile.ZipFile(path) as archive:  # reading compares the checksums
            [data] = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            root = TensorsOnly(archive, data.removesuffix("data.pkl")).load()
        return dict(_tensors(root, ""))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is no archive of tensors alone: it asks for {error}, which is never run") from None
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"{path} is a damaged TorchScript archive ({error}); download it again") from None


def _tensors(module: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in module.attributes.items():
        if isinstance(value, Tensor):
            yield prefix + name, value.detach()
        elif isinstance(value, Module):
            yield from _tensors(value, f"{prefix}{name}.")
