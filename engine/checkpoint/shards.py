"""DeepSpeed's shards of ZeRO stage 1 or 2, read one parameter at a time, whatever number of ranks wrote them.

    EpochNN/mp_rank_00_model_states.pt                             weights in the training's dtype, buffers, schedule
    EpochNN/[bf16_]zero_pp_rank_R_mp_rank_00_optim_states.pt       rank R's part of the fp32 weights and moments

A group's parameters lie behind each other in one flat vector, of which each rank has an equal part. A parameter may
cross from one part to the next; each file says which stretch of which parameter it holds.
"""

import re
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from torch import Tensor

from engine.checkpoint.weights import State, unreadable
from engine.errors import UserError

MODEL_STATES = "mp_rank_00_model_states.pt"
OPTIM_STATES = "*zero_pp_rank_*_mp_rank_00_optim_states.pt"


def stage_by_name(owner: Any, name: str) -> ZeroStageEnum:
    """What Python 3.11.2 writes for a member of an enumeration: getattr(class, name). Nothing else is got."""
    if owner is not ZeroStageEnum:
        raise TypeError(f"getattr of {owner!r}")
    return ZeroStageEnum[name]


# Of DeepSpeed's own classes a shard holds these; no other is ever built.
CLASSES = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address, (stage_by_name, "builtins.getattr")]


def load_shard(path: Path) -> dict[str, Any]:
    """One file, its tensors still on the disk until they are used.

    Raises:
        UserError: if it is missing or damaged, or holds anything but tensors and DeepSpeed's own few classes.
    """
    try:
        with torch.serialization.safe_globals(CLASSES):
            shard = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds
        raise unreadable(path, error) from None
    if not isinstance(shard, dict):
        raise UserError(f"{path} is no shard of DeepSpeed's")
    return shard


class Shards:
    """A checkpoint folder of any number of ranks as whole tensors."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = load_shard(folder / MODEL_STATES)
        ranks = {int(re.findall(r"pp_rank_(\d+)", path.name)[0]): path for path in folder.glob(OPTIM_STATES)}
        if sorted(ranks) != list(range(self.model.get("dp_world_size", 0))):
            raise UserError(
                f"{folder} has the optimiser's shards of ranks {sorted(ranks)}, but {self.model.get('dp_world_size')} "
                "ranks wrote it; copy it again, whole"
            )
        self.parts = [load_shard(ranks[rank])["optimizer_state_dict"] for rank in sorted(ranks)]
        if any("param_slice_mappings" not in part for part in self.parts):
            raise UserError(f"{folder} is not of ZeRO stage 1 or 2")
        self.shapes = {name: shape for group in self.model["param_shapes"] for name, shape in group.items()}
        self.group_of = {
            name: group
            for part in self.parts
            for group, mapping in enumerate(part["param_slice_mappings"])
            for name in mapping
        }

    def _gather(self, name: str, key: str | None) -> Tensor:
        group = self.group_of[name]
        pieces = []
        for part in self.parts:
            address = part["param_slice_mappings"][group].get(name)
            if address is not None:
                flat = self._flat(part, group, key)
                pieces.append(flat.narrow(0, address.start, address.numel))
        return torch.cat(pieces).view(self.shapes[name])

    @staticmethod
    def _flat(part: dict[str, Any], group: int, key: str | None) -> Tensor:
        if key is None:
            return part["single_partition_of_fp32_groups"][group]
        return part["base_optimizer_state"]["state"][group][key]

    def weights(self) -> State:
        """fp32 weights and all buffers."""
        buffers = {name: self.model["module"][name].clone() for name in self.model["buffer_names"]}
        return {**{name: self._gather(name, None) for name in self.group_of}, **buffers}

    def moment_keys(self, name: str) -> set[str]:
        """What its optimiser remembers of a parameter, as exp_avg."""
        return {key for key, value in self._state(name).items() if isinstance(value, Tensor) and value.dim()}

    def moments(self, name: str) -> State:
        """The same as tensors of the parameter's shape."""
        return {key: self._gather(name, key) for key in self.moment_keys(name)}

    def steps(self, name: str) -> float | None:
        """Updates that the parameter's optimiser counted, where it counts."""
        state = self._state(name)
        return float(state["step"]) if "step" in state else None

    def _state(self, name: str) -> dict[str, Any]:
        group = self.group_of.get(name)
        return dict(self.parts[0]["base_optimizer_state"]["state"].get(group, {}))

    @property
    def loss_scaler(self) -> Any:
        return self.parts[0]["loss_scaler"]
