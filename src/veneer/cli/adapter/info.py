"""The options of ``veneer adapter info``."""

from __future__ import annotations

from veneer.cli.options import AdapterFile

__all__ = ["info"]


def info(file: AdapterFile) -> None:
    """Print an adapter's format, ranks, strength and metadata."""
    from veneer.cli.terminal.tables import info_text
    from veneer.weights.file import info

    print(info_text(file, info(file)))
