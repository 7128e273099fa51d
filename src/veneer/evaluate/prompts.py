"""Prompts that an evaluation paints: of things that an adapter should not change, and of things that it should keep."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import veneer.base
from veneer.family.registry import BUNDLED
from veneer.rng import key

__all__ = ["drift_prompts", "fidelity_prompts"]

_EVERYDAY_THINGS = {
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
"""Prompts, and the nouns of each: a caption with one of them names the same thing."""


def drift_prompts(base: str, captions: Iterable[str], count: int) -> tuple[str, ...]:
    """Return prompts for the base, each of something that no caption names; the same ones each time.

    Args:
        base: the bundled one is asked for things that it knows by name, any other for everyday things.
        captions: of the pictures that the adapter was trained and measured on.
        count: number of prompts; there may be fewer.
    """
    text = " / ".join(captions).lower()
    prompts = _bundled_prompts(text) if base == BUNDLED else _everyday_prompts(text)
    return tuple(sorted(prompts, key=lambda prompt: key("another thing", prompt))[:count])


def fidelity_prompts(base: str, captions: Sequence[str], trigger: str | None, count: int) -> tuple[str, ...]:
    """Return prompts, each another one, whose pictures should show what they say: captions, then other things.

    Args:
        base: as for :func:`drift_prompts`.
        captions: of held-out pictures.
        trigger: words that call the adapter, with which other things are asked for; None: there are none.
        count: number of prompts; there may be fewer.
    """
    own = [caption for caption in dict.fromkeys(captions) if caption.strip() and caption.strip() != trigger]
    others = drift_prompts(base, captions, max(0, count - len(own)))
    return (*own[:count], *(f"{prompt}, {trigger}" if trigger else prompt for prompt in others))


def _everyday_prompts(text: str) -> list[str]:
    return [
        prompt
        for prompt, nouns in _EVERYDAY_THINGS.items()
        if not any(_contains(text, f"{noun}(?:e?s)?") for noun in nouns.split())
    ]


def _bundled_prompts(text: str) -> list[str]:
    """Return prompts for the things that the bundled base knows, as it was trained on them."""
    names = (veneer.base.path() / "concepts.txt").read_text("utf-8").splitlines()
    return [f"{_article(name)} {name} emoji" for name in names if not _contains(text, re.escape(name))]


def _contains(text: str, pattern: str) -> bool:
    """Return whether a text has a pattern as whole words."""
    return re.search(rf"\b{pattern}\b", text) is not None


def _article(words: str) -> str:
    return "an" if words[0] in "aeio" or words.startswith(("umb", "unam")) else "a"
