"""Where the files of a run's base are."""

from __future__ import annotations

from pathlib import Path

import veneer.base
from veneer.family.registry import BUNDLED
from veneer.files import user_path

__all__ = ["base_folder"]


def base_folder(base: str) -> Path:
    """Return the path that a configuration's ``base`` names; it need not exist."""
    return veneer.base.path() if base == BUNDLED else user_path(base)
