"""Who may ask, and how a request is refused."""

import ipaddress
import sys
import time
from urllib.parse import urlsplit

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send


def refusal(request: Request, status: int, line: str) -> JSONResponse:
    """One line for the visitor, and one in the log."""
    line = "".join(letter if letter.isprintable() else " " for letter in line)
    print(f"{time.strftime('%H:%M:%S')} {request.method} {status} {line}", file=sys.stderr, flush=True)
    return JSONResponse({"error": line}, status)


class Guard:
    """Only this server's own page may ask, under a name that is its own.

    The page of another site could send photos here and, once its name leads to our address (DNS rebinding), read what
    is answered. Programs such as curl, which tell of no page, may ask.
    """

    def __init__(self, app: ASGIApp, own_names: set[str]) -> None:
        self.app, self.own_names = app, {name.lower() for name in own_names}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        host, origin = request.headers.get("host", ""), request.headers.get("origin")
        from_here = origin is None or urlsplit(origin).netloc == host
        site = request.headers.get("sec-fetch-site", "none")
        app = self.app
        if not self._is_own(host):
            app = refusal(request, 400, "this server has another name; use the address that it printed")
        elif request.method == "POST" and not (from_here and site in ("none", "same-origin")):
            app = refusal(request, 403, "pages of other sites may not ask")
        await app(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        """Addresses in digits are, too: another site has none that leads here."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
            return name in self.own_names or bool(ipaddress.ip_address(name))
        except ValueError:
            return False
