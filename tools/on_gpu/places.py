"""The files that the prepared run consists of."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DRAWINGS", "MACHINE", "PACK", "ROOT", "SITE", "WEIGHTS", "WEIGHTS_FOLDER"]

ROOT = Path(__file__).parents[2]
MACHINE = Path(__file__).with_name("machine.txt")
"""What the machine has."""
PACK = ROOT / ".wheels"
"""The ignored folder that travels beside the files that git knows."""
SITE, WEIGHTS = PACK / "site.tar.xz", PACK / "weights.tar.xz"
DRAWINGS = PACK / "drawings"
"""Packages of drawings, of which a base is made."""
WEIGHTS_FOLDER = ROOT / "src" / "veneer" / "base" / "model"
