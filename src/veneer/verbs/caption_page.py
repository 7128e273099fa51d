"""Write a page that shows pictures beside their captions, to look them over; it holds all that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment

from veneer.config.colour import rgb
from veneer.data.location import Location
from veneer.files import atomic_write
from veneer.printable import printable
from veneer.verbs.data_caption import CaptionedFolder, CaptionedPicture
from veneer.verbs.thumbnail import thumbnail

__all__ = ["write_caption_page"]

_SIDE = 320  # pixels of a thumbnail
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Captions of {{ folder }}</title>
<style>
  :root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
  body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; }
  h1 { font-size: 1.3rem; overflow-wrap: anywhere; }
  main { align-items: start; display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
  figure { border: 1px solid color-mix(in srgb, currentColor 25%, transparent); border-radius: .4rem; margin: 0; }
  figure.bad { border: 2px solid #c2410c; }
  img { display: block; margin: auto; max-width: 100%; max-height: 15rem; }
  figcaption { padding: .6rem; overflow-wrap: anywhere; }
  figcaption p { margin: 0 0 .4rem; }
  small { opacity: .75; }
</style>
<h1>Captions of {{ folder }}</h1>
<p>{{ pictures | length }} pictures, {{ without }} without a caption{{ ',' if repeated }}
{% if repeated %} {{ repeated }} with the caption of another one{% endif %}.</p>
<main>
{% for one in pictures %}
<figure{% if not one.captions %} class="bad"{% endif %}>
  {% if one.thumbnail %}<img src="{{ one.thumbnail }}" alt="" loading="lazy">{% endif %}
  <figcaption>
    {% for caption in one.captions %}<p>{{ caption }}</p>{% endfor %}
    {% if one.fault %}<p><strong>{{ one.fault }}</strong></p>
    {% elif not one.captions %}<p><strong>no caption</strong></p>{% endif %}
    <small>{{ one.name }}{% if one.is_new %} (new){% endif %}</small>
  </figcaption>
</figure>
{% endfor %}
</main>
</html>
"""


@dataclass(frozen=True)
class _Figure:
    """A picture as the page has it."""

    name: str
    captions: tuple[str, ...]
    fault: str | None
    is_new: bool
    thumbnail: str | None


def write_caption_page(path: Path, folder: Path, captioned: CaptionedFolder) -> None:
    """Write a page of all pictures of a folder with their captions; those without one are marked.

    Args:
        path: of the page.
        folder: of the pictures.
        captioned: what is shown.

    Raises:
        UserError: the page cannot be written.
    """
    pictures = [_figure(one, folder) for one in captioned.pictures]
    captions = [one.captions for one in pictures if one.captions]
    page = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    text = page.render(
        folder=folder,
        pictures=pictures,
        without=sum(not one.captions for one in pictures),
        repeated=len(captions) - len(set(captions)),
    )
    atomic_write(path, printable(text).encode())


def _figure(one: CaptionedPicture, folder: Path) -> _Figure:
    small = thumbnail(Location(one.path), rgb("white"), _SIDE)
    return _Figure(str(one.path.relative_to(folder)), one.captions, one.fault, one.is_new, small)
