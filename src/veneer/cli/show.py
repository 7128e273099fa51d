"""What is printed about files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from veneer.weights.file import AdapterInfo

__all__ = ["info_text"]


def info_text(path: Path, info: AdapterInfo) -> str:
    """A table of an adapter file: layout, networks, ranks, alphas, sizes, hash and metadata."""
    rows = [
        ("file", str(path)),
        ("layout", info.layout),
        ("networks", ", ".join(info.networks) or "only its base can tell"),
        ("layers", f"{info.targets:,}"),
        ("rank", ", ".join(map(str, info.ranks))),
        ("alpha", ", ".join(f"{alpha:g}" for alpha in info.alphas)),
        ("parameters", f"{info.parameters:,}"),
        ("bytes", f"{info.size_bytes:,}"),
        ("sha256", info.sha256),
        *sorted(info.metadata.items()),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{name.ljust(width)}  {' '.join(value.split())}" for name, value in rows)
