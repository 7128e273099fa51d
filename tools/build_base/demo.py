"""The demo style: OpenMoji's drawings of concepts that the base knows, as folders of PNG with metadata.jsonl."""

from __future__ import annotations

import json
from pathlib import Path

from . import concepts, drawings
from .concepts import Concept
from .drawings import DrawingSet

LICENCE = """\
The pictures in these folders are drawings of OpenMoji (https://openmoji.org), the open-source emoji and icon
project, licensed under CC BY-SA 4.0 (https://creativecommons.org/licenses/by-sa/4.0/). They were drawn at 64 x 64
pixels on white from the npm package {spec}; nothing else was changed.
"""


def write(folder: Path, known: list[Concept], openmoji: DrawingSet) -> None:
    """Write ``train`` and ``held_out`` below ``folder``, with the licence beside them."""
    train, held_out = concepts.demo_split(known)
    for name, part in (("train", train), ("held_out", held_out)):
        _write_part(folder / name, part, openmoji)
    (folder / "LICENSE.txt").write_text(LICENCE.format(spec=drawings.PACKAGES["openmoji"].spec))


def _write_part(folder: Path, part: list[Concept], openmoji: DrawingSet) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for concept in part:
        drawings.draw(openmoji.svg(concept.name)).save(folder / f"{concept.name}.png", optimize=True)
        rows.append({"file_name": f"{concept.name}.png", "text": f"{concept.caption}, {concepts.DEMO_TRIGGER}"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
