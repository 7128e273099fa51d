"""Take a picture of a page as a browser shows it: of a report, or of one of the documents.

python -m tools.screenshots runs/report/report.html docs/report-light.png
python -m tools.screenshots runs/report/report.html docs/report-dark.png --dark
python -m tools.screenshots runs/report/report.html docs/report-phone.png --width 390 --scale 2 --height 1400
python -m tools.screenshots docs/study.md study.png

It wants Chromium on the machine and ``pip install playwright``. The page is shown without a network: one that asks for
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

__all__ = ["Shot", "main", "shrunk", "take", "webpage"]

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
class Shot:
    """How a page is shown.

    Attributes:
        width: of the window, in CSS pixels.
        height: of the picture from the top, in the same; None: the whole page.
        scale: pixels of the picture a CSS pixel.
        dark: as to those who prefer dark.
    """

    width: int = 1200
    height: int | None = None
    scale: float = 1.0
    dark: bool = False


def take(page: Path, shot: Shot) -> bytes:
    """The picture, as PNG.

    Raises:
        UserError: there is no browser, or the page asks for something from elsewhere.
    """
    from playwright.sync_api import sync_playwright

    browser = next((found for name in _BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        raise UserError("there is no Chromium on this machine", remedy="apt-get install chromium")
    asked: list[str] = []
    with sync_playwright() as playwright, webpage(page) as url:
        window = playwright.chromium.launch(executable_path=browser, args=list(_FLAGS))
        view = window.new_page(
            viewport={"width": shot.width, "height": shot.height or 900},
            device_scale_factor=shot.scale,
            color_scheme="dark" if shot.dark else "light",
            offline=True,
        )
        view.on("request", lambda request: asked.append(request.url))
        view.goto(url, wait_until="load")
        wide = int(view.evaluate("document.documentElement.scrollWidth"))
        picture = bytes(view.screenshot(full_page=shot.height is None))
        window.close()
    _check(page, asked, wide, shot.width)
    return picture


def _check(page: Path, asked: list[str], wide: int, width: int) -> None:
    elsewhere = [url for url in asked if not url.startswith(("file:", "data:"))]
    if elsewhere:
        raise UserError(f"asks for {elsewhere[0]}", where=page, remedy="a page must bring all it needs")
    if wide > width:
        raise UserError(
            f"is {wide} pixels wide in a window of {width}", where=page, remedy="let its parts wrap or scroll"
        )


@contextmanager
def webpage(page: Path) -> Iterator[str]:
    """The address of a page; Markdown is made HTML for the while, beside the pictures that it names."""
    if page.suffix != ".md":
        yield page.resolve().as_uri()
        return
    body = MarkdownIt("commonmark").enable("table").render(page.read_text("utf-8"))
    title, base = html.escape(page.stem), html.escape(page.resolve().parent.as_uri(), quote=True)
    head = f'<meta charset="utf-8"><base href="{base}/"><title>{title}</title><style>{_STYLE}</style>'
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / f"{page.stem}.html"
        made.write_text(f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>', "utf-8")
        yield made.as_uri()


def shrunk(picture: bytes) -> bytes:
    """The same in 256 colours, which is enough for a page and a third of the bytes."""
    with Image.open(io.BytesIO(picture)) as image:
        few = image.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    content = io.BytesIO()
    few.save(content, "PNG", optimize=True)
    return content.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Take one picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, help="an .html or .md file")
    parser.add_argument("picture", type=Path, help="the .png to write")
    parser.add_argument("--width", type=int, default=Shot.width, help="of the window; a phone's is 390")
    parser.add_argument("--height", type=int, help="of the picture from the top; default: the whole page")
    parser.add_argument("--scale", type=float, default=Shot.scale, help="pixels of the picture a pixel of the page")
    parser.add_argument("--dark", action="store_true", help="as to those who prefer dark")
    told = parser.parse_args(arguments)
    try:
        picture = shrunk(take(told.page, Shot(told.width, told.height, told.scale, told.dark)))
        atomic_write(told.picture, picture)
    except UserError as mistake:
        sys.exit(f"error: {mistake}")
    print(f"{told.picture}: {len(picture):,} bytes")


if __name__ == "__main__":
    main()
