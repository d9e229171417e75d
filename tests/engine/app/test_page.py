"""The page in a real browser."""

from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser_page
from tests.engine.app.asking import photo
from tests.engine.app.conftest import Serve


def test_a_photo_is_asked_about(serve: Serve, models: dict[str, Any], tmp_path: Path) -> None:
    """Also what a visitor writes is shown as text, a refusal as a line, and what was read over the picture."""
    port = serve([models["question_answering"]], max_megapixels=1, top_k=4)
    images = {"small.png": photo((90, 60)), "large.png": photo((1001, 1000))}
    for name, content in images.items():
        (tmp_path / name).write_bytes(content)
    with browser_page(color_scheme="dark") as visit:
        page, address = visit.page, f"http://127.0.0.1:{port}/"
        page.goto(address)
        question, button = page.get_by_role("textbox", name="Question"), page.get_by_role("button", name="Ask")
        assert page.get_by_role("button", name="Compare").is_disabled()
        question.fill("<img src=x onerror=alert(1)>")
        button.click()
        assert page.get_by_text("Choose a photo first.").is_visible()
        page.set_input_files("#photo", tmp_path / "small.png")
        page.wait_for_selector("#preview:not([hidden])")
        question.press("Enter")
        page.wait_for_selector("#seen:not([hidden])")
        cut = "only the first 18 of 26 word pieces were read"
        with pytest.warns(UserWarning, match=cut):
            expected = models["question_answering"].answer(images["small.png"], question.input_value(), top_k=4)
        assert page.get_by_text(cut).is_visible()
        shown = [f"{answer} {100 * likely:.1f} %" for answer, likely in expected]
        rows = page.locator("form table tr").all_inner_texts()
        assert [" ".join(row.split()) for row in rows] == shown
        assert page.get_by_text("It read 5 of 6 cells").is_visible()
        marked = page.evaluate("canvas.toDataURL()")
        page.get_by_label("Show the cells").uncheck()
        assert page.evaluate("canvas.toDataURL()") != marked
        page.screenshot(path=tmp_path / "page.png", full_page=True)
        assert visit.errors == []
        page.set_input_files("#photo", tmp_path / "large.png")
        button.click()
        assert page.get_by_text("the photo has more than 1 megapixel").text_content()
        assert visit.requests == [address + part for part in ("", "page.css", "page.js", "answer", "answer")]
