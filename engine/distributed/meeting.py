"""The machines of one run: whether all of them are there still, from their start to their end.

A launcher ends the ranks of its own machine when one of them fails, but not those of the others, which would wait for
half an hour. Here the ranks meet at a store of torch's as soon as they start. From then on a thread of each says that
it lives, whatever the rank does meanwhile: data take minutes on one machine and seconds on another, and a checkpoint or
a validation takes one rank longer than the others.
"""

import contextlib
import os
import queue
import socket
import threading
import time
from collections.abc import Iterable
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from engine.distributed.leaving import say_last
from engine.distributed.ranks import Ranks, master
from engine.distributed.workers import kill_workers
from engine.errors import UserError

BEAT = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one after which a rank is gone
INSTEAD_OF = "clipvil instead of port {}"  # marks a store that is at another port than it should be


class Meeting:
    """Of all ranks, where they are on several machines; on one, its launcher ends the others."""

    def __init__(self, ranks: Ranks, patience: float) -> None:
        """Meet the others, and from then on end this process when one of them is gone.

        Args:
            patience: seconds that machines may start apart.

        Raises:
            UserError: if a rank doesn't come, naming it, or if there is no way to rank 0.
        """
        self.ranks, self.alone = ranks, ranks.world_size == ranks.local_world_size
        self.problem = ""  # of the port, on rank 0
        self.ended = threading.Event()
        if self.alone:
            return
        deadline = time.monotonic() + patience
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store when it restarts ranks
        store, self.problem = connect(ranks, patience)
        self.store = PrefixStore(f"clipvil {attempt}", store)
        self.store.set(f"beat {ranks.rank}", "0")
        self.store.set(f"host {ranks.rank}", socket.gethostname())
        while not self._all_have("host"):
            if time.monotonic() > deadline:
                missing = [rank for rank in range(ranks.world_size) if not self.store.check([f"host {rank}"])]
                late = (
                    f"{_names(missing)} of {ranks.world_size} ranks had not started after {patience:.0f} s; see what "
                    "their machine says, or wait longer with --start_timeout"
                )
                raise UserError(self.problem or late)
            time.sleep(0.2)
        self.hosts = [host.decode() for host in self.store.multi_get(self._keys("host"))]
        self.heard = [(b"", time.monotonic())] * ranks.world_size  # of each, its last beat and when that was new
        self.threads = [
            threading.Thread(target=work, daemon=True, name="meeting") for work in (self._beat, self._watch)
        ]
        for thread in self.threads:
            thread.start()

    def wait_for_all(self, word: str = "ready") -> None:
        """Return when every rank has come here."""
        self.exchange(word, "")

    def exchange(self, word: str, value: str) -> list[str]:
        """What each rank says, by rank; on one machine this rank's own value alone."""
        if self.alone:
            return [value]
        self.store.set(f"{word} {self.ranks.rank}", value)
        while not self._all_have(word):
            time.sleep(0.2)
        return [said.decode() for said in self.store.multi_get(self._keys(word))]

    def end(self) -> None:
        """Watch no longer, once every rank has done its work. Rank 0, which may hold the store, leaves last."""
        if self.alone:
            return
        self.wait_for_all("done")
        self.ended.set()
        for thread in self.threads:  # one that returned from the store while Python ends would abort the process
            thread.join(timeout=SILENCE)
        self.store.set(f"left {self.ranks.rank}", "")
        deadline = time.monotonic() + SILENCE
        while self.ranks.rank == 0 and not self._all_have("left") and time.monotonic() < deadline:
            time.sleep(0.05)

    def _keys(self, word: str) -> list[str]:
        return [f"{word} {rank}" for rank in range(self.ranks.world_size)]

    def _all_have(self, word: str) -> bool:
        """Whether all ranks have said a word."""
        return self.store.check(self._keys(word))

    def _beat(self) -> None:
        """Say that this rank lives, and hear the others. Where the network is gone, a call may never return."""
        try:
            while not self.ended.wait(BEAT):
                self.store.set(f"beat {self.ranks.rank}", str(time.monotonic()))
                beats, now = self.store.multi_get(self._keys("beat")), time.monotonic()
                self.heard = [
                    old if old[0] == beat else (beat, now) for old, beat in zip(self.heard, beats, strict=True)
                ]
        except DistError:
            if not self.ended.is_set():
                self._end([0])

    def _watch(self) -> None:
        """End this process when another rank, or the store, is silent."""
        while not self.ended.wait(BEAT):
            silent = [rank for rank, (_, last) in enumerate(self.heard) if time.monotonic() - last > SILENCE]
            if silent:
                self._end([0] if self.ranks.rank in silent else silent)  # who doesn't hear itself has lost the store

    def _end(self, gone: list[int]) -> None:
        """End this process from a thread; the main one may wait in a collective, for half an hour."""
        where = ", ".join(sorted({self.hosts[rank] for rank in gone}))
        say_last(
            f"error: {_names(gone)} on {where} can't be heard any more: it ended, as its own message should say, or "
            "its machine can't be reached"
        )
        kill_workers()
        os._exit(1)


