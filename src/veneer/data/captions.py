"""Make of a source's captions what is shown of them: without syntax of prompts, in templates, with the trigger.

What is made here is the same in every draw; what a draw does to it is in ``caption_text``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeAlias

from veneer.config.data_config import DataConfig
from veneer.data.collector import spared
from veneer.data.prompt_syntax import (
    MAX_ALTERNATIVES,
    WILDCARD,
    Syntax,
    find_syntax,
    has_escapes,
    may_have_syntax,
    strip_syntax,
    unescaped,
)
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.unread import note_unread
from veneer.data.tags import KEPT_MARK, TagCaption, TagRules, around, split_tags, without_mark
from veneer.data.trigger import SEPARATORS, holds_trigger, with_trigger
from veneer.data.wording import few
from veneer.errors import UserError

__all__ = ["CaptionStyle", "Uncaptioned", "complete_captions", "refuse_uncaptioned"]

PromptWeights: TypeAlias = Literal["refuse", "text", "strip"]

Placement: TypeAlias = Literal["end", "start"]

_CAPTION, _TRIGGER = "{caption}", "{trigger}"
_PLAIN = _CAPTION
"""The template of captions that are shown as they are."""
_PLACEHOLDER = "[trigger]"
"""What captions for ai-toolkit have where the trigger belongs."""


@dataclass(frozen=True)
class CaptionStyle:
    """How the captions of all sources are completed, beside the trigger.

    Attributes:
        placement: where the trigger goes in captions that lack it.
        templates: texts with ``{caption}`` and ``{trigger}``, of which each caption is shown in any; none: as it is.
        prompt_weights: what to do about captions with the syntax of prompts.
    """

    placement: Placement = "end"
    templates: tuple[str, ...] = ()
    prompt_weights: PromptWeights = "refuse"

    @classmethod
    def of(cls, config: DataConfig) -> CaptionStyle:
        """Return the one that a config asks for."""
        return cls(config.trigger_placement, config.caption_template or (), config.prompt_weights)


class Uncaptioned(UserError):
    """The mistake that pictures have no caption, and no trigger stands for one.

    Args:
        what: how many, and the first ones.
        where: their folder.
        captions: what to do so that they have some; for callers that take no trigger.
        remedy: what to do.
    """

    def __init__(self, what: str, *, where: object, captions: str, remedy: str) -> None:
        self.captions = captions
        super().__init__(what, code="data.no_caption", where=where, remedy=remedy)

    def without_trigger(self) -> UserError:
        """Return the same mistake for callers that take no trigger, which its remedy then leaves out."""
        return UserError(self.what, code=self.code, where=self.where, remedy=self.captions)


def complete_captions(
    source: Path, listing: Listing, trigger: str | None, style: CaptionStyle, rules: TagRules
) -> Listing:
    """Return a source's listing with its captions as they are shown, and notes on what was done to them.

    Args:
        source: the place, for messages.
        listing: of the source.
        trigger: words that each caption is to hold.
        style: how.
        rules: what each draw does to tags.

    Raises:
        UserError: captions hold syntax of prompts, which no text encoder was trained to read.
    """
    entries, notes = _without_syntax(source, _placed(listing.entries, trigger), style.prompt_weights)
    notes += [*_note_ignored(entries, style.templates), *_note_tags(entries, rules)]
    complete = [_completed(entry, trigger, style, rules) for entry in spared(entries)]
    return replace(listing, entries=tuple(complete), notes=(*listing.notes, *notes))


def _placed(entries: Sequence[Entry], trigger: str | None) -> Sequence[Entry]:
    """Return entries with the trigger where their captions have ai-toolkit's place for it."""
    if trigger is None:
        return entries
    return _changed(entries, lambda text: _PLACEHOLDER in text, lambda text: (text.replace(_PLACEHOLDER, trigger),))


def _completed(entry: Entry, trigger: str | None, style: CaptionStyle, rules: TagRules) -> Entry:
    rules = entry.tag_rules or rules
    if trigger is None and not style.templates and not rules.vary and _are_plain(entry.captions):
        return entry
    templates = style.templates or (_PLAIN,)
    captions = entry.captions
    if not captions:  # a template that is for captions says nothing without one
        templates, captions = tuple(one for one in templates if _CAPTION not in one), ("",)
    whole = [
        _fill(template, caption, trigger, style.placement, rules) for caption in captions for template in templates
    ]
    by_text = {one.text: one for one in whole}
    tags = tuple(by_text.values()) if rules.vary else ()
    return entry.revised(captions=tuple(by_text) or with_trigger((), trigger), tags=tags)


def _are_plain(captions: Sequence[str]) -> bool:
    """Check whether captions are shown as they are written, where there is neither trigger nor template."""
    return all(captions) and len(set(captions)) == len(captions) > 0 and KEPT_MARK not in "".join(captions)


def _fill(template: str, caption: str, trigger: str | None, placement: Placement, rules: TagRules) -> TagCaption:
    """Put a caption into a template, and the trigger before it or behind it where neither has one."""
    if trigger is not None and not _has_trigger(template, caption, trigger):
        template, caption = _with_place(template, caption, placement)
    before, _, after = template.replace(_TRIGGER, trigger or "").partition(_CAPTION)
    tags = caption if _CAPTION in template else ""
    text = around(before, without_mark(tags, rules), after)
    return TagCaption(text, tags, rules, before, after, trigger)


def _has_trigger(template: str, caption: str, trigger: str) -> bool:
    return _TRIGGER in template or holds_trigger(template.replace(_CAPTION, caption), trigger)


