"""How a picture was made, as A1111 writes it into files and Civitai reads it out of them."""

from __future__ import annotations

import json
from collections.abc import Mapping

from veneer import __version__
from veneer.sample.gallery import PictureNote

__all__ = ["PARAMETERS", "infotext"]

PARAMETERS = "parameters"
"""Key of the text in a PNG file."""


def infotext(
    note: PictureNote,
    size: tuple[int, int],
    *,
    adapter: str,
    adapter_hash: str,
    base: str,
    base_hash: str | None = None,
) -> str:
    """Return the text of a picture: the prompt, which calls the adapter, and a line of settings.

    Args:
        note: how it was painted.
        size: width and height in pixels.
        adapter: the adapter's name, of letters, digits, ``_``, ``-`` and ``.``: Civitai finds no other in a prompt.
        adapter_hash: its AutoV3.
        base: the base's name.
        base_hash: its AutoV2, where it is a single file.
    """
    prompt = " ".join(note.prompt.split())  # a line that begins with "Steps: " would be taken for the settings
    settings: Mapping[str, object] = {
        "Steps": note.steps,
        "Sampler": note.sampler,
        "CFG scale": f"{note.guidance:g}",
        "Seed": note.seed,
        "Size": f"{size[0]}x{size[1]}",
        "Model hash": base_hash,
        "Model": base,
        "Lora hashes": f"{adapter}: {adapter_hash.lower()}",
        "Version": f"veneer {__version__}",
    }
    line = ", ".join(f"{key}: {_quoted(str(value))}" for key, value in settings.items() if value is not None)
    return f"{prompt} <lora:{adapter}:{note.strength:g}>\n{line}"


def _quoted(text: str) -> str:
    """Return a value as A1111 quotes it (``modules/infotext_utils.py``)."""
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ",\n:") else text
