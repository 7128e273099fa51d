"""Show the tags of a caption in another order, or a part of them, in each draw: pure functions of (seed, draw, sample).

Some tags keep their places: the first ones, where the source says how many (``keep_tokens`` of kohya's scripts), those
before the first and behind the second ``|||`` (its ``keep_tokens_separator``), and those that hold the trigger.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

from veneer.config.source_config import SourceConfig
from veneer.data.trigger import SEPARATORS, holds_trigger
from veneer.rng import key, uniform

__all__ = ["KEPT_MARK", "TagCaption", "TagRules", "around", "split_tags", "without_mark"]

KEPT_MARK = "|||"
"""Parts the tags of a caption that keep their places from those that do not, as in captions for kohya's scripts."""


@dataclass(frozen=True)
class TagRules:
    """What is done to the tags of a source's captions in each draw.

    Attributes:
        separator: between tags.
        shuffle: whether they are shown in another order.
        keep: how many of the first ones keep their places, and are never left out.
        dropout: share of the others that are left out.
        orders: how many different texts a caption makes; None: each draw makes one of its own.
    """

    separator: str = ","
    shuffle: bool = False
    keep: int = 0
    dropout: float = 0.0
    orders: int | None = None

    @classmethod
    def of(cls, source: SourceConfig) -> TagRules:
        """Return those that a source asks for."""
        return cls(source.tag_separator, source.shuffle_tags, source.keep_tags, source.tag_dropout, source.tag_orders)

    @property
    def between(self) -> str:
        """What is written between two tags."""
        return self.separator if self.separator[-1].isspace() else f"{self.separator} "

    @property
    def vary(self) -> bool:
        """Whether captions are shown otherwise than they are written."""
        return self.shuffle or self.dropout > 0


@dataclass(frozen=True)
class TagCaption:
    """A caption of tags, of which each draw shows another order or a part.

    Attributes:
        text: the whole caption, as it is shown where nothing varies.
        tags: what of it are tags, with marks of which keep their places; the rest is ``before`` and ``after``.
        rules: what is done to them.
        before: text before the tags, which stays: of a template, or the trigger.
        after: text behind them, likewise.
        trigger: words that keep the places of the tags they are in.
    """

    text: str
    tags: str
    rules: TagRules
    before: str = ""
    after: str = ""
    trigger: str | None = None

    def shown(self, seed: int, draw_index: int, sample_id: str) -> str:
        """Return what one draw shows."""
        orders = self.rules.orders
        if orders is None:
            return self._variant(seed, draw_index, sample_id)
        return self._variant(seed, int(uniform(seed, draw_index, sample_id, "tag text") * orders), sample_id)

    def all_shown(self, seed: int, sample_id: str) -> tuple[str, ...] | None:
        """Return all that draws can show; None where each makes a text of its own."""
        if self.rules.orders is None:
            return None
        return tuple(dict.fromkeys(self._variant(seed, number, sample_id) for number in range(self.rules.orders)))

    def count(self, draws: int) -> int:
        """Return how many different texts that many draws show, at most."""
        moved = sum(not is_kept for _, is_kept in self._places)
        if moved > 20:  # more orders than anyone draws
            possible = draws
        else:
            possible = (factorial(moved) if self.rules.shuffle else 1) * (2**moved if self.rules.dropout else 1)
        return min(draws, possible, self.rules.orders or draws)

    def _variant(self, seed: int, number: int, sample_id: str) -> str:
        places, rules = self._places, self.rules
        moved = [place for place, (_, is_kept) in enumerate(places) if not is_kept]
        order = iter(moved)
        if rules.shuffle:
            order = iter(sorted(moved, key=lambda place: key(seed, number, sample_id, place, "tag order")))
        shown = [place if is_kept else next(order) for place, (_, is_kept) in enumerate(places)]
        left_out = {p for p in moved if uniform(seed, number, sample_id, p, "tag dropout") < rules.dropout}
        tags = rules.between.join(places[place][0] for place in shown if place not in left_out)
        return around(self.before, tags, self.after)

    @property
    def _places(self) -> list[tuple[str, bool]]:
        """The tags in their written order, each with whether it keeps its place."""
        sections = [split_tags(part, self.rules.separator) for part in self.tags.split(KEPT_MARK, 2)]
        if len(sections) == 1:
            kept = [place < self.rules.keep for place in range(len(sections[0]))]
        else:
            kept = [number != 1 for number, section in enumerate(sections) for _ in section]
        tags = [tag for section in sections for tag in section]
        return [(tag, stays or self._holds_trigger(tag)) for tag, stays in zip(tags, kept, strict=True)]

    def _holds_trigger(self, tag: str) -> bool:
        return self.trigger is not None and holds_trigger(tag, self.trigger)


def split_tags(text: str, separator: str) -> list[str]:
    """Return the tags of a text, without the spaces around them; empty ones are none."""
    return [tag for tag in (part.strip() for part in text.split(separator)) if tag]


def without_mark(caption: str, rules: TagRules) -> str:
    """Return a caption without the marks of tags that keep their places, which are no text."""
    if KEPT_MARK not in caption:
        return caption
    edge = f"{rules.separator} \t"
    parts = [part.strip(edge) for part in caption.split(KEPT_MARK, 2)]
    return rules.between.join(filter(None, parts))


def around(before: str, text: str, after: str) -> str:
    """Return a text between two others, whose commas towards it are left out where it is empty."""
    if text:
        return f"{before}{text}{after}"
    return f"{before.rstrip(SEPARATORS)}{after}".strip(SEPARATORS)
