"""The formats that adapters are written in, by name: the one table that a new format is entered in."""

from __future__ import annotations

from collections.abc import Mapping

from veneer.weights.formats.comfy import COMFY
from veneer.weights.formats.diffusers import DIFFUSERS
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.peft import PEFT
from veneer.weights.formats.protocol import Format

__all__ = ["FORMATS", "METADATA_KEYS"]

FORMATS: Mapping[str, Format] = {each.name: each for each in (DIFFUSERS, KOHYA, COMFY, PEFT)}
"""Each format by name."""
METADATA_KEYS = frozenset(key for each in FORMATS.values() for key in each.metadata_keys)
"""Keys of a file's metadata that belong to a format, not to the adapter."""
