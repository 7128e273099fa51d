"""Write the table of methods in ``docs/adapters.md`` from the registry of methods and the table of their names."""

from __future__ import annotations

from pathlib import Path

from veneer.adapter.part_names import BIASED, PART_NAMES
from veneer.adapter.protocol import Method
from veneer.adapter.registry import METHODS

__all__ = ["PAGE", "SECTION", "formats_of", "table"]

PAGE = Path(__file__).parents[2] / "docs" / "adapters.md"
SECTION = "methods"
_COLUMNS = ("method", "read", "train", "merge, stack", "blend", "batch", "resize", "quantised base", "written as")
_FORMATS = {"diffusers": ("diffusers",), "kohya": ("kohya", "comfy"), "peft": ("peft",)}
"""The formats by the names that they write."""
_HIDDEN = (BIASED.method, "ia3_of_peft")
"""Methods that are another one's, written by another tool."""
_FORMAT = "`weights.method_not_in_format`"
_BLEND, _BATCH, _RESIZE = "`adapter.cannot_combine`", "`adapter.cannot_batch`", "`adapter.cannot_resize`"


def table() -> str:
    """Return the table: a row a method; a code says as what is refused what a method cannot do."""
    lines = ["| " + " | ".join(_COLUMNS) + " |", "| " + " | ".join("---" for _ in _COLUMNS) + " |"]
    lines += [f"| {' | '.join(_row(method))} |" for name, method in METHODS.items() if name not in _HIDDEN]
    return "\n".join(lines) + "\n"


def _row(method: Method) -> list[str]:
    is_exact = method.is_low_rank or method.name in ("full", "norm")
    blend = "yes" if is_exact else "with `--rank`" if method.is_additive else _BLEND
    return [
        f"{method.title} (`{method.name}`)",
        "yes",
        "no" if method.spec is None else "yes",
        "yes" if method.is_mergeable else "`adapter.cannot_merge`",
        blend,
        "yes" if method.is_low_rank else _BATCH,
        "yes" if method.is_low_rank else _RESIZE,
        "norms are not quantised" if method.name == "norm" else "yes",
        ", ".join(formats_of(method)) or ("LoRA's, as which it is read" if method.is_low_rank else _FORMAT),
    ]


def formats_of(method: Method) -> list[str]:
    """Return the formats that a method's adapters are written in."""
    names = PART_NAMES[method.name]
    formats = (format for naming, formats in _FORMATS.items() if naming in names.endings for format in formats)
    return [format for format in formats if format not in names.unread_by]
