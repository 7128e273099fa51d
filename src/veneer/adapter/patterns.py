"""Patterns of layers' paths, as users write them: whole levels of a path, with ``*`` for any characters."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Collection

from veneer.errors import UserError

__all__ = ["matching"]


def matching(pattern: str, paths: Collection[str]) -> list[str]:
    """Return the paths that a pattern matches, in their order.

    A pattern stands for one or more whole levels anywhere in a path: ``down_blocks.1`` is in
    ``network.down_blocks.1.attentions.0.proj_in``, and not in ``network.down_blocks.10.attentions.0.proj_in``. ``*``,
    ``?`` and ``[...]`` are as in file names; ``*`` passes over dots.

    Raises:
        UserError: it matches none of them.
    """
    levels = fnmatch.translate(pattern.strip(".")).removesuffix(r"\Z").removesuffix(r"\z")
    search = re.compile(rf"(?:.*\.)?{levels}(?:\..*)?", re.DOTALL)
    found = [path for path in paths if search.fullmatch(path)]
    if not found:
        what = f"no layer of the adapter is matched by {pattern!r}"
        remedy = f"its layers have names such as {', '.join(_nearest(pattern.strip('.'), paths))}"
        raise UserError(what, code="adapter.no_layer_matches", remedy=remedy)
    return found


def _nearest(pattern: str, paths: Collection[str]) -> list[str]:
    """Return up to three parts of the paths, of as many levels, that a mistyped pattern may have meant."""
    depth = pattern.count(".") + 1
    levels = [path.split(".") for path in paths]
    parts = {".".join(each[start : start + depth]) for each in levels for start in range(len(each) - depth + 1)}
    near = difflib.get_close_matches(pattern, sorted(parts), n=3, cutoff=0.4)
    return near or sorted({each[-1] if not each[-1].isdigit() else ".".join(each[-2:]) for each in levels})[:5]
