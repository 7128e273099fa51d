"""Explain what is wrong with a config in one line: the place, the whole key, the fault, and what to write instead."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from veneer.config.document import Key
from veneer.config.keys import describe, dotted, nearest, section_at
from veneer.config.spellings import MAIN_KEYS
from veneer.errors import UserError

__all__ = ["explain"]

_SHOULD_BE: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "int_type": lambda context: "a whole number",
    "int_parsing_size": lambda context: "a smaller number",
    "float_type": lambda context: "a number",
    "finite_number": lambda context: "a finite number",
    "string_type": lambda context: "text",
    "bool_type": lambda context: "true or false",
    "tuple_type": lambda context: "a list",
    "model_type": lambda context: "a section with keys of its own",
    "is_instance_of": lambda context: "a path",
    "literal_error": lambda context: str(context["expected"]),
    "greater_than": lambda context: f"greater than {context['gt']:g}",
    "greater_than_equal": lambda context: f"at least {context['ge']:g}",
    "less_than": lambda context: f"less than {context['lt']:g}",
    "less_than_equal": lambda context: f"at most {context['le']}",
    "too_short": lambda context: "a list that is not empty",
}
_MAX_KEYS = 20
"""Other faulty keys that a message names, at most."""
_MAX_LENGTH = 60
"""Characters of a value that a message shows, at most."""
_CODES = {"extra_forbidden": "config.unknown_key", "missing": "config.missing_key"}


def explain(error: ValidationError, origin: str, places: Mapping[Key, str]) -> UserError:
    """Return one line for a validation's first fault, which names the other faulty keys too.

    Args:
        error: what the schema found.
        origin: names the whole config where a key has no place of its own.
        places: where each key was set, e.g. ``style.yaml:12``.
    """
    # a mistyped name that was required is two faults: the unknown key tells more than the missing one
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    keys = [_key(fault["loc"]) for fault in faults]
    what, remedy = _explain_first(faults[0], keys[0])
    others = _others(keys)
    if others:
        more = f" and {len(others) - _MAX_KEYS:,} more" if len(others) > _MAX_KEYS else ""
        what += f" (also wrong: {', '.join(map(dotted, others[:_MAX_KEYS]))}{more})"
    code = _CODES.get(faults[0]["type"], "config.invalid_value")
    return UserError(what, code=code, where=_where(keys[0], origin, places), remedy=remedy)


def _others(keys: Sequence[Key]) -> list[Key]:
    """Return the faulty keys after the first, each once.

    Those that only echo a fault deeper down are left out: a list with a faulty element is called too short as well.
    """
    above = {key[:length] for key in keys for length in range(len(key))}
    return [key for key in dict.fromkeys(keys) if key != keys[0] and key not in above]


def _key(location: tuple[int | str, ...]) -> Key:
    """Return a validator's location without the names of union branches, which no user wrote."""
    key: list[int | str] = []
    for part in location:
        if isinstance(part, str) and part.startswith("<"):  # a branch of a union with a section
            continue
        if isinstance(part, int) or section_at(tuple(key)) is not None:
            key.append(part)
    return tuple(key)


def _where(key: Key, origin: str, places: Mapping[Key, str]) -> str:
    """Return the whole key, and where it, else the nearest section around it, was set."""
    around = (key[:length] for length in range(len(key), 0, -1))
    place = next((places[part] for part in around if part in places), origin)
    name = dotted(key)
    # an override such as train.max_steps=ten names its key already
    return place if not name or place.startswith(f"{name}=") else f"{place}: {name}"


def _explain_first(fault: ErrorDetails, key: Key) -> tuple[str, str | None]:
    """Return what is wrong with a key and what to do about it."""
    kind, context, value = fault["type"], fault.get("ctx", {}), fault["input"]
    if kind == "extra_forbidden":
        meant = nearest(key)
        return "no such key", f"did you mean {meant}?" if meant else None
    if kind == "missing":
        return "missing", describe(key) or None
    if kind == "value_error":
        return str(context["error"]), None
    if kind not in _SHOULD_BE:
        return fault["msg"], None
    return f"is {_as_text(value)}, but should be {_SHOULD_BE[kind](context)}", _remedy(kind, key, context, value)


def _remedy(kind: str, key: Key, context: Mapping[str, Any], value: Any) -> str | None:
    if kind == "string_type" and value is None:
        return 'text that starts with # needs quotes in YAML: "#ff0000"'
    if kind == "string_type" and isinstance(value, (int, float)):
        return f'put it in quotes: "{_as_text(value)}"'
    if kind == "model_type" and isinstance(value, str) and dotted(key) in MAIN_KEYS:
        return f"set {MAIN_KEYS[dotted(key)]}"
    if kind == "tuple_type" and not isinstance(value, (dict, type(None))):
        return f"write [{value}]"
    if kind == "literal_error":
        choices = [part.strip("' ") for part in str(context["expected"]).replace(" or ", ",").split(",")]
        close = difflib.get_close_matches(str(value), choices, n=1)
        return f"did you mean {close[0]}?" if close else None
    return None


def _as_text(value: Any) -> str:
    """Return a value as YAML would have it, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _MAX_LENGTH else text[: _MAX_LENGTH - 3] + "..."
