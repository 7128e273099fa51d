"""Take a screenshot of a page: a report, or one of the documents.

python -m tools.screenshots runs/report/report.html docs/report-light.png
python -m tools.screenshots runs/report/report.html docs/report-dark.png --dark
python -m tools.screenshots runs/report/report.html docs/report-phone.png --width 390 --scale 2 --height 1400
python -m tools.screenshots docs/study.md study.png

It needs Chromium on the machine and ``pip install playwright``. The page is shown without a network: one that requests
anything from elsewhere is refused.
"""

from __future__ import annotations

import argparse
import html
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from PIL import Image

from veneer.errors import UserError
from veneer.files import atomic_write

__all__ = ["Viewport", "main", "serve", "shrink", "take_screenshot"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
_STYLE = """
:root { color-scheme: light dark; }
body { margin: 2rem auto; max-width: 60rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
table { border-collapse: collapse; } th, td { padding: .3rem .7rem; border: 1px solid #8886; }
pre { overflow-x: auto; padding: .8rem; background: #8882; } img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Viewport:
    """How a page is shown and how much of it is taken.

    Attributes:
        width: width of the window, in CSS pixels.
        height: height of the picture from the top, in CSS pixels; None: the whole page.
        scale: pixels of the picture in a CSS pixel.
        dark: whether the reader prefers dark colours.
    """

    width: int = 1200
    height: int | None = None
    scale: float = 1.0
    dark: bool = False


def take_screenshot(page: Path, viewport: Viewport) -> bytes:
    """Return the screenshot as PNG.

    Raises:
        UserError: there is no browser, or the page requests something from elsewhere, or it is too wide.
    """
    from playwright.sync_api import sync_playwright

    browser = next((path for name in _BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        remedy = "apt-get install chromium"
        raise UserError("there is no Chromium on this machine", code="screenshots.no_browser", remedy=remedy)
    requested: list[str] = []
    with sync_playwright() as playwright, serve(page) as url:
        window = playwright.chromium.launch(executable_path=browser, args=list(_FLAGS))
        view = window.new_page(
            viewport={"width": viewport.width, "height": viewport.height or 900},
            device_scale_factor=viewport.scale,
            color_scheme="dark" if viewport.dark else "light",
            offline=True,
        )
        view.on("request", lambda request: requested.append(request.url))
        view.goto(url, wait_until="load")
        page_width = int(view.evaluate("document.documentElement.scrollWidth"))
        picture = bytes(view.screenshot(full_page=viewport.height is None))
        window.close()
    _check(page, requested, page_width, viewport.width)
    return picture


def _check(page: Path, requested: list[str], page_width: int, width: int) -> None:
    elsewhere = [url for url in requested if not url.startswith(("file:", "data:"))]
    if elsewhere:
        what, remedy = f"requests {elsewhere[0]}", "a page must bring all it needs"
        raise UserError(what, code="screenshots.external_request", where=page, remedy=remedy)
    if page_width > width:
        what, remedy = f"is {page_width} pixels wide in a window of {width}", "let its parts wrap or scroll"
        raise UserError(what, code="screenshots.too_wide", where=page, remedy=remedy)


@contextmanager
def serve(page: Path) -> Iterator[str]:
    """Yield the address of a page; Markdown is made HTML for the while, with its folder as base of relative names."""
    if page.suffix != ".md":
        yield page.resolve().as_uri()
        return
    body = MarkdownIt("commonmark").enable("table").render(page.read_text("utf-8"))
    title, base = html.escape(page.stem), html.escape(page.resolve().parent.as_uri(), quote=True)
    head = f'<meta charset="utf-8"><base href="{base}/"><title>{title}</title><style>{_STYLE}</style>'
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{page.stem}.html"
        file.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>', "utf-8")
        yield file.as_uri()


def shrink(picture: bytes) -> bytes:
    """Return a PNG in 256 colours, which is enough for a page and takes a third of the bytes."""
    with Image.open(io.BytesIO(picture)) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    content = io.BytesIO()
    few.save(content, "PNG", optimize=True)
    return content.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Take one screenshot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="an .html or .md file")
    parser.add_argument("picture", type=Path, help="the .png to write")
    parser.add_argument("--width", type=int, default=Viewport.width, help="of the window; a phone's is 390")
    parser.add_argument("--height", type=int, help="of the picture from the top; default: the whole page")
    parser.add_argument("--scale", type=float, default=Viewport.scale, help="pixels of the picture a pixel of the page")
    parser.add_argument("--dark", action="store_true", help="in dark colours")
    options = parser.parse_args(arguments)
    try:
        viewport = Viewport(options.width, options.height, options.scale, options.dark)
        picture = shrink(take_screenshot(options.page, viewport))
        atomic_write(options.picture, picture)
    except UserError as error:
        sys.exit(f"error: {error}")
    print(f"{options.picture}: {len(picture):,} bytes")


if __name__ == "__main__":
    main()
