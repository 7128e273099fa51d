"""Say what of a text the text encoders of a base do not see, word by word.

Two things are lost: what stands behind the last token that is read, and what the tokenizer has no token for.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from veneer.data.manifest import Manifest
from veneer.data.trigger import holds_trigger

__all__ = [
    "UNREAD_CODES",
    "Unread",
    "UnreadNote",
    "caption_places",
    "find_unread",
    "join_unread",
    "unread_notes",
]


@dataclass(frozen=True)
class Unread:
    """What a text encoder does not see of a text.

    Attributes:
        tokens: of the whole text, not counting those that mark its beginning and end.
        limit: tokens that are read.
        read: the beginning of the text, up to the last token that is read.
        rest: what stands behind it; empty where all tokens are read.
        unknown: pieces of ``read`` that the tokenizer has no token for.
        marks: pieces of ``read`` that the tokenizer takes for marks of its own, such as ``</s>``.
    """

    tokens: int
    limit: int
    read: str
    rest: str = ""
    unknown: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()

    @property
    def is_cut(self) -> bool:
        """Whether the text has more tokens than are read."""
        return self.tokens > self.limit


def find_unread(tokenizer: Any, texts: Sequence[str], limit: int) -> dict[str, Unread]:
    """Return what is lost of each text; texts of which all is seen are left out.

    Args:
        tokenizer: of transformers.
        texts: captions or prompts.
        limit: tokens that are read of each, not counting those that mark its beginning and end.
    """
    if not texts:
        return {}
    # verbose: it would warn of each long one, in words of its own
    encoded = tokenizer(list(texts), add_special_tokens=False, verbose=False, return_offsets_mapping=tokenizer.is_fast)
    spans = encoded["offset_mapping"] if tokenizer.is_fast else [None] * len(texts)
    found = {
        text: _read(tokenizer, text, ids, limit) if places is None else _located(tokenizer, text, ids, places, limit)
        for text, ids, places in zip(texts, encoded["input_ids"], spans, strict=True)
    }
    return {text: one for text, one in found.items() if one.is_cut or one.unknown or one.marks}


_Spans = Sequence[tuple[int, int]]


def _located(tokenizer: Any, text: str, ids: Sequence[int], spans: _Spans, limit: int) -> Unread:
    """Return what is lost of a text whose tokens' places in it are known."""
    end = spans[limit][0] if len(ids) > limit else len(text)
    names = tokenizer.convert_ids_to_tokens(ids[:limit])
    special = {*tokenizer.all_special_tokens}
    pieces = [(text[slice(*span)], name) for span, name in zip(spans, names, strict=False) if name in special]
    marks = [piece for piece, name in pieces if piece == name]
    unknown = [piece for piece, name in pieces if piece != name] + _vanished(tokenizer, text[:end], spans)
    return Unread(len(ids), limit, text[:end], text[end:], _distinct(unknown), _distinct(marks))


def _vanished(tokenizer: Any, read: str, spans: _Spans) -> list[str]:
    """Return the visible parts of a text that no token stands for."""
    covered = {place for span in spans for place in range(*span)}
    runs = groupby(range(len(read)), key=lambda place: place not in covered and _is_visible(read[place]))
    pieces = ["".join(read[place] for place in run) for is_bare, run in runs if is_bare]
    # a character that was composed with the one before it has no place of its own, yet it has a token where it is alone
    return [piece for piece in pieces if not tokenizer(piece, add_special_tokens=False).input_ids]


def _is_visible(character: str) -> bool:
    """Return whether a character is none of space, control and format characters, and no accent of another one."""
    return unicodedata.category(character)[0] not in "ZCM"


def _read(tokenizer: Any, text: str, ids: Sequence[int], limit: int) -> Unread:
    """Return what is lost of a text whose tokens' places are not known: in the tokenizer's own spelling."""
    special = {*tokenizer.all_special_tokens}
    marks = [name for name in tokenizer.convert_ids_to_tokens(ids[:limit]) if name in special]
    unknown = [name for name in marks if name not in text]
    read, rest = (tokenizer.decode(part).strip() for part in (ids[:limit], ids[limit:]))
    return Unread(len(ids), limit, read, rest, _distinct(unknown), _distinct([m for m in marks if m in text]))


def _distinct(pieces: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(pieces))


def join_unread(parts: Sequence[Mapping[str, Unread]]) -> dict[str, Unread]:
    """Join what is lost by several text encoders: of each text what is read by the one that reads least."""
    joined: dict[str, Unread] = {}
    for text, one in (item for part in parts for item in part.items()):
        other = joined.get(text, one)
        least = min(one, other, key=lambda unread: len(unread.read))
        unknown, marks = _distinct([*other.unknown, *one.unknown]), _distinct([*other.marks, *one.marks])
        joined[text] = replace(least, unknown=unknown, marks=marks)
    return joined


_CUT, _TRIGGER, _UNKNOWN, _MARKS = UNREAD_CODES = (
    "data.cut_captions",
    "data.cut_trigger",
    "data.unknown_characters",
    "data.marks_in_captions",
)
"""The kinds of loss, for programs."""


