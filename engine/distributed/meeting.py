"""The machines of one run, from their start until their ranks have joined: whether all of them are there still.

A launcher ends the ranks of its own machine when one of them fails, but not those of the others, which would wait for
half an hour. Here the ranks meet at a store of torch's as soon as they start. From then on each says that it lives,
until all have prepared their data, which may take minutes on one machine and seconds on another.
"""

import os
import socket
import threading
import time
from collections.abc import Iterable
from datetime import timedelta

from torch.distributed import DistError, PrefixStore, Store, TCPStore

from engine.distributed.leaving import say
from engine.distributed.ranks import Ranks
from engine.distributed.workers import kill_workers
from engine.errors import UserError

BEAT = 2.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one after which a rank is gone


class Meeting:
    """Of all ranks, where they are on several machines; on one, there is nothing to do."""

    def __init__(self, ranks: Ranks, patience: float) -> None:
        """Meet the others, and from then on end this process when one of them is gone.

        Args:
            patience: seconds that machines may start apart.

        Raises:
            UserError: if a rank doesn't come, naming it, or if there is no way to rank 0.
        """
        self.ranks, self.alone = ranks, ranks.world_size == ranks.local_world_size
        self.joined = threading.Event()
        if self.alone:
            return
        deadline = time.monotonic() + patience
        self.store = PrefixStore("clipvil", connect(ranks, patience))
        self.store.set(f"beat {ranks.rank}", "0")
        self.store.set(f"host {ranks.rank}", socket.gethostname())
        while not self._all_have("host"):
            if time.monotonic() > deadline:
                missing = [rank for rank in range(ranks.world_size) if not self.store.check([f"host {rank}"])]
                raise UserError(
                    f"{_names(missing)} of {ranks.world_size} ranks had not started after {patience:.0f} s; see what "
                    "their machine says, or wait longer with --start_timeout"
                )
            time.sleep(0.2)
        threading.Thread(target=self._watch, daemon=True, name="meeting").start()

    def wait_for_all(self) -> None:
        """Return when every rank has prepared its data and come here."""
        if not self.alone:
            self.store.set(f"ready {self.ranks.rank}", "")
            while not self._all_have("ready"):
                time.sleep(0.2)

    def end(self) -> None:
        """Watch no longer: from here on a rank that is gone shows in the others' collectives."""
        self.joined.set()

    def _all_have(self, word: str) -> bool:
        """Whether all ranks have said a word."""
        return self.store.check([f"{word} {rank}" for rank in range(self.ranks.world_size)])

    def _watch(self) -> None:
        """Say that this rank lives, and end it when another one says so no longer."""
        keys = [f"beat {rank}" for rank in range(self.ranks.world_size)]
        heard = [(b"", 0.0)] * self.ranks.world_size  # of each rank, its last sign of life and when that was new
        try:
            while not self.joined.wait(BEAT):
                now = time.monotonic()
                self.store.set(keys[self.ranks.rank], str(now))
                beats = self.store.multi_get(keys)
                heard = [old if old[0] == beat else (beat, now) for old, beat in zip(heard, beats, strict=True)]
                if silent := [rank for rank, (_, last) in enumerate(heard) if now - last > SILENCE]:
                    _end(f"{_names(silent)} on {self.store.get(f'host {silent[0]}').decode()}")
        except DistError:
            if not self.joined.is_set():
                _end("rank 0")


def _end(who: str) -> None:
    """End this process from a thread; the main one may wait in a collective, for half an hour."""
    say(f"error: {who} ended while the ranks started; its own message says why")
    kill_workers()
    os._exit(1)


def connect(ranks: Ranks, patience: float) -> Store:
    """The store at MASTER_ADDR and MASTER_PORT: torchrun has one there, and else rank 0 opens it.

    torch.distributed will use the same one.

    Raises:
        UserError: if there is no way to it, or something else has the port.
    """
    if not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise no_place()
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    opens = ranks.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    try:
        return TCPStore(
            address,
            port,
            ranks.world_size,
            is_master=opens,
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
            multi_tenant=True,
        )
    except DistError as error:
        if opens:
            raise no_port(port) if "EADDRINUSE" in str(error) else UserError(str(error).splitlines()[0]) from None
        raise UserError(
            f"rank {ranks.rank} on {socket.gethostname()} found no rank 0 at {address}:{port} within {patience:.0f} s; "
            "see what its machine says, or give the launcher an address that reaches it (--master_addr)"
        ) from None


def no_place() -> UserError:
    """What to say where the environment lacks what tells a rank from the others, or where they meet."""
    return UserError(
        f"the environment says that there are {os.environ['WORLD_SIZE']} ranks, but lacks some of RANK, LOCAL_RANK, "
        "MASTER_ADDR and MASTER_PORT; start them with `deepspeed` or `torchrun`, or set all of these"
    )


def no_port(port: int | str) -> UserError:
    """What to say where rank 0 can't open the port at which the ranks were to meet."""
    return UserError(
        f"port {port}, where the ranks were to meet, is taken by another program, perhaps by another training on this "
        "machine; give the launcher another --master_port"
    )


def _names(ranks: Iterable[int]) -> str:
    numbers = list(ranks)
    return f"rank {numbers[0]}" if len(numbers) == 1 else "ranks " + ", ".join(map(str, numbers))
