"""The page in a browser: the boxes of the legend work, nothing is asked of the network, no error shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def test_the_page_works_in_a_browser(browser, usual: Path, tmp_path: Path):
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    address = usual.with_suffix(".html").as_uri()
    page.goto(address)
    for name in ("missed", "false", "merged", "split", "right"):
        shown = page.locator(f"#gallery path.{name}")
        assert shown.count() and shown.first.is_visible()
        page.locator(f'[data-toggle="{name}"]').uncheck()
        assert not shown.first.is_visible()
    true = page.locator("#gallery path.true")
    assert true.count() == 3 and not true.first.is_visible()
    page.locator('[data-toggle="true"]').check()
    assert true.first.is_visible()
    picture = page.locator(".picture").first
    narrow = picture.bounding_box()["width"]
    picture.click()
    assert picture.bounding_box()["width"] > 1.5 * narrow
    assert page.evaluate("document.querySelector('#gallery img').naturalWidth") == 120
    # No text of a chart lies outside it, and the page is no wider than the window.
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    page.locator("#images summary").click()
    assert page.locator("#images table").is_visible()
    page.screenshot(path=str(tmp_path / "page.png"), full_page=True)
    pixels = np.asarray(Image.open(tmp_path / "page.png").convert("RGB"))
    assert pixels.shape[0] > 2000 and pixels.std() > 10
    assert errors == []
    assert [url for url in asked if not url.startswith("data:")] == [address]
    page.close()
