"""A page in a real browser, Debian's chromium: what it says of a page, and what a page asks for."""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

INSIDE = ("data:", "blob:", "about:")  # what a page brings with it


@dataclass
class Visit:
    """A tab, and what has happened in it so far."""

    page: "Page"
    errors: list[str] = field(default_factory=list)  # of the page's scripts, and those that the console shows
    requests: list[str] = field(default_factory=list)  # addresses, in their order, without what the page brings


@contextlib.contextmanager
def browser_page(**options: Any) -> Iterator[Visit]:
    """A tab of a browser of its own; skips the test where there is none.

    Args:
        options: of playwright's `new_page`, such as `color_scheme="dark"` or `viewport={"width": 390, "height": 800}`.
    """
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright isn't installed: pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        visit = Visit(browser.new_page(**options))
        visit.page.on("pageerror", lambda error: visit.errors.append(str(error)))
        visit.page.on("console", lambda said: visit.errors.append(said.text) if said.type == "error" else None)
        visit.page.on(
            "request", lambda asked: None if asked.url.startswith(INSIDE) else visit.requests.append(asked.url)
        )
        yield visit
        browser.close()
