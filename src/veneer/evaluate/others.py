"""Captions of things that an adapter has nothing to do with, to see whether the base still paints them as it did."""

from __future__ import annotations

import re
from collections.abc import Iterable

import veneer.base
from veneer.family.registry import BUNDLED
from veneer.keyed import key

__all__ = ["captions_of_others"]

_EVERYDAY = (
    "a bowl of fruit",
    "a bridge over a river",
    "a busy street at night",
    "a castle on a hill",
    "a cup of coffee",
    "a dog in a park",
    "a farmer at work",
    "a field of flowers",
    "a fishing boat",
    "a glass of water",
    "a guitar",
    "a harbour in the morning",
    "a horse",
    "a house with a garden",
    "a kitchen",
    "a lighthouse",
    "a map of the world",
    "a mountain in winter",
    "a pair of shoes",
    "a portrait of a woman",
    "a red car",
    "a row of books",
    "a sailing ship",
    "a slice of bread",
    "a steam train",
    "a tree in autumn",
    "a waterfall",
    "a wooden chair",
    "an airport",
    "an old man reading",
    "an umbrella in the rain",
    "two cats on a sofa",
)


def captions_of_others(base: str, known: Iterable[str], count: int) -> tuple[str, ...]:
    """Captions for the base to paint, each of something that no caption in ``known`` names; the same ones each time.

    Args:
        base: the bundled one is asked for what it knows by name; any other knows everyday things.
        known: captions of the pictures that the adapter is of.
        count: how many; there may be fewer.
    """
    said = " / ".join(known).lower()
    named = _bundled() if base == BUNDLED else {caption: caption for caption in _EVERYDAY}
    free = [caption for thing, caption in named.items() if not re.search(rf"\b{re.escape(thing)}\b", said)]
    return tuple(sorted(free, key=lambda caption: key("another thing", caption))[:count])


def _bundled() -> dict[str, str]:
    """What the bundled base knows by name, and how it was told of it."""
    names = (veneer.base.path() / "concepts.txt").read_text("utf-8").splitlines()
    return {name: f"{_article(name)} {name} emoji" for name in names}


def _article(words: str) -> str:
    return "an" if words[0] in "aeio" or words.startswith(("umb", "unam")) else "a"
