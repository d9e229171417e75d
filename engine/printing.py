"""Standard output and error of a program whose work matters more than what it says about it."""

import contextlib
import io
import os
import select
import sys
from typing import Any


class Unfailing(io.FileIO):
    """A descriptor that takes every byte, even if its reader is gone, its disk full or its terminal closed."""

    def write(self, data: Any) -> int:
        written = None  # also where it would have to wait
        with contextlib.suppress(OSError):
            written = super().write(data)
        return memoryview(data).nbytes if written is None else written


def keep_printing() -> None:
    """From here on, nothing that is printed raises an error. Streams that have been replaced, as tests do, stay."""
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue
        settings: dict[str, Any] = {"encoding": "utf-8"}
        if stream is None:  # its descriptor was closed, and would become that of the next file that is opened
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
        else:
            names = ("encoding", "errors", "line_buffering", "write_through")
            settings = {name: getattr(stream, name) for name in names}
            with contextlib.suppress(OSError):
                stream.flush()
        raw = Unfailing(descriptor, "w", closefd=False)
        unbuffered = settings.get("write_through", False)  # by `python -u`, as deepspeed starts ranks
        setattr(sys, name, io.TextIOWrapper(raw if unbuffered else io.BufferedWriter(raw), **settings))


def warn(told: str | None) -> None:
    """Tell of something that the program goes on in spite of, if there is anything to tell."""
    if told:
        print(f"warning: {told}", flush=True)


def note(told: str | None) -> None:
    """Tell of something that may be as it should be, if there is anything to tell."""
    if told:
        print(f"note: {told}", flush=True)


def counted(number: int, name: str) -> str:
    """A number of things, by what one of them is called."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more, as behind `| head`."""
    output = select.poll()
    output.register(1, 0)
    return any(event & select.POLLERR for _, event in output.poll(0))
