"""How ranks join each other."""

import logging
import os
import socket
import warnings

import deepspeed
import torch.distributed as dist
from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

from engine.errors import UserError


def join() -> None:
    """Start torch.distributed, with nothing of DeepSpeed's in /dev/shm.

    DeepSpeed has a shared buffer for CPU ranks, which only inference uses and which a killed run leaves behind. It is
    an operator that the table of those that can be compiled has to grant. Ours grants none: to make its own, DeepSpeed
    would try them all, and print a warning for each that needs a CUDA compiler where there is none.

    Raises:
        UserError: on rank 0, if something else has the port where the ranks are to meet.
    """
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if "MASTER_ADDR" not in os.environ:  # no launcher
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free.getsockname()[1]))
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
    deepspeed.ops.__compatible_ops__ = {ShareMemCommBuilder.NAME: False}
    try:
        deepspeed.init_distributed(verbose=False)
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise UserError(
            f"port {os.environ['MASTER_PORT']}, where the ranks were to meet, is taken by another program, perhaps by "
            "another training on this machine; give the launcher another --master_port"
        ) from None
    dist.barrier()
