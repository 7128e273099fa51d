"""Tables about an adapter file: its content, and what was verified of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from veneer.printable import in_one_line

if TYPE_CHECKING:
    from collections.abc import Sequence

    from veneer.verbs.verify import Check
    from veneer.weights.file import AdapterInfo

__all__ = ["checks_text", "info_text"]


def info_text(path: Path, info: AdapterInfo) -> str:
    """Return a table of an adapter file: layout, networks, ranks, alphas, sizes, hash and metadata."""
    rows = [
        ("file", str(path)),
        ("format", info.format),
        ("method", ", ".join(info.methods)),
        ("networks", ", ".join(info.networks) or "only its base can tell"),
        ("layers", f"{info.targets:,}"),
        *((name, ", ".join(f"{value:g}" for value in values)) for name, values in info.hyperparameters.items()),
        ("parameters", f"{info.parameters:,}"),
        ("bytes", f"{info.size_bytes:,}"),
        ("sha256", info.sha256),
        *sorted(info.metadata.items()),
    ]
    return _table(rows)


def checks_text(checks: Sequence[Check]) -> str:
    """Return a table of what was verified: ok, which hashes differ, or why nothing can be said."""
    return _table([(check.subject, _verdict(check)) for check in checks])


def _verdict(check: Check) -> str:
    if check.current is None:
        return f"not checked: {check.reason}"
    return f"differs: {check.recorded} is recorded, {check.current} is here" if check.differs else "ok"


def _table(rows: Sequence[tuple[str, str]]) -> str:
    shown = [(in_one_line(name), in_one_line(" ".join(value.split()))) for name, value in rows]
    width = max(len(name) for name, _ in shown)
    return "\n".join(f"{name.ljust(width)}  {value}" for name, value in shown)
