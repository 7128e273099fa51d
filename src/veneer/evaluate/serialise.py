"""Dataclasses as plain values, as JSON has them, and back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

__all__ = ["from_plain", "to_plain"]

T = TypeVar("T")
_OPEN = {"low": -math.inf, "high": math.inf}
"""JSON has no infinity: an interval's open end is null there, and this here."""


def to_plain(value: Any) -> Any:
    """Dataclasses to mappings, tuples to lists, numbers that are not finite to None; the rest stays."""
    if is_dataclass(value):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, tuple):
        return [to_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def from_plain(kind: type[T], value: Mapping[str, Any]) -> T:
    """A dataclass from what ``to_plain`` made of it; keys that it does not have, as a log's line has, are passed over.

    Raises:
        KeyError: a key is missing that has no default.
    """
    hints = get_type_hints(kind)
    named = {field.name: hints[field.name] for field in _fields(kind)}
    given = {name: _read(hint, value[name], name) for name, hint in named.items() if name in value}
    if missing := sorted(_required(kind) - given.keys()):
        raise KeyError(missing[0])
    return kind(**given)


def _fields(kind: Any) -> tuple[Field[Any], ...]:
    return fields(kind)


def _required(kind: Any) -> set[str]:
    return {each.name for each in _fields(kind) if each.default is MISSING and each.default_factory is MISSING}


def _read(hint: Any, value: Any, name: str) -> Any:
    if value is None:
        return _OPEN.get(name) if hint is float else None
    if get_origin(hint) in (Union, UnionType):
        (hint,) = (each for each in get_args(hint) if each is not NoneType)
    if get_origin(hint) is tuple:
        return tuple(_read(get_args(hint)[0], each, name) for each in value)
    if isinstance(hint, type) and is_dataclass(hint):
        return from_plain(hint, value)
    return float(value) if hint is float else value