def _with_place(template: str, caption: str, placement: Placement) -> tuple[str, str]:
    """Return a template with a place for the trigger, and a caption without what would stand before that place."""
    if placement == "start":
        template, caption = template.lstrip(SEPARATORS), caption.lstrip(SEPARATORS)
        return f"{_TRIGGER}, {template}", caption
    template = template.rstrip(SEPARATORS)
    return f"{template}, {_TRIGGER}", caption.rstrip(SEPARATORS) if template.endswith(_CAPTION) else caption


def _without_syntax(source: Path, entries: Sequence[Entry], wanted: PromptWeights) -> tuple[Sequence[Entry], list[str]]:
    """Return entries whose captions are texts, and notes on what of them is none.

    Raises:
        UserError: they have syntax of prompts that is not to be read as text, nor to be stripped.
    """
    if wanted == "text":
        return entries, _note_syntax("read to the letter", _find(entries))
    notes: list[str] = []
    if wanted == "strip":
        notes += [*_note_syntax("stripped of", _find(entries)), *_note_cut(entries)]
        entries = _changed(entries, may_have_syntax, strip_syntax)
    found = _find(entries)
    if any(one.is_sure for _, one in found):
        raise _prompt_syntax(source, [(place, one) for place, one in found if one.is_sure])
    notes += [*_note_syntax("read to the letter", found), *_note_escapes(entries)]
    return _changed(entries, has_escapes, lambda text: (unescaped(text),)), notes


def _changed(
    entries: Sequence[Entry], concerns: Callable[[str], bool], change: Callable[[str], Iterable[str]]
) -> Sequence[Entry]:
    """Return entries with what a function makes of each caption, where it concerns one of theirs."""

    def changed(entry: Entry) -> Entry:
        captions = (text for caption in entry.captions for text in change(caption))
        return entry.revised(captions=tuple(dict.fromkeys(filter(None, captions))))

    return [changed(entry) if any(map(concerns, entry.captions)) else entry for entry in entries]


def _find(entries: Iterable[Entry]) -> list[tuple[str, Syntax]]:
    """Return what captions have of prompts, with the place of each."""
    return [
        (entry.captions_at or str(entry.path), one)
        for entry in entries
        for caption in entry.captions
        for one in find_syntax(caption)
    ]


def _prompt_syntax(source: Path, found: Sequence[tuple[str, Syntax]]) -> UserError:
    files = len({place for place, _ in found})
    what = f"captions of {files} files have syntax of prompts, which no text encoder reads as that: {_told(found)}"
    remedy = "take it out, as data.prompt_weights=strip does, or train on it to the letter: data.prompt_weights=text"
    if all(one.kind == WILDCARD for _, one in found):
        remedy = "write the words that it stands for, or train on it to the letter: data.prompt_weights=text"
    return UserError(what, code="data.prompt_syntax", where=source, remedy=remedy)


def _note_syntax(what_was_done: str, found: Sequence[tuple[str, Syntax]]) -> list[str]:
    if not found:
        return []
    files = len({place for place, _ in found})
    return [f"syntax of prompts in the captions of {files} files is {what_was_done}: {_told(found)}"]


def _told(found: Sequence[tuple[str, Syntax]]) -> str:
    return few([f"{one.text!r} ({one.kind}, {place})" for place, one in found])


def _note_cut(entries: Iterable[Entry]) -> list[str]:
    """Note captions whose alternatives make more captions than are taken."""
    cut = [entry.captions_at or str(entry.path) for entry in entries if any(map(_is_cut, entry.captions))]
    what = f"of alternatives that make more captions the first {MAX_ALTERNATIVES} are taken"
    return [f"{what}: {few(cut)}"] if cut else []


def _is_cut(caption: str) -> bool:
    return may_have_syntax(caption) and len(strip_syntax(caption)) == MAX_ALTERNATIVES


def _note_escapes(entries: Iterable[Entry]) -> list[str]:
    escaped = [entry.captions_at or str(entry.path) for entry in entries if any(map(has_escapes, entry.captions))]
    what = r"escaped brackets, \\( and the like, are read as the brackets, as in prompts"
    return [f"{what}: {few(escaped)}"] if escaped else []


def _note_ignored(entries: Iterable[Entry], templates: Sequence[str]) -> list[str]:
    if not templates or any(_CAPTION in template for template in templates):
        return []
    ignored = [entry.captions_at or str(entry.path) for entry in entries if entry.captions]
    return [f"captions are not read, for no caption_template has {_CAPTION}: {few(ignored)}"] if ignored else []


def _note_tags(entries: Iterable[Entry], rules: TagRules) -> list[str]:
    """Note captions in which there is nothing to shuffle or to leave out: sentences, or tags parted otherwise."""
    whole: dict[str, list[str]] = {}
    for entry in entries:
        own = entry.tag_rules or rules
        if own.vary and any(len(split_tags(caption, own.separator)) == 1 for caption in entry.captions):
            whole.setdefault(own.separator, []).append(entry.captions_at or str(entry.path))
    what = "captions without {!r} are one tag (tag_separator says what parts tags)"
    return [f"{what.format(separator)}: {few(places)}" for separator, places in whole.items()]


def refuse_uncaptioned(source: Path, listing: Listing) -> None:
    """Refuse a source in which a picture has no caption.

    Raises:
        Uncaptioned: names the first such pictures, and the files that may be meant as their captions.
    """
    missing = [entry.captions_at for entry in listing.entries if not entry.captions]
    if not missing:
        return
    captions = "write a .txt beside each"
    if listing.unread:
        captions += f" ({'; '.join(note_unread(listing.unread))})"
    remedy = f"{captions}, or give words that stand for a caption: --trigger WORDS"
    what = f"{len(missing)} of {len(listing.entries)} pictures have no caption: {few(missing)}"
    raise Uncaptioned(what, where=source, captions=captions, remedy=remedy)