def connect(ranks: Ranks, patience: float) -> tuple[Store, str]:
    """The store at MASTER_ADDR and MASTER_PORT: torchrun has one there, and else rank 0 opens it.

    torch.distributed will use the same one. Where something else has the port, rank 0 opens the store at the next one,
    so that the ranks can tell each other what keeps them from running, this included.

    Returns:
        the store, and on rank 0 what is to be said of a port that is taken, or "".

    Raises:
        UserError: if there is no way to it.
    """
    address, port = master()
    if ranks.rank != 0 or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        return _find_store(ranks, address, port, patience), ""
    try:
        return _store(ranks, address, port, patience, opens=True), ""
    except DistError as error:
        if "EADDRINUSE" not in str(error):
            raise UserError(
                f"rank 0 on {socket.gethostname()} can't be reached at {address}:{port} by itself "
                f"({str(error).splitlines()[0]}); give the launcher its own address (--master_addr, or MASTER_ADDR)"
            ) from None
    try:
        store = _store(ranks, address, _next(port), patience, opens=True)
    except DistError:
        raise no_port(port) from None
    store.set(INSTEAD_OF.format(port), "")
    return store, str(no_port(port))


def _store(ranks: Ranks, address: str, port: int, patience: float, *, opens: bool = False) -> Store:
    return TCPStore(
        address,
        port,
        ranks.world_size,
        is_master=opens,
        timeout=timedelta(seconds=patience),
        wait_for_workers=False,
        multi_tenant=True,
    )


def _find_store(ranks: Ranks, address: str, port: int, patience: float) -> Store:
    """In threads, because something else that has a port may never answer."""
    found: queue.SimpleQueue[Store] = queue.SimpleQueue()

    def attempt(port: int, mark: str | None) -> None:
        with contextlib.suppress(DistError):
            store = _store(ranks, address, port, patience)
            if mark is None or store.check([mark]):
                found.put(store)

    def start(port: int, mark: str | None) -> threading.Thread:
        thread = threading.Thread(target=attempt, args=(port, mark), daemon=True, name="connection")
        thread.start()
        return thread

    start(port, None)
    beside: threading.Thread | None = None  # one at a time
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        with contextlib.suppress(queue.Empty):
            return found.get(timeout=2.0)
        if (beside is None or not beside.is_alive()) and _somebody_listens(address, _next(port)):
            beside = start(_next(port), INSTEAD_OF.format(port))  # another run's store doesn't have the mark
    raise UserError(
        f"rank {ranks.rank} on {socket.gethostname()} found no rank 0 at {address}:{port} within {patience:.0f} s; "
        "see what its machine says, or give the launcher an address that reaches it (--master_addr)"
    )


def _next(port: int) -> int:
    return port + 1 if port < 65535 else port - 1


def _somebody_listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=1.0).close()
    except OSError:
        return False
    return True


def no_port(port: int | str) -> UserError:
    """What to say where rank 0 can't open the port at which the ranks were to meet."""
    return UserError(
        f"port {port}, where the ranks were to meet, is taken by another program, perhaps by another training on this "
        "machine; give the launcher another --master_port, or set another MASTER_PORT"
    )


def _names(ranks: Iterable[int]) -> str:
    numbers = list(ranks)
    return f"rank {numbers[0]}" if len(numbers) == 1 else "ranks " + ", ".join(map(str, numbers))
