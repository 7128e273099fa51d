"""Write ``docs/events.md`` from the dataclasses of the events themselves."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from veneer.run.events import EVENTS

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
_HEAD = """\
# The events of a run

<!-- written by `python -m tools.reference`; a test says when it is out of date -->

`run.jsonl` in a run's folder has one JSON object a line, written when the event comes: `event`, its kind; `seconds`
since this process opened the log; and the fields below. A number that is not finite is `null`. What a killed process
wrote after its last checkpoint is removed when the run is resumed, which writes it anew.

`run_training(config, callback=function)` calls the function with the same events as objects, in about this order.
"""


_NAMES = {str: "text", Path: "text", int: "number", float: "number", bool: "true or false", type(None): "null"}


def page() -> str:
    """Return the whole page."""
    return "\n".join([_HEAD, *(_section(kind) for kind in EVENTS)])


def _section(kind: Any) -> str:
    text = inspect.getdoc(kind) or ""
    meaning = re.split(r"\n+(?:Attributes|Args):\n", text)[0].replace("``", "`")
    meanings, annotations = dict(_attributes(text)), get_type_hints(kind)
    rows = [
        f"| `{field.name}` | {_json_type(annotations[field.name])} | {meanings.get(field.name, '')} |"
        for field in fields(kind)
        if field.repr
    ]
    table = ["| field | type | |", "| --- | --- | --- |", *rows]
    return "\n".join([f"## {kind.__name__}\n", meaning, "", *table, ""])


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    """Yield names and meanings from the part ``Attributes:`` of a docstring, of which a meaning may span lines."""
    _, _, part = text.partition("Attributes:\n")
    for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", part, re.MULTILINE):
        yield name, " ".join(meaning.split()).replace("``", "`")


def _json_type(annotation: Any) -> str:
    """Return a type as JSON has it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(map(_json_type, parts)))
    if origin is Literal:
        return "text"
    if origin is tuple:
        return "list"
    return _NAMES.get(annotation, "object")
