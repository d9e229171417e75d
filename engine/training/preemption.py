"""What signals ask of a training.

SIGTERM and SIGUSR1 ask it to end the current optimiser step, write a checkpoint and stop; SIGUSR2 asks it to write one
and go on.
"""

import os
import signal
import sys
import threading
import time

GRACE = 120.0  # seconds for the step and the checkpoint; launchers kill after 30 of their own


class Preemption:
    """Notes the first signal to this process that asks it to stop, and those that ask for a checkpoint.

    A thread reads the signals: one that waits for a rank that is gone, deep in a collective, would never get to
    Python's own handlers, and has to end all the same.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self.grace = grace
        self.received: str | None = None  # the name of the signal that asks to stop
        self.save_asked = threading.Event()
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, lambda number, frame: None)
        threading.Thread(target=self._watch, args=(reader,), daemon=True, name="preemption").start()

    def _watch(self, reader: int) -> None:
        while self.received is None:
            for number in os.read(reader, 64):  # others that Python handles come here, too
                if number in (signal.SIGTERM, signal.SIGUSR1):
                    self.received = signal.Signals(number).name
                elif number == signal.SIGUSR2:
                    self.save_asked.set()
        time.sleep(self.grace)
        print(f"no end {self.grace:.0f} s after {self.received}; giving up", file=sys.stderr, flush=True)
        os._exit(1)
