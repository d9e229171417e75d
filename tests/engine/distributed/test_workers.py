"""The end of loading workers."""

import multiprocessing
import signal
import threading
from types import SimpleNamespace

import pytest

from engine.distributed.workers import end_workers


def test_the_threads_of_a_rank_that_ends_say_nothing_of_its_workers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback of torch's pinning thread would stand below the error that the rank ends with."""
    heard: list[object] = []
    monkeypatch.setattr(threading, "excepthook", heard.append)
    monkeypatch.setattr(signal, "signal", lambda number, handler: None)

    def kill() -> None:
        thread = threading.Thread(target=lambda: 1 / 0)
        thread.start()
        thread.join()

    monkeypatch.setattr(multiprocessing, "active_children", lambda: [SimpleNamespace(kill=kill)])
    end_workers()
    assert heard == []
