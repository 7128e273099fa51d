"""The keys that a config may have, read off the schema, and the one that a wrong key may have been meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from veneer.config.document import Key
from veneer.config.schema import RunConfig
from veneer.config.spellings import ELSEWHERE, RENAMED

__all__ = ["describe", "dotted", "has_names", "is_named", "known_keys", "nearest", "schema_name", "section_at"]

_NAME = "<name>"


def dotted(key: Key) -> str:
    """Return a key as it is written on the command line: ``data.sources.0.path``."""
    return ".".join(map(str, key))


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """Return the section that an annotation holds, also as an optional or as the elements of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)


def section_at(key: Key) -> type[BaseModel] | None:
    """Return the section whose fields stand right under ``key``; None if no key may."""
    section: type[BaseModel] | None = RunConfig
    is_name = False  # of an entry of a mapping, which may be any
    for part in key:
        if isinstance(part, str) and not is_name:
            field = section.model_fields.get(part) if section else None
            section = _section_of(field.annotation) if field else None
            is_name = field is not None and has_names(field.annotation)
        else:
            is_name = False
    return section


def has_names(annotation: Any) -> bool:
    """Check whether what stands under a key is a mapping whose own keys the user names."""
    return get_origin(annotation) is dict


@lru_cache(maxsize=1)
def known_keys() -> dict[str, str]:
    """Return every key that a config may have, with what it means, each named as ``schema_name`` does."""
    return dict(_walk(RunConfig, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, field in section.model_fields.items():
        yield prefix + name, field.description or ""
        below = _section_of(field.annotation)
        if below is not None:
            entry = f"{_NAME}." if has_names(field.annotation) else ""
            yield from _walk(below, f"{prefix}{name}.{entry}")


def schema_name(key: Key) -> str:
    """Return a key as the schema names it: no places in lists, and ``<name>`` for names that the user gives.

    Such as ``data.sources.path`` and ``adapter.text_encoders.<name>.rank``.
    """
    names = [_NAME if _is_name(key, place) else part for place, part in enumerate(key) if isinstance(part, str)]
    return ".".join(names)


def is_named(key: Key) -> bool:
    """Return whether the last part of a key is a name that the user gives to an entry of a mapping."""
    return _is_name(key, len(key) - 1)


def _is_name(key: Key, place: int) -> bool:
    """Check whether a part of a key is a name that the user gave to an entry of a mapping."""
    section = section_at(key[: place - 1]) if place else None
    above = section.model_fields.get(str(key[place - 1])) if section else None
    return above is not None and has_names(above.annotation)


def describe(key: Key) -> str:
    """Return what a key means, in one line without markup; empty if there is no such key."""
    return known_keys().get(schema_name(key), "").replace("``", "")


def nearest(key: Key) -> str | None:
    """Return the known key, dotted, that ``key`` may have been meant to be, or None.

    In turn: its name in an earlier release, another trainer's name, the same name in another section, a like name
    in its own section, a like name anywhere.
    """
    name, leaves = str(key[-1]), _leaves()
    exact = RENAMED.get(schema_name(key)) or ELSEWHERE.get(name) or leaves.get(name)
    if exact is not None:
        return exact
    beside = _names_beside(key)
    close = difflib.get_close_matches(name, beside, n=1)
    if close:
        return beside[close[0]]
    anywhere = difflib.get_close_matches(name, leaves, n=1, cutoff=0.75)
    return leaves[anywhere[0]] if anywhere else None


def _leaves() -> dict[str, str]:
    """Return the known key for each last name; of several, the one that is least deep."""
    ordered = sorted(known_keys(), key=lambda dotted_key: (dotted_key.count("."), dotted_key), reverse=True)
    return {dotted_key.rpartition(".")[2]: dotted_key for dotted_key in ordered}


def _names_beside(key: Key) -> dict[str, str]:
    """Return the names, of now and of earlier releases, in a key's section, each with its key."""
    above = key[:-1]
    section, prefix = section_at(above), schema_name(above)
    now = {name: dotted((*above, name)) for name in section.model_fields} if section else {}
    earlier = {old.rpartition(".")[2]: new for old, new in RENAMED.items() if old.rpartition(".")[0] == prefix}
    return {**earlier, **now}
