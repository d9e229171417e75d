"""Pre-training that is asked for a checkpoint, by SIGUSR2, after its fourth step."""

import os
import signal

from engine.training.observers.saver import Saver
from launch.pretrain import main

agree = Saver.agree


def ask_and_agree(saver: Saver) -> None:
    if saver.engine.global_steps == 4:
        os.kill(os.getpid(), signal.SIGUSR2)
        assert saver.preemption.save_asked.wait(10)  # as a thread notes it
    agree(saver)


Saver.agree = ask_and_agree  # type: ignore[method-assign]

if __name__ == "__main__":
    main()
