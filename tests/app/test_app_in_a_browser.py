"""The page in a real browser: Debian's Chromium, driven by Playwright, on the packaged model.

Waits are long, as the machine may be busy; none is waited out where all is well.
"""

from __future__ import annotations

import base64
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from causalfusion.app.opened import Opened
from causalfusion.app.request import AppRequest
from causalfusion.generate.read import to_picture

pytestmark = pytest.mark.slow
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = ("--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-sync")
PATIENCE = 240_000
"""Milliseconds."""
PROMPT = "a large red star"
EDITED = "a large red star above a small blue circle"


@pytest.fixture(scope="module")
def address(shapes: Opened) -> Iterator[str]:
    pytest.importorskip("gradio", reason="gradio is not installed (the extra `app`)")
    from causalfusion.app.serve import launch

    page = launch(shapes, AppRequest())
    yield page.local_url
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (the extra `dev`)")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium; apt-get install chromium")
    with api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", *QUIET])


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """A tab, which may ask no one but the page's own server."""
    asked: list[str] = []
    with browser.new_context(viewport={"width": 1280, "height": 900}) as context:
        tab = context.new_page()
        tab.set_default_timeout(PATIENCE)
        tab.on("request", lambda request: asked.append(request.url))
        yield tab
    elsewhere = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert asked and not elsewhere, "the page asks nobody else"


def opened(page: Any, address: str, query: str = "") -> None:
    page.goto(f"{address.rstrip('/')}/{query}")
    page.wait_for_selector("#cf-draw")


def drawn(page: Any, stage: str = "cf-draw", what: str = "picture") -> list[np.ndarray]:
    """The images, (H, W, 3) uint8, once they are finished."""
    page.wait_for_function(f"/{what}s? in/.test(document.querySelector('#{stage}-words')?.innerText)")
    return [image_at(tile) for tile in page.locator(f"#{stage}-stage img").all()]


def image_at(image: Any) -> np.ndarray:
    content = base64.b64decode(image.get_attribute("src").split(",")[1])
    return np.array(Image.open(io.BytesIO(content)).convert("RGB"))


def message(page: Any) -> str:
    """The line that the page shows for what went wrong."""
    toast = page.locator("[data-testid=toast-text]").first
    toast.wait_for()
    text = toast.inner_text().strip()
    page.locator("[data-testid=toast-close]").first.click()
    page.wait_for_function("!document.querySelector('[data-testid=toast-text]')")  # it fades away
    return text


def paint(page: Any, left: float, top: float, right: float, bottom: float) -> np.ndarray:
    """Move the brush within a box, in shares of the picture; (512, 512) bool of where there is paint then."""
    page.locator("#cf-painter canvas").scroll_into_view_if_needed()
    box = page.locator("#cf-painter canvas").bounding_box()

    def at(x: float, y: float) -> tuple[float, float]:
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    page.mouse.move(*at(left, top))
    page.mouse.down()
    for x, y in ((right, top), (right, bottom), (left, bottom), (left, top), (right, bottom)):
        page.mouse.move(*at(x, y), steps=8)
    page.mouse.up()
    painting = page.evaluate("document.querySelector('#cf-painter canvas').toDataURL('image/png')")
    return np.array(Image.open(io.BytesIO(base64.b64decode(painting.split(",")[1]))))[..., 3] > 0


