"""What signals ask of a training.

SIGTERM, SIGUSR1, SIGHUP and SIGINT (Ctrl-C) ask it to end the current optimiser step, write a checkpoint and stop;
SIGUSR2 asks it to write one and go on. A second Ctrl-C ends it at once.
"""

import os
import select
import signal
import sys
import threading
import time

from engine.distributed.launchers import by_torchrun, launchers
from engine.distributed.leaving import INTERRUPTED
from engine.distributed.workers import kill_workers

GRACE = 120.0  # seconds for the step and the checkpoint; launchers kill after 30 of their own
PASSED_ON = 3.0  # seconds in which a launcher passes Ctrl-C on to ranks that have got it from the terminal already
OF_A_TERMINAL = (signal.SIGHUP, signal.SIGINT)  # whoever starts a program may have it ignore them, as nohup does
STOPPING = (signal.SIGTERM, signal.SIGUSR1, *OF_A_TERMINAL)


class Preemption:
    """Notes the first signal to this process that asks it to stop, and those that ask for a checkpoint.

    A thread reads the signals: one that waits for a rank that is gone, deep in a collective, would never get to
    Python's own handlers, and has to end all the same.
    """

    def __init__(self, grace: float = GRACE, *, says: bool = True) -> None:
        """`says`: whether a signal's coming is told at once; the end of its step may take a while."""
        self.grace, self.says = grace, says
        self.received: str | None = None  # the name of the signal that asks to stop
        self.save_asked = threading.Event()
        self.deadline: float | None = None  # of time.monotonic, once a signal has asked to stop
        self.interrupts_count_from = 0.0  # from then on Ctrl-C is a second one
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (*STOPPING, signal.SIGUSR2):
            # torchrun ends its ranks on them even if it was to ignore them.
            if number not in OF_A_TERMINAL or signal.getsignal(number) != signal.SIG_IGN or by_torchrun():
                signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._watch, args=(reader,), daemon=True, name="preemption").start()

    def _watch(self, reader: int) -> None:
        while True:
            left = None if self.deadline is None else max(0.0, self.deadline - time.monotonic())
            if not select.select([reader], [], [], left)[0]:
                self._end(f"no end {self.grace:.0f} s after {self.received}; giving up", code=1)
            for number in os.read(reader, 64):  # others that Python handles come here, too
                if number == signal.SIGUSR2:
                    self.save_asked.set()
                elif number in STOPPING:
                    self._stop(number)

    def _stop(self, number: int) -> None:
        """Only a person repeats Ctrl-C; launchers add SIGTERM to it, or pass it on once more, soon."""
        now, by_hand = time.monotonic(), number == signal.SIGINT
        if by_hand and self.received == signal.SIGINT.name:
            if now >= self.interrupts_count_from:
                self._end("Ctrl-C again: ended at once, without a checkpoint", code=INTERRUPTED)
        elif by_hand or self.received is None:  # a launcher's SIGTERM may overtake Ctrl-C
            if by_hand:
                self.interrupts_count_from = now + (PASSED_ON if any(launchers()) else 0.0)
            self.received, self.deadline = signal.Signals(number).name, self.deadline or now + self.grace
            if self.says:
                again = "; Ctrl-C again ends it at once" if by_hand else ""
                told = f"{self.received}: the training ends its step, saves and stops{again}"
                print(told, file=sys.stderr, flush=True)

    def _end(self, message: str, code: int) -> None:
        if self.says or code != INTERRUPTED:
            print(message, file=sys.stderr, flush=True)
        kill_workers()
        os._exit(code)
