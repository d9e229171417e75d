"""The one thread that computes, so that who sends and who waits is still served meanwhile."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from engine.app.upload import Refusal

MOST_VISITORS = 16  # who upload, wait, or are being answered

T = TypeVar("T")


class Worker:
    """Answers one request after the other."""

    def __init__(self) -> None:
        self.thread = ThreadPoolExecutor(max_workers=1)
        self.visitors = 0

    @contextmanager
    def place(self) -> Iterator[None]:
        """A place among those who are served, and whose uploads are kept.

        Raises:
            Refusal: if all are taken.
        """
        if self.visitors >= MOST_VISITORS:
            raise Refusal(503, f"busy: {self.visitors} others are being served; try again in a moment")
        self.visitors += 1
        try:
            yield
        finally:
            self.visitors -= 1

    async def run(self, work: Callable[[], T], request: Request, seconds: float) -> T:
        """What `work` gives, or raises. It isn't begun any more once its time is over or its visitor has hung up.

        Raises:
            Refusal: if that takes longer.
            ClientDisconnect: if the visitor has hung up.
        """
        job = self.thread.submit(work)
        answer, gone = asyncio.wrap_future(job), asyncio.ensure_future(request.receive())
        both: set[asyncio.Future[Any]] = {answer, gone}
        try:
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            if job.running():
                raise Refusal(504, "the answer took too long; try a smaller photo")
            raise Refusal(503, "busy: others were first; try again in a moment")
        finally:
            gone.cancel()
            job.cancel()  # at once: `answer` tells it only when the loop comes round, and the thread may be free before
            answer.cancel()