def test_a_prompt_is_typed_and_pictures_come_and_the_link_gives_them_again(
    page: Any, address: str, shapes: Opened
):
    opened(page, address)
    page.locator("#cf-images input[type=number]").fill("2")
    page.locator(".cf-prompt textarea").first.fill(PROMPT)
    page.click("#cf-draw")
    pictures = drawn(page)
    expected = shapes.pipeline.generate(None, shapes.sampling, prompts=[PROMPT] * 2, seed=0)
    assert np.array_equal(pictures, shapes.pipeline.codec.to_uint8(expected))
    page.wait_for_function("document.querySelector('#cf-link textarea, #cf-link input')?.value")
    link = page.locator("#cf-link textarea, #cf-link input").input_value()
    assert link == page.url and "prompt=a+large+red+star" in link
    moment = page.locator("#cf-draw-moment input[type=range]")
    moment.fill("3")
    page.wait_for_function("document.querySelector('#cf-draw-words')?.innerText.startsWith('step 3 of 12')")
    assert not np.array_equal(image_at(page.locator("#cf-draw-stage img").first), pictures[0])
    page.goto("about:blank")
    page.goto(link)
    assert np.array_equal(drawn(page), pictures)
    assert page.locator(".cf-prompt textarea").first.input_value() == PROMPT


def test_a_mask_is_painted_and_the_picture_changes_only_inside_it(page: Any, address: str):
    opened(page, address, "?prompt=a+large+red+star&seed=1&pictures=2&steps=6")
    pictures = drawn(page)
    page.click("#cf-draw-stage .cf-tile[data-index='1']")
    page.wait_for_selector("#cf-draw-stage .cf-tile[data-index='1'].cf-chosen")
    page.click("#cf-to-change")
    page.wait_for_selector("#cf-painter canvas")
    assert np.array_equal(image_at(page.locator("#cf-painter img")), pictures[1])
    page.click("#cf-change")
    assert message(page).endswith("Nothing is painted; paint over the part of the picture that is to change")
    painted = paint(page, 0.2, 0.7, 0.6, 0.85)
    assert 0.05 < painted.mean() < 0.5
    page.locator(".cf-prompt textarea").nth(1).fill(EDITED)
    page.locator("#cf-variants input[type=number]").fill("3")
    page.click("#cf-change")
    variants = drawn(page, "cf-change", "variant")
    assert len(variants) == 3
    touched = painted.reshape(32, 16, 32, 16).any((1, 3))
    for variant in variants:
        assert np.array_equal(variant[~touched], pictures[1][~touched])
        assert not np.array_equal(variant[touched], pictures[1][touched])
    page.click("#cf-go-on")
    page.wait_for_function(
        "src => document.querySelector('#cf-painter img').src === src",
        arg=page.locator("#cf-change-stage img").first.get_attribute("src"),
    )


def test_a_picture_is_described(page: Any, address: str, shapes: Opened, tmp_path: Path):
    star = shapes.pipeline.generate(None, shapes.sampling, prompts=[PROMPT], seed=0)
    to_picture(shapes.pipeline.codec.to_uint8(star)[0]).save(tmp_path / "star.png")
    opened(page, address)
    page.get_by_role("tab", name="Describe").click()
    page.locator(".cf-upload input[type=file], input[type=file]").last.set_input_files(tmp_path / "star.png")
    said = shapes.pipeline.caption(star)[0]
    page.wait_for_function("said => document.querySelector('#cf-caption textarea').value === said", arg=said)
    assert "red star" in said


def test_what_is_given_wrong_is_one_line_and_a_failure_says_nothing_of_the_code(
    page: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    opened(page, address, "?prompt=x&pictures=99")
    assert message(page).endswith("The number of pictures is 99; expected 1 to 16")
    page.click("#cf-draw")
    assert message(page).endswith(
        "The description is empty; expected some words: say what the picture is to show"
    )
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    page.get_by_role("tab", name="Describe").click()
    page.locator("input[type=file]").last.set_input_files(tmp_path / "huge.png")
    assert "The picture huge.png has far too many pixels" in message(page)

    def fail(*_: object) -> None:
        raise RuntimeError("a secret of the code")

    monkeypatch.setattr("causalfusion.app.draw_tab.draw", fail)
    page.get_by_role("tab", name="Draw").click()
    page.locator(".cf-prompt textarea").first.fill(PROMPT)
    page.click("#cf-draw")
    assert message(page).endswith(
        "Something went wrong here; the terminal in which the page was started says what"
    )
    assert "secret" not in page.content() and "Traceback" not in page.content()
