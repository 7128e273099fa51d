"""The tool that takes pictures of pages, as far as no browser is needed for it."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
from PIL import Image

from tests.errors import raises_code
from tests.reports import Page
from tools.screenshots import __main__ as screenshots


def test_markdown_is_shown_with_its_tables_and_pictures(tmp_path: Path) -> None:
    page = tmp_path / "study & more.md"
    page.write_text("# Häuser\n\n![plot](study/rank.png)\n\n| a | b |\n| --- | --- |\n| 1 | < |\n", "utf-8")
    with screenshots.serve(page) as url:
        shown = Page(Path(unquote(urlparse(url).path)).read_text("utf-8").replace("<!doctype html>", ""))
    assert [tag["src"] for tag in shown.of("img")] == ["study/rank.png"] and len(shown.of("td")) == 2
    assert shown.of("base") == [{"href": f"{tmp_path.as_uri()}/"}] and "Häuser" in shown.text


def test_html_is_shown_as_it_is(tmp_path: Path) -> None:
    with screenshots.serve(tmp_path / "report.html") as url:
        assert url == (tmp_path / "report.html").as_uri()


def test_a_picture_is_made_small_and_keeps_its_looks() -> None:
    shades = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    content = io.BytesIO()
    Image.fromarray(np.stack([shades, shades, 255 - shades], axis=-1)).save(content, "PNG")
    small = Image.open(io.BytesIO(screenshots.shrink(content.getvalue()))).convert("RGB")
    assert np.abs(np.asarray(small)[..., 0].astype(int) - shades).max() <= 4


def test_a_page_that_needs_others_or_does_not_fit_is_refused(tmp_path: Path) -> None:
    screenshots._check(tmp_path, ["file:///a.html", "data:image/png;base64,"], 390, 390)
    with raises_code("screenshots.external_request") as caught:
        screenshots._check(tmp_path, ["file:///a.html", "https://a.b/c.js"], 390, 390)
    assert "requests https://a.b/c.js; a page must bring all it needs" in str(caught.value)
    with raises_code("screenshots.too_wide") as caught:
        screenshots._check(tmp_path, [], 500, 390)
    assert "is 500 pixels wide in a window of 390" in str(caught.value)
