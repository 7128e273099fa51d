"""The bundled base model and the demo pictures; their licences lie beside them."""

from __future__ import annotations

from pathlib import Path

__all__ = ["demo_path", "path"]

_HERE = Path(__file__).parent


def path() -> Path:
    """Return the folder of the bundled base, in diffusers' layout."""
    return _HERE / "model"


def demo_path() -> Path:
    """Return a folder with ``train`` (160 pictures) and ``held_out`` (64 of other things) in OpenMoji's style."""
    return _HERE / "demo"
