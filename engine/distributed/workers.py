"""How long loading workers live: as long as their rank, whatever signal a launcher sends to all processes at once."""

import multiprocessing
import signal
import threading


def outlive_signals(worker: int = 0) -> None:
    """In a worker: its rank may need it for a last step after a signal, and ends it when it ends itself."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def end_workers() -> None:
    """In a rank that ends: SIGTERM, which multiprocessing would send and then wait, they don't heed."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # DataLoader's handler would take it for a failure
    threading.excepthook = lambda failure: None  # and its thread that pins batches may be in the midst of receiving one
    kill_workers()


def kill_workers() -> None:
    """From any thread."""
    for worker in multiprocessing.active_children():
        worker.kill()
