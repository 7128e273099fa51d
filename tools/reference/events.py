"""``docs/events.md``, from the dataclasses of the events themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from veneer.run.events import EVENTS

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
_HEAD = """\
# The events of a run

<!-- written by `python -m tools.reference`; a test says when it is out of date -->

`run.jsonl` in a run's folder has one JSON object a line, written when the event comes: `event`, its kind; `seconds`
since this process opened the log; and the fields below. A number that is not finite is `null`. What a killed process
told after its last checkpoint is removed when the run is resumed, which tells it anew.

`run_training(config, callback=function)` calls the function with the same events as objects, in about this order.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_HEAD, *(_section(kind) for kind in EVENTS)])


def _section(kind: Any) -> str:
    text = inspect.getdoc(kind) or ""
    meaning = re.split(r"\n+(?:Attributes|Args):\n", text)[0].replace("``", "`")
    told = dict(_attributes(text))
    shown = [field for field in fields(kind) if field.repr]
    rows = [f"| `{field.name}` | {_plain(field.type)} | {told.get(field.name, '')} |" for field in shown]
    table = ["| field | type | |", "| --- | --- | --- |", *rows]
    return "\n".join([f"## {kind.__name__}\n", meaning, "", *table, ""])


def _attributes(text: str) -> Iterator[tuple[str, str]]:
    """Names and meanings from the part ``Attributes:`` of a docstring, of which a meaning may span lines."""
    _, _, part = text.partition("Attributes:\n")
    for name, meaning in re.findall(r"^    (\w+): (.*(?:\n {8,}.*)*)", part, re.MULTILINE):
        yield name, " ".join(meaning.split()).replace("``", "`")


def _plain(annotation: object) -> str:
    """A type as JSON has it."""
    name = str(annotation)
    if name.startswith("Mapping"):
        return "object"
    if name.startswith("tuple"):
        return "list"
    known = {"str": "text", "Path": "text", "int": "number", "float": "number", "bool": "true or false"}
    parts = [known.get(part, "object") for part in name.split(" | ") if part != "None"]
    return " or ".join([*parts, *(["null"] if "None" in name else [])])
