"""End trainings in every way at random moments, and see that each next start goes on as if nothing had happened.

    python -m tests.kill --times 100

Two trainings take turns: one of many short epochs that leave micro-batches over, with two sentences to an image; and
one whose annotations take a while to prepare and, half of the times, have to be prepared again. Each start goes on with
--resume auto under deepspeed or torchrun, and is ended: one rank, all ranks, a rank while it saves, a loading worker,
the launcher or everything by SIGKILL, all of them by Ctrl-C or by the closing of their terminal. Or the reader of what
it prints goes; or a second start comes to the same folder; or a caption is edited between two starts. Afterwards all
its processes have to end by themselves, /dev/shm has to be as before, and the newest checkpoint has to be whole. When a
training has got to its end, its metrics and weights have to be those, bit for bit, of one that nobody disturbed, and
its folder has to hold the same files.
"""

import argparse

from tests.kill.rounds import rounds

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    for line in rounds(options.times, options.seed):
        print(line, flush=True)
