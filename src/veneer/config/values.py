"""The kinds of values that keys of several sections have: shares, counts, paths, lists."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field

from veneer.files import open_home, user_path
from veneer.rng import MAX_SEED

__all__ = [
    "Count",
    "Folder",
    "FolderOrId",
    "Folders",
    "Names",
    "NonBlank",
    "Positive",
    "Seed",
    "Share",
    "as_several",
    "as_tuple",
    "number_or_word",
    "without_repeats",
]

T = TypeVar("T")


def _as_path(value: object) -> object:
    """Turn text into a path with its ``~`` opened; strict validation takes paths only."""
    return user_path(value) if isinstance(value, (str, Path)) else value


def as_tuple(value: object) -> object:
    """Turn a list, which is what YAML and JSON have, into a tuple; strict validation takes tuples only."""
    return tuple(value) if isinstance(value, list) else value


def as_several(value: object) -> object:
    """Turn a path alone into a tuple of one, and a list into a tuple."""
    return (value,) if isinstance(value, (str, Path)) else as_tuple(value)


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; leave the key out instead")
    return value


def without_repeats(values: tuple[T, ...]) -> tuple[T, ...]:
    """Refuse a list that has something twice."""
    if len(set(values)) < len(values):
        raise ValueError("names one twice")
    return values


def number_or_word(value: object) -> str:
    """Tell text from numbers, for keys that take either."""
    return "word" if isinstance(value, str) else "number"


Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED)]
Folder = Annotated[Path, BeforeValidator(_as_path)]
Folders = Annotated[tuple[Folder, ...], BeforeValidator(as_several)]
NonBlank = Annotated[str, AfterValidator(_not_blank)]
FolderOrId = Annotated[NonBlank, AfterValidator(open_home)]
Names = Annotated[tuple[NonBlank, ...], Field(min_length=1), BeforeValidator(as_tuple)]
