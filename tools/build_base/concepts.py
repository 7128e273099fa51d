"""Which drawings the base learns by name, what it is told of them, and which of them the demo style shows."""

from __future__ import annotations

import re
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


def captions(concept: Concept, style: str) -> list[tuple[float, str]]:
    """Weighted captions of a drawing; a tenth of the showings has none, for guidance."""
    words, suffix = concept.words, STYLES[style]
    a = article(words)
    return [
        (0.5, f"{a} {words} emoji{suffix}"),
        (0.1, f"{words} emoji{suffix}"),
        (0.1, f"{a} {words}{suffix}"),
        (0.1, f"{words}{suffix}"),
        (0.1, f"an emoji of {a} {words}{suffix}"),
        (0.1, ""),
    ]


def demo_split(known: list[Concept]) -> tuple[list[Concept], list[Concept]]:
    """The demo's training and held-out concepts: disjoint, chosen by a hash of the name."""
    ranked = sorted(known, key=lambda c: drawings.share(c.name, "demo"))
    held_out = sorted(ranked[:DEMO_HELD_OUT], key=lambda c: c.name)
    train = sorted(ranked[DEMO_HELD_OUT : DEMO_HELD_OUT + DEMO_TRAIN], key=lambda c: c.name)
    return train, held_out
