"""How ranks join each other."""

import logging
import os
import socket
import warnings

import deepspeed
import torch.distributed as dist
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from engine.distributed.meeting import Meeting, no_port
from engine.distributed.ranks import no_place
from engine.errors import UserError

PLACE = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"}  # what launchers set, and DeepSpeed reads


def join(meeting: Meeting | None = None) -> None:
    """Start torch.distributed, with nothing of DeepSpeed's in /dev/shm; on several machines, when all are ready.

    DeepSpeed has a shared buffer for CPU ranks, which only inference uses and which a killed run leaves behind. It is
    an operator that the table of those that can be compiled has to grant. Ours grants none: to make its own, DeepSpeed
    would try them all, and print a warning for each that needs a CUDA compiler where there is none.

    Raises:
        UserError: if the environment speaks of several ranks and not of where they meet; on rank 0, if something else
            has the port there; on any, if there is no way to the others' addresses.
    """
    if meeting is not None:
        meeting.wait_for_all()
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if not os.environ.keys() >= PLACE:  # no launcher
        if os.environ.get("WORLD_SIZE", "1") != "1":
            raise no_place()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
    deepspeed.ops.__compatible_ops__ = {ShareMemCommBuilder.NAME: False}
    try:
        deepspeed.init_distributed(verbose=False)
        dist.barrier()
    except RuntimeError as error:  # torch's own kinds are some of these
        if "EADDRINUSE" in str(error):
            raise no_port(os.environ["MASTER_PORT"]) from None
        if is_about_addresses(error):
            raise UserError(
                f"rank {os.environ['RANK']} on {socket.gethostname()} has no way to the others "
                f"({str(error).strip().splitlines()[0]}); name a network interface that reaches them on every machine: "
                "GLOO_SOCKET_IFNAME=eth0 and, for GPUs, NCCL_SOCKET_IFNAME=eth0 (`ip addr` lists them)"
            ) from None
        raise


def is_about_addresses(error: RuntimeError) -> bool:
    """Whether Gloo or NCCL took an address of this machine that the others can't reach, or found none."""
    signs = ("connectFullMesh", "Unable to find address", "Unable to resolve", "Bootstrap : no socket interface found")
    return any(sign in str(error) for sign in signs)
