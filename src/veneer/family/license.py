"""The licence of a base, where it is known."""

from __future__ import annotations

from veneer.family.registry import BUNDLED
from veneer.files import user_path
from veneer.weights.licenses import License, license_of

__all__ = ["base_license"]


def base_license(base: str) -> License | None:
    """Return the licence of a base; of what is on this machine under a hub id's name it is not known.

    Args:
        base: ``bundled``, a folder, a file, or a hub id.
    """
    return None if base != BUNDLED and user_path(base).exists() else license_of(base)
