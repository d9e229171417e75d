"""The page's program as a user runs it: its address, its end, and many visitors at once."""

import os
import re
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from engine.app import command
from engine.app.command import listen
from engine.errors import UserError
from launch.app import main
from tests.conftest import ROOT, environment, free_port, launch, warm_server
from tests.engine.app.asking import KIND, ask, form, photo
from tests.engine.app.conftest import save_models
from tests.warm import WarmProcess

MEGA = 10**6


@pytest.fixture(scope="module")
def load(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Both models' folders."""
    return ",".join(map(str, save_models(scenes, tmp_path_factory.mktemp("models")).values()))


@contextmanager
def running(*flags: str) -> Iterator[tuple[WarmProcess, int]]:
    """The program, and the port that it has told of."""
    program = str(ROOT / "launch" / "app.py")
    process = warm_server().start(program, ["--port", "0", *flags], environment(), 1, free_port(), str(ROOT))
    try:
        address = process.stdout.readline()
        assert address.startswith("http://127.0.0.1:"), process.stderr.read()
        yield process, int(address.rsplit(":", 1)[1])
    finally:
        if process.returncode is None:
            os.kill(process.pid, signal.SIGKILL)


def memory(pid: int, name: str) -> float:
    """VmRSS or VmHWM, its peak, of a process, in megabytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024 / MEGA


def test_200_requests_are_answered_or_refused_within_the_memory_that_the_limits_grant(
    load: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 visitors at a time; every third request is a good one. What has 100 megapixels would take 400 MB.

    At most, each visitor's megabyte is there three times (as it came, in the form, and read from it), and a megapixel
    takes 15 bytes a pixel (RGBA, white below it, both together, RGB): 8 * 3 + 15 = 39 MB. As much again is granted to
    what the allocator keeps.
    """
    good, large = photo((300, 200), "JPEG"), photo((10_000, 10_000), "JPEG", mode="L", optimize=True)
    assert len(large) < MEGA
    requests = {
        "an answer": ("/answer", form(good, "what is it ?")),
        "guesses": ("/fill_mask", form(photo((1000, 1000), mode="RGBA"), "a [MASK] square")),
        "a match": ("/match", form(good, "a square", name="../../etc/passwd")),
        "a large JPEG": ("/answer", form(large, "a")),
        "a large PNG": ("/answer", form(photo((10_000, 10_000), mode="1"), "a")),
        "a large body": ("/answer", form(b"a" * 2 * MEGA, "a")),
        "a text file": ("/answer", form(b"text", "a", "a.jpg")),
        "an SVG": ("/answer", form(b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>", "a")),
        "a long question": ("/answer", form(good, "a" * 100_000)),
        "half a JPEG": ("/answer", form(good[:-100], "a")),
        "an empty file": ("/answer", form(b"", "a")),
        "nothing": ("/answer", form()),
    }
    statuses = [200, 200, 200, 413, 413, 413, 415, 415, 422, 422, 422, 400]
    expected = dict(zip(requests, statuses, strict=True))
    bad = [name for name in requests if expected[name] != 200]
    names = [("an answer", "guesses", "a match")[n // 3 % 3] if n % 3 == 0 else bad[n % len(bad)] for n in range(200)]

    def visit(name: str) -> tuple[str, int, float]:
        started = time.monotonic()
        status, told = ask(port, *requests[name])
        assert status == 200 or len(told["error"].splitlines()) == 1
        return name, status, time.monotonic() - started

    with running("--load", load, "--max_megabytes", "1", "--max_megapixels", "1") as (process, port):
        assert ask(port, "/answer", method="GET")[0] == 405
        assert [visit(name)[1] for name in requests] == statuses
        before = memory(process.pid, "VmRSS")
        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # its peak counts from here: proc(5)
        with ThreadPoolExecutor(8) as visitors:
            visits = list(visitors.map(visit, names))
        peak, after = memory(process.pid, "VmHWM"), memory(process.pid, "VmRSS")
        assert visit("an answer")[1] == 200
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(30) == 0
        log = process.stderr.read()
    seconds = [second for _, _, second in visits]
    with capsys.disabled():
        print(
            f"\n{statistics.median(seconds):.3f} s in the median, {max(seconds):.3f} s at most; "
            f"{before:.0f} MB before, {peak:.0f} MB at the peak, {after:.0f} MB after"
        )
    assert Counter((name, status) for name, status, _ in visits) == Counter((name, expected[name]) for name in names)
    assert peak - before < 2 * 39
    assert "Traceback" not in log
    refused = sum(status != 200 for status in [405, *statuses, *(status for _, status, _ in visits)])
    assert len(log.splitlines()) == refused


def test_ctrl_c_ends_it_in_the_midst_of_a_request(load: str) -> None:
    with running("--load", load) as (process, port), socket.create_connection(("127.0.0.1", port)) as client:
        head = f"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: {KIND['Content-Type']}\r\n"
        client.sendall(f"{head}Content-Length: 1000\r\n\r\n".encode())
        time.sleep(0.2)
        os.kill(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stderr.read() == ""


def test_a_busy_port_and_a_model_that_is_none_are_one_line(load: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        run = launch("launch/app.py", ["--load", load, "--port", port], ranks=1, launcher="warm")
    assert run.code == 2
    assert run.errors == [
        f"app.py: error: --port {port} is in use; end what serves there, or take a free one: --port 0"
    ]
    run = launch("launch/app.py", ["--load", f"{load},{ROOT}", "--port", "0"], ranks=1, launcher="warm")
    assert run.code == 2
    assert len(run.errors) == 1


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "which model? add --load"),
        (["--load", "a", "--port", "70000"], "--port 70000: a number from 0 to 65535"),
        (["--load", "a", "--top_k", "0"], "--top_k 0: at least 1"),
        (["--load", "a", "--fp16", "--bf16"], "exclude each other"),
        (["--load", "a", "--prt", "1"], "unknown flag --prt; did you mean --port?"),
    ],
)
def test_flags_are_checked(flags: list[str], says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.distributed.leaving.exit_with", raising)
    with pytest.raises(UserError, match=re.escape(says)):
        main(flags)


def raising(error: UserError) -> None:
    raise error


def test_what_can_not_be_served_at_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for host in ("no.such.host.invalid", "a" * 70, "192.0.2.1"):
        with pytest.raises(UserError, match=f"^--host {host}.*127.0.0.1 is this machine$"):
            listen(host, 0)

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(socket, "create_server", forbidden)
    with pytest.raises(UserError, match=r"^--port 80: only root may serve at it"):
        listen("127.0.0.1", 80)


def test_a_package_that_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    present = {"starlette", "uvicorn", "jinja2"}
    monkeypatch.setattr("engine.importing.find_spec", lambda name: name if name in present else None)
    with pytest.raises(UserError, match="run `pip install python-multipart`"):
        command.check_packages("this page", *command.PACKAGES)
