"""The options of ``veneer adapter info``."""

from __future__ import annotations

from veneer.cli.options import AdapterFile
from veneer.cli.terminal.console import print_text

__all__ = ["info"]


def info(file: AdapterFile) -> None:
    """Print an adapter's format, ranks, strength and metadata."""
    from veneer.cli.terminal.tables import info_text
    from veneer.weights.file import info

    print_text(info_text(file, info(file)))
