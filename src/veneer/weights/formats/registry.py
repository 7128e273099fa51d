"""The formats of adapter files by name: the one table that a new format is entered in."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from veneer.weights.formats.attn_processor import ATTN_PROCESSOR
from veneer.weights.formats.diffusers import DIFFUSERS
from veneer.weights.formats.kohya import KOHYA
from veneer.weights.formats.peft import PEFT
from veneer.weights.formats.protocol import Format

__all__ = ["FORMATS", "METADATA_KEYS", "format_of"]

FORMATS: Mapping[str, Format] = {each.name: each for each in (PEFT, KOHYA, ATTN_PROCESSOR, DIFFUSERS)}
"""Each format by name, in the order in which they are tried on a file."""
METADATA_KEYS = frozenset(key for each in FORMATS.values() for key in each.metadata_keys)
"""Keys of a file's metadata that belong to a format, not to the adapter."""


def format_of(names: Collection[str]) -> Format:
    """Return the format that tensors of these names are of; diffusers', which names what it lacks, if of none."""
    return next((each for each in FORMATS.values() if each.detects(names)), DIFFUSERS)
