"""Who this process is among all of them."""

import os
from dataclasses import dataclass

from engine.distributed.schedulers import number_of, of_scheduler
from engine.errors import UserError


@dataclass(frozen=True)
class Ranks:
    """This process among all of them, as `deepspeed`, `torchrun`, `srun` or `mpirun` says; alone without these."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @classmethod
    def from_environment(cls) -> "Ranks":
        """Also completes the environment, where `srun` or `mpirun` started the ranks, for who reads it later.

        Raises:
            UserError: if the environment speaks of several ranks, and not of this one, or says what can't be.
        """
        environment = os.environ
        environment.update(of_scheduler(environment))
        world_size, rank = number_of(environment, "WORLD_SIZE", 1), number_of(environment, "RANK", 0)
        if "RANK" not in environment and world_size > 1:
            raise UserError(
                f"WORLD_SIZE is {world_size} in the environment, but RANK isn't set, so this program "
                "would wait for other ranks; start with `deepspeed` or `torchrun`, or unset WORLD_SIZE"
            )
        port = number_of(environment, "MASTER_PORT", 1)
        if not 0 < port < 65536:
            raise UserError(f"MASTER_PORT is {port} in the environment; set a port from 1 to 65535, or unset it")
        local_size_name = next((name for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE") if environment.get(name)), "")
        if world_size > 1 and not ("LOCAL_RANK" in environment and local_size_name):  # torchrun's name, or deepspeed's
            raise no_place()
        local_rank = number_of(environment, "LOCAL_RANK", 0)
        local_world_size = number_of(environment, local_size_name) if world_size > 1 else 1
        if not 0 <= rank < world_size or not 0 <= local_rank < local_world_size <= world_size:
            raise UserError(
                f"the environment says that this is rank {rank} of {world_size}, and on this machine {local_rank} of "
                f"{local_world_size}, counted from 0, which can't be; start with `deepspeed` or `torchrun`, or unset "
                "RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE"
            )
        return cls(rank, world_size, local_rank, local_world_size)

    @classmethod
    def check_alone(cls) -> None:
        """Raises UserError if several processes were started of a program that works alone, or as from_environment."""
        if (started := cls.from_environment().world_size) > 1:
            raise UserError(
                f"{started} processes of this program were started, which would all do the same work; start one: "
                "`python` without a launcher, or in a job of Slurm `srun -n 1 python`"
            )

    @staticmethod
    def check_nodes(nodes: int | None) -> None:
        """Raises UserError if a launcher has started another number of machines than --nodes says."""
        started = int(os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("CROSS_SIZE") or 1)  # torchrun, deepspeed
        if nodes not in (None, started):
            raise UserError(
                f"--nodes {nodes}, but the launcher has started {started}; name the machines to it, in DeepSpeed's "
                "--hostfile or by torchrun's --nnodes, and leave the flag out"
            )


ALONE = Ranks(rank=0, world_size=1, local_rank=0, local_world_size=1)


def master() -> tuple[str, int]:
    """Address and port where several ranks meet.

    Raises:
        UserError: if the environment lacks one.
    """
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise no_place()
    return os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])


def no_place() -> UserError:
    """What to say where the environment lacks what tells a rank from the others, or where they meet."""
    return UserError(
        f"the environment says that there are {os.environ['WORLD_SIZE']} ranks, but lacks some of RANK, LOCAL_RANK, "
        "LOCAL_WORLD_SIZE, MASTER_ADDR and MASTER_PORT; start them with `deepspeed` or `torchrun`, or set all of these "
        "(under `mpirun`, MASTER_ADDR to the machine of rank 0 and MASTER_PORT to 29500)"
    )
