"""What the page's server answers, what it refuses, and that it keeps serving."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from engine.app import connection, worker
from engine.app.forms import FORMS
from engine.app.upload import LONGEST_TEXT
from tests.engine.app.asking import BOUNDARY, KIND, ask, form, photo
from tests.engine.app.conftest import Serve, serving

MASKED = "the [MASK] square is left of the [MASK]"
WELL = form(photo(), "what color is the square ?")


class Blocking:
    """A model that waits to be let go with each reading, and then fails."""

    source, abilities = "a blocking model", frozenset({"answer"})

    def __init__(self) -> None:
        self.go, self.started, self.read_texts = threading.Event(), threading.Event(), []

    def read(self, photo: bytes, text: str) -> Any:
        self.read_texts.append(text)
        self.started.set()
        assert self.go.wait(60)
        raise RuntimeError("this model always fails")


@pytest.fixture(scope="module")
def port(models: dict[str, Any]) -> Iterator[int]:
    """One server for all tests that leave it as it was."""
    both = [models["question_answering"], models["pretraining"]]
    with serving(both, max_megabytes=1, max_megapixels=1, top_k=3) as port:
        yield port


# --- answers


def test_a_form_shows_what_the_first_model_that_can_do_it_says(port: int, models: dict[str, Any]) -> None:
    image = photo((90, 64), "JPEG")
    answering, pretraining = models["question_answering"], models["pretraining"]
    expected = {
        ("answer", "what is it ?"): [answering.answer(image, "what is it ?", top_k=3)],
        ("fill_mask", MASKED): pretraining.fill_mask(image, MASKED, top_k=3),
        ("match", "a red square"): [[("they belong together", pretraining.match(image, "a red square"))]],
    }
    for (ability, text), tables in expected.items():
        status, told = ask(port, f"/{ability}", form(image, text))
        assert status == 200, told
        assert [[tuple(row) for row in table["rows"]] for table in told["tables"]] == [list(rows) for rows in tables]
    assert (told["grid"], len(told["cells"]), told["note"]) == ([2, 3], 5, "")
    [reading] = pretraining.read(image, "a red square")
    assert told["cells"] == reading.cells.tolist()
    assert told["picture"].startswith("data:image/png;base64,")


def test_words_that_are_unknown_or_cut_off_are_told(port: int) -> None:
    _, told = ask(port, "/answer", form(photo(), "xyzzy square " * 20))
    assert told["note"].startswith("only the first 18 of 40 word pieces were read")  # [CLS] and [SEP] take two of 20
    assert told["note"].endswith("; 9 of them are unknown to the model's vocabulary")


def test_what_no_model_can_do_is_said_on_the_page(serve: Serve, models: dict[str, Any]) -> None:
    port = serve([models["question_answering"]])
    _, page = ask(port, "/", method="GET")
    assert page.count("<fieldset disabled") == 2
    missing = {one.ability: one.missing.replace("'", "&#39;") in page for one in FORMS}
    assert missing == {"answer": False, "fill_mask": True, "match": True}
    assert ask(port, "/match", form(photo(), "a square"))[0] == 404


# --- refusals

NOT_A_FORM = {"Content-Type": "application/json"}
REFUSED: dict[str, tuple[bytes, dict[str, str], int, str]] = {
    "no form": (b"{}", NOT_A_FORM, 415, "multipart/form-data"),
    "no boundary": (WELL, {"Content-Type": "multipart/form-data"}, 400, "boundary"),
    "not what it says": (b"no part at all", KIND, 400, "the form"),
    "cut off": (WELL[:-200], KIND, 400, "`photo`"),
    "no photo": (form(None, "a"), KIND, 400, "`photo`"),
    "no text": (form(photo()), KIND, 400, "`text`"),
    "two photos": (form(photo())[: -len(BOUNDARY) - 6] + WELL, KIND, 400, "Too many files"),
    "an empty photo": (form(b"", "a"), KIND, 422, "empty"),
    "an empty text": (form(photo(), "  "), KIND, 422, "text field"),
    "a long text": (form(photo(), "a" * 100_000), KIND, 422, f"{LONGEST_TEXT:,}"),
    "a text file": (form(b"this is no photo", "a", "photo.jpg"), KIND, 415, "JPEG, PNG"),
    "an SVG": (form(b"<svg xmlns='http://www.w3.org/2000/svg'><script/></svg>", "a"), KIND, 415, "JPEG, PNG"),
    "another format": (form(photo(kind="PPM"), "a"), KIND, 415, "JPEG, PNG"),
    "half a photo": (form(photo((96, 64), "JPEG")[:-20], "a"), KIND, 422, "truncated"),
    "a large PNG": (form(photo((10_000, 10_000), mode="1"), "a"), KIND, 413, "1 megapixel"),
    "a progressive JPEG": (form(photo((1001, 1000), "JPEG", progressive=True), "a"), KIND, 413, "1 megapixel"),
    "a narrow photo": (form(photo((4000, 1)), "a"), KIND, 422, "too narrow"),
    "a large body": (form(b"a" * 10**6, "a"), KIND, 413, "1 MB"),
}


@pytest.mark.parametrize(("body", "headers", "status", "says"), REFUSED.values(), ids=list(REFUSED))
def test_a_refusal_is_one_line(
    port: int, body: bytes, headers: dict[str, str], status: int, says: str, capfd: pytest.CaptureFixture[str]
) -> None:
    code, told = ask(port, "/answer", body, headers)
    assert code == status
    assert list(told) == ["error"]
    assert says in told["error"]
    assert len(told["error"].splitlines()) == 1
    [line] = capfd.readouterr().err.splitlines()
    assert line.endswith(f"POST {status} {told['error']}")


def test_a_sentence_needs_a_mask_that_is_read(port: int) -> None:
    for text, says in (("a square", "put [MASK]"), ("a " * 30 + "[MASK]", "stands behind")):
        status, told = ask(port, "/fill_mask", form(photo(), text))
        assert (status, says in told["error"]) == (422, True)


def test_a_body_that_does_not_tell_its_size_is_refused_at_the_limit(port: int) -> None:
    """The rest of it isn't waited for: here it never comes."""
    head = f"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: {KIND['Content-Type']}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{2 * 10**6:x}\r\n".encode())
        client.sendall(form(b"a" * 10**6)[:-30])
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")
    with send(port, b"", 10**10) as client:
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "elsewhere.example"}, 400),
        ({"Host": "elsewhere.example:7860"}, 400),
        ({"Host": "127.0.0.1.elsewhere.example"}, 400),
        ({"Host": "["}, 400),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "192.0.2.1:80"}, 200),
        ({"Host": "[::1]:7860", "Origin": "http://[::1]:7860"}, 200),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else None,
)
def test_other_sites_may_not_ask(port: int, headers: dict[str, str], status: int) -> None:
    assert ask(port, "/answer", WELL, {**KIND, **headers})[0] == status


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [("/", "GET", 200), ("/page.js", "GET", 200), ("/../../etc/passwd", "GET", 404), ("/answer", "GET", 405),
     ("/answer", "POST", 415), ("/", "DELETE", 405)],
)  # fmt: skip
def test_every_response_keeps_the_page_to_itself(port: int, path: str, method: str, status: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", port)
    client.request(method, path)
    response = client.getresponse()
    assert response.status == status
    assert response.headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
    assert (response.headers["X-Content-Type-Options"], response.headers["Cache-Control"]) == ("nosniff", "no-store")
    client.close()


# --- several at a time, and failures


def test_a_failure_is_one_line_for_the_visitor_and_a_traceback_in_the_log(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    model = Blocking()
    model.go.set()
    port = serve([model])
    for _ in range(2):
        assert ask(port, "/answer", WELL) == (500, {"error": "something went wrong here; the server's log says what"})
    assert "this model always fails" in caplog.text


def test_who_comes_while_the_model_computes_is_served_or_told(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is computed until its time is over, one waits as long, and a third finds all places taken."""
    monkeypatch.setattr(worker, "MOST_VISITORS", 2)
    model = Blocking()
    port = serve([model], max_seconds=2)
    with ThreadPoolExecutor() as clients:
        first = clients.submit(ask, port, "/answer", form(photo(), "first"))
        assert model.started.wait(60)
        second = clients.submit(ask, port, "/answer", form(photo(), "second"))
        time.sleep(0.5)
        started = time.monotonic()
        assert ask(port, "/", method="GET")[0] == 200
        assert ask(port, "/answer", WELL) == (503, {"error": "busy: 2 others are being served; try again in a moment"})
        assert time.monotonic() - started < 1  # the answers come while the two others still wait
        assert first.result() == (504, {"error": "the answer took too long; try a smaller photo"})
        assert second.result() == (503, {"error": "busy: others were first; try again in a moment"})
    model.go.set()
    assert ask(port, "/answer", form(photo(), "third"))[0] == 500
    assert model.read_texts == ["first", "third"]


def test_who_hangs_up_is_not_computed_for(serve: Serve) -> None:
    model = Blocking()
    port = serve([model])
    with ThreadPoolExecutor() as clients:
        first = clients.submit(ask, port, "/answer", form(photo(), "first"))
        assert model.started.wait(60)
        for part in (form(photo(), "gone"), WELL[:-100]):  # all that is needed, and less
            with send(port, part, len(WELL) if part != WELL else len(part)):
                time.sleep(0.2)
        time.sleep(0.2)
        model.go.set()
        assert first.result()[0] == 500
    assert ask(port, "/answer", form(photo(), "second"))[0] == 500
    assert model.read_texts == ["first", "second"]


def send(port: int, body: bytes, length: int) -> socket.socket:
    """The beginning of a request."""
    client = socket.create_connection(("127.0.0.1", port), timeout=30)
    head = f"POST /answer HTTP/1.1\r\nHost: localhost\r\nContent-Type: {KIND['Content-Type']}\r\n"
    client.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + body)
    return client


def trickle(client: socket.socket, content: bytes) -> bytes:
    """What is received until the connection is cut off, while twenty bytes a second are sent."""
    received = b""
    client.settimeout(0.05)
    for byte in content:
        try:
            client.send(bytes([byte]), socket.MSG_NOSIGNAL)
            received += client.recv(10_000)
        except TimeoutError:
            continue
        except OSError:
            client.close()
            return received
    pytest.fail("the connection was not cut off")


def test_who_sends_a_byte_at_a_time_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of a body with a line, and in the midst of the headers without."""
    monkeypatch.setattr(connection, "TRANSFER", 0.5)
    port = serve([SimpleNamespace(source="none", abilities={"answer"})], max_seconds=1)
    headless, headers = socket.create_connection(("127.0.0.1", port)), b"POST /answer HTTP/1.1\r\nX: " + b"-" * 1000
    with ThreadPoolExecutor() as clients:
        slow = clients.submit(trickle, send(port, b"", len(WELL)), WELL), clients.submit(trickle, headless, headers)
        response, nothing = (client.result() for client in slow)
    assert response.startswith(b"HTTP/1.1 504 ")
    assert b"the upload took longer than 1 s" in response
    assert nothing == b""
