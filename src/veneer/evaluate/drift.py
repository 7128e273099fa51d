"""Captions of things that an adapter has nothing to do with, to see whether the base still paints them as it did."""

from __future__ import annotations

import re
from collections.abc import Iterable

import veneer.base
from veneer.family.registry import BUNDLED
from veneer.rng import key

__all__ = ["captions_of_others"]

_EVERYDAY = {
    "a bowl of fruit": "bowl fruit",
    "a bridge over a river": "bridge river",
    "a busy street at night": "street",
    "a castle on a hill": "castle hill",
    "a cup of coffee": "cup coffee",
    "a dog in a park": "dog park",
    "a farmer at work": "farmer",
    "a field of flowers": "field flower",
    "a fishing boat": "boat",
    "a glass of water": "glass water",
    "a guitar": "guitar",
    "a harbour in the morning": "harbour harbor",
    "a horse": "horse",
    "a house with a garden": "house garden",
    "a kitchen": "kitchen",
    "a lighthouse": "lighthouse",
    "a map of the world": "map world",
    "a mountain in winter": "mountain",
    "a pair of shoes": "shoe",
    "a portrait of a woman": "portrait woman women",
    "a red car": "car",
    "a row of books": "book",
    "a sailing ship": "ship",
    "a slice of bread": "bread",
    "a steam train": "train",
    "a tree in autumn": "tree",
    "a waterfall": "waterfall",
    "a wooden chair": "chair",
    "an airport": "airport",
    "an old man reading": "man men",
    "an umbrella in the rain": "umbrella rain",
    "two cats on a sofa": "cat sofa",
}
"""What to paint, and the words that name what is on it: pictures of any of it are no other thing."""


def captions_of_others(base: str, known: Iterable[str], count: int) -> tuple[str, ...]:
    """Captions for the base to paint, each of something that no caption in ``known`` names; the same ones each time.

    Args:
        base: the bundled one is asked for what it knows by name; any other knows everyday things.
        known: captions of the pictures that the adapter is of.
        count: how many; there may be fewer.
    """
    said = " / ".join(known).lower()
    free = _bundled_others(said) if base == BUNDLED else _everyday_others(said)
    return tuple(sorted(free, key=lambda caption: key("another thing", caption))[:count])


def _everyday_others(said: str) -> list[str]:
    return [
        caption for caption, nouns in _EVERYDAY.items() if not any(_names(said, f"{n}(?:e?s)?") for n in nouns.split())
    ]


def _bundled_others(said: str) -> list[str]:
    return [caption for thing, caption in _bundled().items() if not _names(said, re.escape(thing))]


def _names(said: str, words: str) -> bool:
    return re.search(rf"\b{words}\b", said) is not None


def _bundled() -> dict[str, str]:
    """What the bundled base knows by name, and how it was told of it."""
    names = (veneer.base.path() / "concepts.txt").read_text("utf-8").splitlines()
    return {name: f"{_article(name)} {name} emoji" for name in names}


def _article(words: str) -> str:
    return "an" if words[0] in "aeio" or words.startswith(("umb", "unam")) else "a"
