"""Programs without the seconds that imports take: forked from a process that has imported the engine already.

Most tests of whole trainings are about what a training does, not about how Python starts. For them a child of the warm
process runs the script as `python` would, with its own session, environment, arguments, standard output and error.
With several ranks that child is their launcher: it gives each its RANK, and ends the others when one fails.
"""

import atexit
import contextlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any, NoReturn

from engine.importing import heavy_imports

TASKS = ("engine.tasks.pretraining", "engine.tasks.named", "engine.tasks.answering.prediction")
IMPORTED = ("engine.training.run", *TASKS)
LONGEST = 1 << 20  # bytes of a request


class WarmProcess:
    """A program like those of subprocess.Popen: `pid`, `returncode`, `poll`, `wait`, `stdout`, `stderr`."""

    def __init__(self, connection: socket.socket, pid: int, stdout: int, stderr: int) -> None:
        self.connection, self.pid = connection, pid
        self.returncode: int | None = None
        self.stdout, self.stderr = os.fdopen(stdout), os.fdopen(stderr)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            self.connection.settimeout(timeout)
            try:
                self.returncode = int(self.connection.recv(64))
            except TimeoutError:
                raise subprocess.TimeoutExpired("a warm program", timeout or 0.0) from None
            self.connection.close()
        return self.returncode


class WarmServer:
    """The warm process, started when it is first needed; it ends with this one."""

    def __init__(self, environment: dict[str, str], folder: Path) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket = ours
        command = [sys.executable, "-m", "tests.warm", str(theirs.fileno())]
        self.process = subprocess.Popen(command, cwd=folder, env=environment, pass_fds=[theirs.fileno()])
        theirs.close()

    def start(
        self, script: str, flags: list[str], environment: dict[str, str], ranks: int, port: str, folder: str
    ) -> WarmProcess:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipes = os.pipe(), os.pipe()
        request = {"script": script, "flags": flags, "ranks": ranks, "port": port, "folder": folder}
        request["environment"] = environment
        ends = [theirs.fileno(), pipes[0][1], pipes[1][1]]
        with contextlib.suppress(BrokenPipeError):
            socket.send_fds(self.socket, [json.dumps(request).encode()], ends)
        theirs.close()
        for _, writer in pipes:
            os.close(writer)
        pid = ours.recv(64)
        assert pid, f"the warm process can't start a program; it ended with code {self.process.poll()}"
        return WarmProcess(ours, int(pid), pipes[0][0], pipes[1][0])

    def close(self) -> None:
        self.socket.close()
        self.process.wait()


def serve(connection: socket.socket) -> None:
    """A child for each request. Nothing computes here and no thread runs, so that forking is safe."""
    with heavy_imports():
        for name in IMPORTED:
            __import__(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # each child's parent of its own reports its end
    while True:
        data, ends, *_ = socket.recv_fds(connection, LONGEST, 3)
        if not data:
            return
        if os.fork() == 0:
            connection.close()
            watch(json.loads(data), *ends)
        for end in ends:
            os.close(end)


def watch(request: dict[str, Any], report: int, stdout: int, stderr: int) -> None:
    """Start a program, tell its id, and tell its exit code once it has one."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    told = socket.socket(fileno=report)
    pid = os.fork()
    if pid == 0:
        told.close()
        os.setsid()
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.closerange(3, max(stdout, stderr) + 1)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        run(request) if request["ranks"] == 1 else launch(request)
    os.close(stdout)
    os.close(stderr)
    told.send(str(pid).encode())
    told.send(str(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])).encode())
    os._exit(0)


def launch(request: dict[str, Any]) -> NoReturn:
    """All ranks of one machine; ends with the code of the first that fails."""
    ranks: set[int] = set()
    for rank in range(request["ranks"]):
        pid = os.fork()
        if pid == 0:
            places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": request["ranks"], "LOCAL_SIZE": request["ranks"]}
            os.environ.update({name: str(value) for name, value in places.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=request["port"])
            run(request)
        ranks.add(pid)
    code = 0
    while ranks:
        pid, status = os.wait()
        ranks.discard(pid)
        if (ended := os.waitstatus_to_exitcode(status)) != 0 and code == 0:
            code = ended
            for other in ranks:
                os.kill(other, signal.SIGTERM)
    os._exit(code)


def run(request: dict[str, Any]) -> NoReturn:
    """What `python SCRIPT FLAGS` does: SystemExit, or what the script raises, ends this process as it ends that one.

    But nothing is torn down behind the exit handlers: to look at each of the warm process's objects once more, and so
    to copy all pages that it shares with this one, takes longer than most of the programs.
    """
    sys.argv = [request["script"], *request["flags"]]
    code: Any = 0
    try:
        runpy.run_path(request["script"], run_name="__main__")
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as every Python does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
