"""The way between the browser and the app: an address, and uvicorn with an end to each connection."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

# Of every response: a page takes nothing from elsewhere and is in no other one's frame, and nothing is kept.
HEADERS = [
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data: blob:; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cache-Control", "no-store"),
]
MOST_CONNECTIONS = 100  # uvicorn refuses more
TRANSFER = 10  # seconds to send a request's headers, and to fetch its answer


class Server(uvicorn.Server):
    """uvicorn's, which leaves signals to those who were told to handle them."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def timed_protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, where a connection ends that long after its start, or after the last answer was sent.

    uvicorn itself waits for ever for headers that come a byte at a time, and for who doesn't fetch an answer.
    """

    class TimedProtocol(H11Protocol):
        end: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._set_end()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._set_end()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._cancel_end()

        def _set_end(self) -> None:
            self._cancel_end()
            self.end = self.loop.call_later(seconds, self.transport.abort)

        def _cancel_end(self) -> None:
            if self.end is not None:
                self.end.cancel()

    return TimedProtocol


def build_server(app: ASGIApp, max_seconds: float) -> Server:
    """What serves an app whose requests take so many seconds at most; its `run(sockets=[...])` does."""
    config = uvicorn.Config(
        app,
        http=timed_protocol(max_seconds + 2 * TRANSFER),
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        headers=HEADERS,
        limit_concurrency=MOST_CONNECTIONS,
    )
    return Server(config)
