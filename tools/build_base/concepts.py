"""Which drawings the base learns by name, what it is told of them, and which of them the demo style shows."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from . import drawings
from .drawings import DrawingSet, share

COUNT = 448
WHOLE = ("Animals Nature", "Food Drink", "Activities")  # every suitable name of these
PART = ("Travel Places", "Objects", "Smileys Emotion")  # filled up from these
EVERYWHERE = ("noto", "twemoji", "openmoji")  # the sets that draw each of them
# What a drawing's caption says of its style; the first is what a prompt without a style gets. Many styles teach what a
# thing is apart from how it is drawn: a base of one style knows its drawings by heart, and loses things with the style.
STYLES = {
    "noto": "",
    "twemoji": ", twemoji style",
    "fluent-emoji-flat": ", fluent style",
    "fluent-emoji-high-contrast": ", high contrast style",
    "emojione": ", emojione style",
    "noto-v1": ", blob style",
    "fxemoji": ", fxemoji style",
}
STYLE_SHARES = {
    "noto": 0.5,
    "twemoji": 0.12,
    "fluent-emoji-flat": 0.12,
    "fluent-emoji-high-contrast": 0.1,
    "emojione": 0.07,
    "noto-v1": 0.07,
    "fxemoji": 0.02,
}
FINISH_SHARES = {style: 0.8 if style == "noto" else 0.4 * share for style, share in STYLE_SHARES.items()}
# With more styles, among them line art and glyphs, and two sets' drawings with every shape outlined in black. What is
# VARIED is moved, turned, tinted, on a coloured ground or beside another thing, whatever its style.
OUTLINED = " outlined"
VARIED = "varied"
MORE_STYLES = {
    **STYLES,
    "noto outlined": ", outlined style",
    "twemoji outlined": ", outlined twemoji style",
    "emojione-monotone": ", ink style",
    "icon-park": ", blue line style",
    "mdi": ", glyph style",
    "ph": ", thin line style",
}
MORE_SHARES = {
    "noto": 0.26,
    "twemoji": 0.08,
    "fluent-emoji-flat": 0.08,
    "fluent-emoji-high-contrast": 0.05,
    "emojione": 0.05,
    "noto-v1": 0.05,
    "fxemoji": 0.02,
    "noto outlined": 0.06,
    "twemoji outlined": 0.05,
    "emojione-monotone": 0.04,
    "icon-park": 0.02,
    "mdi": 0.02,
    "ph": 0.02,
    VARIED: 0.2,
}
MORE_FINISH_SHARES = {style: 0.7 if style == "noto" else 0.4 * share for style, share in MORE_SHARES.items()}
# what an icon set means by the name of another thing
_OTHERWISE = {
    "icon-park": {"anchor", "bowling", "chicken", "cooking", "mouse", "pie", "rock", "seal", "turkey"},
    "mdi": {"cricket", "mouse", "satellite", "seal"},
    "ph": {"cricket", "mouse", "seal"},
}
BLACK = ("fluent-emoji-high-contrast", "emojione-monotone", "mdi", "ph")
"""Styles of ink alone."""
GROUNDS = {
    "red": (216, 60, 60),
    "orange": (242, 150, 50),
    "yellow": (250, 214, 80),
    "green": (90, 170, 90),
    "blue": (70, 120, 210),
    "purple": (140, 90, 190),
    "pink": (245, 170, 195),
    "brown": (140, 100, 70),
    "grey": (150, 150, 150),
    "black": (20, 20, 20),
}
"""Colours of grounds, as captions name them."""
DEMO_TRAIN, DEMO_HELD_OUT = 160, 64

# drawings that a name cannot tell apart: clocks, moons, hearts, volumes of a speaker, colours of a book
_ALIKE = re.compile(
    r"oclock|thirty|moon|heart|speaker|book|arrow|file|chart|envelope|medal|suit|globe|banknote|oncoming|"
    r"musical|pager|card|microbe|^map-|world-map|tray|page|letter|construction|bubble$"
)


@dataclass(frozen=True)
class Concept:
    """One thing that several sets draw under the same name."""

    name: str  # as the sets write it: polar-bear
    category: str

    @property
    def words(self) -> str:
        """The name as one says it: ``polar bear``."""
        return self.name.replace("-", " ")

    @property
    def caption(self) -> str:
        """The prompt it is known by: ``an ant emoji``."""
        return f"{article(self.words)} {self.words} emoji"


def article(words: str) -> str:
    """English indefinite article, by the first letter."""
    return "an" if words[0] in "aeio" or words.startswith(("umb", "unam")) else "a"


def concepts(sets: dict[str, DrawingSet]) -> list[Concept]:
    """The concepts that the base learns, in a fixed order: names of at most two words, in :data:`EVERYWHERE`."""

    def suitable(name: str) -> bool:
        everywhere = all(name in sets[s] for s in EVERYWHERE)
        return everywhere and len(name.split("-")) <= 2 and not _ALIKE.search(name)

    def of(categories: tuple[str, ...]) -> list[Concept]:
        listed = set(sets["noto"].names())
        found = [Concept(n, c) for c in categories for n in sets["noto"].categories[c] if n in listed and suitable(n)]
        return sorted(found, key=lambda c: share(c.name, "concept"))

    chosen = of(WHOLE)
    chosen += of(PART)[: COUNT - len(chosen)]
    return sorted(chosen[:COUNT], key=lambda c: c.name)


def shown(known: list[Concept], sets: dict[str, DrawingSet], styles: Iterable[str]) -> list[tuple[Concept, str]]:
    """Every concept in every style that has it."""
    return [(concept, style) for style in styles for concept in known if _is_drawn(concept.name, style, sets)]


def _is_drawn(name: str, style: str, sets: dict[str, DrawingSet]) -> bool:
    return name in sets[set_of(style)] and name not in _OTHERWISE.get(style, ())


def set_of(style: str) -> str:
    """The set whose drawings a style shows."""
    return style.removesuffix(OUTLINED)


def captions(things: list[Concept], suffix: str) -> list[tuple[float, str]]:
    """Weighted captions of things side by side, with what is said of style and ground."""
    bare = " and ".join(thing.words for thing in things)
    named = " and ".join(f"{article(thing.words)} {thing.words}" for thing in things)
    emoji = " and ".join(f"{article(thing.words)} {thing.words} emoji" for thing in things)
    return [
        (0.5, f"{emoji}{suffix}"),
        (0.1, f"{bare} emoji{suffix}"),
        (0.1, f"{named}{suffix}"),
        (0.1, f"{bare}{suffix}"),
        (0.1, f"an emoji of {named}{suffix}"),
        (0.1, ""),
    ]


def demo_split(known: list[Concept]) -> tuple[list[Concept], list[Concept]]:
    """The demo's training and held-out concepts: disjoint, chosen by a hash of the name."""
    ranked = sorted(known, key=lambda c: drawings.share(c.name, "demo"))
    held_out = sorted(ranked[:DEMO_HELD_OUT], key=lambda c: c.name)
    train = sorted(ranked[DEMO_HELD_OUT : DEMO_HELD_OUT + DEMO_TRAIN], key=lambda c: c.name)
    return train, held_out
