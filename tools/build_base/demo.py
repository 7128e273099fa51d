"""The demo style: OpenMoji's drawings of concepts that the base knows, as folders of PNG with metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from . import concepts, drawings
from .concepts import Concept
from .drawings import DrawingSet

LICENCE = """\
The pictures in these folders are drawings of OpenMoji (https://openmoji.org), the open-source emoji and icon
project, licensed under CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). They were drawn at {px} x {px}
pixels on white from the npm package {spec}; nothing else was changed.
"""


# one character in five moods, to teach a subject with
SUBJECT = (
    "grinning-cat",
    "cat-with-tears-of-joy",
    "smiling-cat-with-heart-eyes",
    "cat-with-wry-smile",
    "crying-cat",
)
SUBJECT_CAPTION = "a mikesch cat face emoji"  # the class, which the base knows, and a name that it does not


def write(folder: Path, known: list[Concept], openmoji: DrawingSet, pixels: int) -> None:
    """Write ``train``, ``held_out`` and ``subject`` below ``folder``, with the licence beside them."""
    train, held_out = concepts.demo_split(known)
    for name, part in (("train", train), ("held_out", held_out)):
        captioned = {c.name: c.caption for c in part}  # no trigger: the style is the adapter itself
        _write_part(folder / name, captioned, openmoji, pixels)
    _write_part(folder / "subject", dict.fromkeys(SUBJECT, SUBJECT_CAPTION), openmoji, pixels)
    (folder / "LICENSE.txt").write_text(LICENCE.format(spec=drawings.PACKAGES["openmoji"].spec, px=pixels))


def _write_part(folder: Path, captions: dict[str, str], openmoji: DrawingSet, pixels: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, caption in captions.items():
        drawings.draw(openmoji.svg(name), pixels).save(folder / f"{name}.png", optimize=True)
        rows.append({"file_name": f"{name}.png", "text": caption})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
