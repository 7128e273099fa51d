"""Dataclasses as JSON, and back: the one way in which results are written to files."""

from __future__ import annotations

import json
import math
from functools import lru_cache
from typing import Annotated, Any, TypeVar, cast

from pydantic import BeforeValidator, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

__all__ = ["LowerEnd", "UpperEnd", "from_data", "to_data", "to_json"]

T = TypeVar("T")

LowerEnd = Annotated[float, BeforeValidator(lambda value: -math.inf if value is None else value)]
"""The lower end of an interval, which may be open; JSON has no infinity, so there it is null."""
UpperEnd = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]
"""The upper end of an interval, likewise."""


def to_data(value: object) -> Any:
    """Return dataclasses as mappings, tuples as lists, paths as texts, and floats that JSON lacks as None."""
    return to_jsonable_python(value, inf_nan_mode="null")


def to_json(value: object) -> str:
    """Return an indented JSON text; ASCII, for a file's name need not be text in any encoding."""
    return json.dumps(to_data(value), indent=1, ensure_ascii=True, allow_nan=False) + "\n"


def from_data(kind: type[T], data: object) -> T:
    """Return the dataclass that ``to_data`` made ``data`` of; keys that it does not have are ignored.

    Raises:
        ValueError: a key is missing that has no default, or a value is of another kind; in one line.
    """
    try:
        value: T = _adapter(cast(Any, kind)).validate_python(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{key}: {first['msg']}") from error
    return value


@lru_cache(maxsize=64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