@dataclass(frozen=True)
class UnreadNote:
    """One kind of loss, for the user.

    Attributes:
        code: which kind, for programs.
        text: how many texts it concerns, and what follows from it.
        details: what is lost, a line for each text; those that lose most come first.
    """

    code: str
    text: str
    details: tuple[str, ...]

    def __str__(self) -> str:
        """Return all of it in one line."""
        return "; ".join([self.text, *self.details])


def caption_places(*manifests: Manifest, others: Sequence[tuple[str, str]] = ()) -> dict[str, str]:
    """Return the captions of pictures, and where each stands: its first place, and how many more there are.

    Args:
        manifests: of the pictures.
        others: further texts, each with its place.
    """
    places: dict[str, list[str]] = {}
    samples = [sample for manifest in manifests for sample in manifest.samples]
    captions = [(caption, str(sample.path)) for sample in samples for caption in sample.captions]
    for text, place in (*captions, *others):
        places.setdefault(text, []).append(place)
    return {text: f"{at[0]} and {len(at) - 1} more" if len(at) > 1 else at[0] for text, at in places.items()}


def unread_notes(
    unread: Callable[[Sequence[str]], Mapping[str, Unread]],
    places: Mapping[str, str],
    noun: str = "captions",
    trigger: str | None = None,
    remedy: str = "",
) -> list[UnreadNote]:
    """Return what the user should know of texts that are not seen whole; nothing where all are.

    Args:
        unread: of the family.
        places: where each text stands, by text.
        noun: what the texts are.
        trigger: words that should be seen wherever a text has them.
        remedy: what else than shorter texts would help against long ones.
    """
    losses = _Losses(unread(list(places)), places, noun, remedy)
    notes = (losses.cut(), losses.trigger(trigger), losses.unknown(), losses.marks())
    return [note for note in notes if note.details]


@dataclass(frozen=True)
class _Losses:
    """What is lost of some texts.

    Attributes:
        found: by text; whole ones are not in it.
        places: where each text stands, by text.
        noun: what the texts are.
        remedy: what else than shorter texts would help against long ones.
    """

    found: Mapping[str, Unread]
    places: Mapping[str, str]
    noun: str
    remedy: str

    def cut(self) -> UnreadNote:
        """Return the note on texts that are too long."""
        cut = self._cut
        limit = min((self.found[text].limit for text in cut), default=0)
        what = f"{self._share(cut, 'is', 'are')} longer than the {limit} tokens that the text encoder reads"
        return self._note(
            _CUT, f"{what}, so the rest has no effect{self._remedy}", {text: self._rest(text) for text in cut}
        )

    def trigger(self, trigger: str | None) -> UnreadNote:
        """Return the note on texts of which everything but the trigger is seen, or less."""
        texts = self._cut if trigger else []
        lost = [text for text in texts if _has(text, trigger) and not _has(self.found[text].read, trigger)]
        extent = "at all" if all(_has(self.found[text].rest, trigger) for text in lost) else "whole"
        what = f"the trigger {trigger!r} is not seen {extent} in {self._share(lost)}, for it stands behind what is read"
        remedy = "write it at the beginning of the text, as data.trigger_placement=start does, or shorten the text"
        return self._note(
            _TRIGGER, f"{what}; {remedy}", {text: f"{self.found[text].limit} tokens are read" for text in lost}
        )

    def unknown(self) -> UnreadNote:
        """Return the note on what the tokenizer has no token for."""
        lost = {text: _quoted(one.unknown) for text, one in self.found.items() if one.unknown}
        what = (
            f"the base's tokenizer has no token for a part of {self._share(lost)}, which the text encoder does not see"
        )
        return self._note(_UNKNOWN, what, lost)

    def marks(self) -> UnreadNote:
        """Return the note on text that is taken for a mark."""
        lost = {text: _quoted(one.marks) for text, one in self.found.items() if one.marks}
        what = f"{self._share(lost, 'holds', 'hold')} a mark of the base's tokenizer, read as a mark and not as words"
        return self._note(_MARKS, what, lost)

    @property
    def _remedy(self) -> str:
        return f"; shorten them, {self.remedy}" if self.remedy else ""

    @property
    def _cut(self) -> list[str]:
        """The texts that are too long, those that lose most first."""
        cut = [text for text, one in self.found.items() if one.is_cut]
        return sorted(cut, key=lambda text: self.found[text].limit - self.found[text].tokens)

    def _rest(self, text: str) -> str:
        one = self.found[text]
        word_is_cut = one.read[-1:].isalnum() and one.rest[:1].isalnum()
        rest = f"{'…' if word_is_cut else ''}{one.rest.strip()}"
        return f"of {one.tokens} tokens only {one.limit} are read; not read: {rest!r}"

    def _share(self, texts: Collection[str], one: str = "", more: str = "") -> str:
        verb = one if len(texts) == 1 else more
        return f"{len(texts)} of {len(self.places)} {self.noun} {verb}".rstrip()

    def _note(self, code: str, what: str, details: Mapping[str, str]) -> UnreadNote:
        return UnreadNote(code, what, tuple(f"{self.places[text]}: {detail}" for text, detail in details.items()))


def _has(text: str, trigger: str | None) -> bool:
    """Return whether a text holds the trigger already."""
    return trigger is None or holds_trigger(text, trigger)


def _quoted(pieces: Sequence[str]) -> str:
    return ", ".join(map(repr, pieces))
