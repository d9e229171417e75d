"""Who this process is among all of them."""

import os
from dataclasses import dataclass

from engine.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among all of them, as `deepspeed` or `torchrun` says; alone without a launcher."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Raises UserError if the environment speaks of several ranks, and not of this one."""
        if "RANK" not in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
            raise UserError(
                f"WORLD_SIZE is {os.environ['WORLD_SIZE']} in the environment, but RANK isn't set, so this program "
                "would wait for other ranks; start with `deepspeed` or `torchrun`, or unset WORLD_SIZE"
            )
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        local = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or world_size  # torchrun, deepspeed
        return cls(int(os.environ.get("RANK", 0)), world_size, int(os.environ.get("LOCAL_RANK", 0)), int(local))

    @staticmethod
    def check_nodes(nodes: int | None) -> None:
        """Raises UserError if a launcher has started another number of machines than --nodes says."""
        started = int(os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("CROSS_SIZE") or 1)  # torchrun, deepspeed
        if nodes not in (None, started):
            raise UserError(
                f"--nodes {nodes}, but the launcher has started {started}; name the machines to it, in DeepSpeed's "
                "--hostfile or by torchrun's --nnodes, and leave the flag out"
            )
