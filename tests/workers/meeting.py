"""A rank of two on two machines, which meets the other one, works with it until both are done, or dies.

python -m tests.workers.meeting RANK PORT [die]
"""

import os
import signal
import sys
import time

from engine.distributed import meeting
from engine.distributed.leaving import telling_errors
from engine.distributed.ranks import Ranks

meeting.BEAT, meeting.SILENCE = 0.2, 2.0
rank, port, *dies = sys.argv[1:]
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=port, RANK=rank, WORLD_SIZE="2")
ranks = Ranks(rank=int(rank), world_size=2, local_rank=0, local_world_size=1)
with telling_errors():
    met = meeting.Meeting(ranks, patience=60)
    time.sleep(1.0 if dies else 4.0)  # the one prepares for longer than a silence may last, and lives
    if dies:
        os.kill(os.getpid(), signal.SIGKILL)
    met.wait_for_all()
    time.sleep(4.0 * (ranks.rank == 0))  # as it does when rank 0 writes a checkpoint
    met.end()
print("all are ready")
