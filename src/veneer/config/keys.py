"""The names a config may use, read off the schema; and which of them somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel

from veneer.config.document import Key
from veneer.config.schema import RunConfig
from veneer.config.spellings import ELSEWHERE, RENAMED

__all__ = ["described", "dotted", "known_keys", "nearest", "section_at", "without_places"]


def dotted(key: Key) -> str:
    """A key as it is written on the command line: ``data.sources.0.path``."""
    return ".".join(map(str, key))


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section an annotation holds, also as an optional or as the elements of a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_of, get_args(annotation))), None)


def section_at(key: Key) -> type[BaseModel] | None:
    """The section whose fields stand right under ``key``; none if nothing may."""
    section: type[BaseModel] | None = RunConfig
    for part in key:
        if isinstance(part, str):
            known = section.model_fields.get(part) if section else None
            section = _section_of(known.annotation) if known else None
    return section


@lru_cache(maxsize=1)
def known_keys() -> dict[str, str]:
    """Every key that a config may have, dotted, with what it means; list places are left out."""
    return dict(_walk(RunConfig, ""))


def _walk(section: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    for name, known in section.model_fields.items():
        yield prefix + name, known.description or ""
        below = _section_of(known.annotation)
        if below is not None:
            yield from _walk(below, f"{prefix}{name}.")


def without_places(key: Key) -> str:
    """Return a key, dotted, less the places in lists: ``data.sources.path``."""
    return dotted(tuple(part for part in key if isinstance(part, str)))


def described(key: Key) -> str:
    """Return what a key means, in one line without markup; empty if there is no such key."""
    return known_keys().get(without_places(key), "").replace("``", "")


def nearest(key: Key) -> str | None:
    """Return the known key, dotted, that ``key`` may have been meant to be, or None.

    In turn: its name in an earlier release, another trainer's name, the same name in another section, a like name
    in its own section, a like name anywhere.
    """
    name, leaves = str(key[-1]), _leaves()
    exact = RENAMED.get(without_places(key)) or ELSEWHERE.get(name) or leaves.get(name)
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
    ordered = sorted(known_keys(), key=lambda known: (known.count("."), known), reverse=True)
    return {known.rpartition(".")[2]: known for known in ordered}


def _names_beside(key: Key) -> dict[str, str]:
    """Return the names, of now and of earlier releases, in a key's section, each with its key."""
    above = key[:-1]
    section, prefix = section_at(above), without_places(above)
    now = {name: dotted((*above, name)) for name in section.model_fields} if section else {}
    earlier = {old.rpartition(".")[2]: new for old, new in RENAMED.items() if old.rpartition(".")[0] == prefix}
    return {**earlier, **now}
