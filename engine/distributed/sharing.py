"""What one rank of a machine makes and the others get: small objects by value, shared memory by descriptor.

It works before torch.distributed is up, which loading workers have to be forked before. The ranks meet at a socket in
the abstract namespace: it has no file, and it is gone with the process, however that ends.
"""

import contextlib
import hashlib
import io
import os
import pickle
import socket
import struct
import time
from collections.abc import Callable
from typing import Any, TypeVar

from engine.distributed.ranks import Ranks, master
from engine.errors import UserError

T = TypeVar("T")
LENGTH = struct.Struct("<Q")
MOST_DESCRIPTORS = 64
PATIENCE = 300.0  # seconds that ranks of one launch may start apart


class InSharedMemory:
    """What is sent by the descriptor of its memory, and made again from that."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor


def share_on_node(ranks: Ranks, name: str, make: Callable[[], T]) -> T:
    """Let local rank 0 call `make` and every rank of the machine return its result.

    Args:
        name: tells apart what is shared in one run.

    Raises:
        UserError: on local rank 0 what `make` raises; on the others, that it ended without a result; on all, if the
            environment doesn't say where they meet.
    """
    if ranks.local_world_size == 1:
        return make()
    host, port = master()
    run = f"{os.getuid()} {host} {port} {name}"
    address = f"\0clipvil-{hashlib.sha256(run.encode()).hexdigest()[:32]}"
    if ranks.local_rank == 0:
        return _serve(address, ranks.local_world_size - 1, make)
    return _receive(address)


def _serve(address: str, count: int, make: Callable[[], T]) -> T:
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.bind(address)
        except OSError as error:
            raise UserError(
                f"another run on this machine has the same --master_port ({error.strerror}); choose another"
            ) from None
        server.listen(count)
        result = make()
        descriptors: list[int] = []
        data = _pickle(result, descriptors)
        while count:
            connection, _ = server.accept()
            with connection, contextlib.suppress(ConnectionError):  # a rank that died; the launcher ends us, too
                if _is_ours(connection):
                    socket.send_fds(connection, [LENGTH.pack(len(data))], descriptors)
                    connection.sendall(data)
                    count -= 1
    return result


def _receive(address: str) -> Any:
    with _connect(address) as connection:
        if not _is_ours(connection):
            raise UserError("a process of another user answers at this run's --master_port; choose another")
        try:
            start, descriptors, *_ = socket.recv_fds(connection, LENGTH.size, MOST_DESCRIPTORS)
            with connection.makefile("rb") as stream:
                data = stream.read(LENGTH.unpack(start)[0])
        except (OSError, struct.error):
            raise UserError("local rank 0 ended while it prepared the data; its own message says why") from None
        return _Unpickler(data, descriptors).load()


def _connect(address: str) -> socket.socket:
    """Wait until local rank 0 is there."""
    deadline = time.monotonic() + PATIENCE
    while True:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(address)
            return connection
        except ConnectionRefusedError:
            connection.close()
            if time.monotonic() > deadline:
                raise UserError(f"local rank 0 was not there after {PATIENCE:.0f} s; start all ranks at once") from None
            time.sleep(0.05)


def _is_ours(connection: socket.socket) -> bool:
    """Whether the other end belongs to this user; abstract addresses have no permissions."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return bool(uid == os.getuid())


def _pickle(result: object, descriptors: list[int]) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> tuple[type[InSharedMemory], int] | None:
            if not isinstance(part, InSharedMemory):
                return None
            descriptors.append(part.descriptor)
            return type(part), len(descriptors) - 1

    stream = io.BytesIO()
    Pickler(stream).dump(result)
    return stream.getvalue()


class _Unpickler(pickle.Unpickler):
    """For what a process of the same user sent, as multiprocessing does; never for a file."""

    def __init__(self, data: bytes, descriptors: list[int]) -> None:
        super().__init__(io.BytesIO(data))
        self.descriptors = descriptors

    def persistent_load(self, place: tuple[type[InSharedMemory], int]) -> "InSharedMemory":
        kind, number = place
        return kind(self.descriptors[number])
