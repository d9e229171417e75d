"""The page and the three addresses that it asks at."""

import asyncio
import socket
import time
from collections.abc import Sequence
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import jinja2
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from engine.app.flags import AppConfig
from engine.app.forms import FORMS, Form, model_for, reply
from engine.app.guard import Guard, refusal
from engine.app.upload import LONGEST_TEXT, Refusal, read_upload
from engine.app.worker import Worker
from engine.errors import UserError

if TYPE_CHECKING:
    from engine.inference.pretrained import Pretrained

KINDS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}


def build_app(config: AppConfig, models: Sequence["Pretrained"]) -> Starlette:
    """An ASGI application. Each form asks the first model that can do it; one that none can do has no address."""
    asked = [(form, model_for(form, models)) for form in FORMS]
    page = {name: (files("engine.app") / "page" / name).read_text(encoding="utf-8") for name in KINDS}
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(page["page.html"])
    page["page.html"] = template.render(asked=asked, longest_text=LONGEST_TEXT, max_megabytes=config.max_megabytes)
    worker = Worker()
    return Starlette(
        routes=[
            *(Route("/" if name == "page.html" else f"/{name}", _fixed(page[name], KINDS[name])) for name in KINDS),
            *(
                Route(f"/{form.ability}", _asking(form, model, worker, config), methods=["POST"])
                for form, model in asked
                if model is not None
            ),
        ],
        middleware=[Middleware(Guard, own_names={config.host, "localhost", socket.gethostname()})],
        exception_handlers={
            Refusal: _refused,
            UserError: _unreadable,
            HTTPException: _misdirected,
            ClientDisconnect: _gone,
            Exception: _failed,
        },
    )


def _fixed(content: str, kind: str) -> Any:
    """An endpoint that always says the same."""

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint


def _asking(form: Form, model: "Pretrained", worker: Worker, config: AppConfig) -> Any:
    """An endpoint that answers what is asked about an uploaded photo, within the time that one request has."""
    limits = {"top_k": config.top_k, "max_pixels": config.max_megapixels * 10**6}

    async def endpoint(request: Request) -> Response:
        end = time.monotonic() + config.max_seconds
        with worker.place():
            upload = read_upload(request, config.max_megabytes * 10**6)
            try:
                photo, text = await asyncio.wait_for(upload, config.max_seconds)
            except asyncio.TimeoutError:
                raise Refusal(
                    504, f"the upload took longer than {config.max_seconds} s; send a smaller photo"
                ) from None
            work = partial(reply, form, model, photo, text, **limits)
            return JSONResponse(await worker.run(work, request, end - time.monotonic()))

    return endpoint


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return refusal(request, error.status, str(error))


async def _unreadable(request: Request, error: Exception) -> Response:
    return refusal(request, 422, str(error))


async def _misdirected(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refusal(request, error.status_code, f"{error.detail}: nothing takes {request.method} {request.url.path}")


async def _gone(request: Request, error: Exception) -> Response:
    return refusal(request, 400, "the visitor has hung up")


async def _failed(request: Request, error: Exception) -> Response:
    """uvicorn writes its traceback to the log."""
    return refusal(request, 500, "something went wrong here; the server's log says what")
