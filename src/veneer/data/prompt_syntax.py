r"""Find and strip the syntax of prompts in captions: weights, LoRAs, wildcards, joins.

User interfaces take such syntax out of a prompt before a text encoder reads it: ``(red:1.2)`` scales what the encoder
makes of ``red``. In a caption it would be read to the letter, brackets, numbers and all, and no prompt would ever show
the encoder the same text again. ``\(`` and ``\)`` are how a prompt says that a bracket is meant to be read, which
taggers write into captions as well: ``fate \(series\)``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice, product

__all__ = [
    "MAX_ALTERNATIVES",
    "WILDCARD",
    "Syntax",
    "find_syntax",
    "has_escapes",
    "may_have_syntax",
    "strip_syntax",
    "unescaped",
]

MAX_ALTERNATIVES = 64
"""Captions that the alternatives of one caption may make, at most."""

WILDCARD, _LESS = "a wildcard", "less weight"
_MAY_BE = re.compile(r"\(\s*\(|\([^()]*?:|[\[{]|<\w+:|__\w|\\[()\[\]]|\b(?:BREAK|AND)\b")
_ESCAPED = re.compile(r"\\([()\[\]])")
_STANDINS = {"(": "\ue000", ")": "\ue001", "[": "\ue002", "]": "\ue003"}
"""Private characters that stand for escaped brackets while syntax is looked for."""
_BACK = str.maketrans({standin: bracket for bracket, standin in _STANDINS.items()})

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_WEIGHT = re.compile(rf"\(\s*([^()]*?[^()\s])\s*:\s*({_NUMBER})\s*\)")
_DOUBLED = re.compile(
    r"(?<!\()\(\(+\s*([^()]+?)\s*\)\)+|(?<!\[)\[\[+\s*([^\[\]|:]+?)\s*\]\]+|(?<!\{)\{\{+\s*([^{}|]+?)\s*\}\}+"
)
_NETWORK = re.compile(r"<(?:lora|lyco|loha|locon|hypernet):[^<>]*>", re.IGNORECASE)
_SCHEDULE = re.compile(rf"\[([^\[\]:|]*):(?:([^\[\]:|]*):)?\s*{_NUMBER}\s*\]")
_ALTERNATIVES = re.compile(r"\{([^{}|]*\|[^{}]*)\}|\[([^\[\]|]*\|[^\[\]]*)\]")
_WILDCARD = re.compile(r"(?<!\w)__[A-Za-z][\w/-]*?__(?!\w)")
_JOIN = re.compile(r"\b(?:BREAK|AND)\b")
_BRACKETS = re.compile(r"\[\s*([^\[\]|:]+?)\s*\]")
_CAPITALS = re.compile(r"[A-Z]{2,}")
_MAX_PLAIN_WEIGHT = 3
"""Whole numbers above it are no weights: ``(psalm:23)``."""


@dataclass(frozen=True)
class Syntax:
    """A piece of a caption that prompts have and texts do not.

    Attributes:
        text: the piece, as it stands.
        kind: what it is in a prompt.
        is_sure: whether it can be nothing else; ``[word]`` can.
    """

    text: str
    kind: str
    is_sure: bool = True


def may_have_syntax(caption: str) -> bool:
    """Check quickly whether a caption has what syntax of prompts or an escaped bracket begins with."""
    return _MAY_BE.search(caption) is not None


def has_escapes(caption: str) -> bool:
    """Check whether a caption has escaped brackets."""
    return "\\" in caption and _ESCAPED.search(caption) is not None


def find_syntax(caption: str) -> tuple[Syntax, ...]:
    """Return the pieces of a caption that are syntax of prompts; an escaped bracket is none, nor is ``(series)``."""
    if not may_have_syntax(caption):
        return ()
    text = _protected(caption)
    found: list[Syntax] = []
    for kind, pattern, accepts in _KINDS:
        for match in pattern.finditer(text):
            if accepts(match):
                found.append(Syntax(match[0].translate(_BACK), kind, kind != _LESS))
        text = pattern.sub(lambda match, accepts=accepts: " " if accepts(match) else match[0], text)  # type: ignore[misc]
    return tuple(found)


def strip_syntax(caption: str) -> tuple[str, ...]:
    """Return what is left of a caption without syntax of prompts: its words, unweighted.

    Alternatives such as ``{red|blue}`` and ``[red:blue:0.5]`` make a caption of each, :data:`MAX_ALTERNATIVES` at most.
    ``__wildcards__``, whose words stand elsewhere, are left as they are.
    """
    text, before = _protected(caption), ""
    while text != before:  # from the inside out
        before = text
        text = _WEIGHT.sub(lambda match: match[1] if _is_weight(match) else match[0], text)
        text = _DOUBLED.sub(lambda match: next(filter(None, match.groups())), text)
        text = _BRACKETS.sub(lambda match: match[1], text)
    text = _NETWORK.sub(" ", text)
    text = re.sub(r"\s*,?\s*\b(?:BREAK|AND)\b\s*,?\s*", lambda match: ", " if _is_join(match) else match[0], text)
    return tuple(dict.fromkeys(_tidy(one).translate(_BACK) for one in _each_alternative(text)))


def unescaped(caption: str) -> str:
    r"""Return a caption with its escaped brackets as they are read: ``fate \(series\)`` is ``fate (series)``."""
    return _ESCAPED.sub(lambda match: match[1], caption)


def _protected(caption: str) -> str:
    """Return a caption with stand-ins for escaped brackets, and with one space for several."""
    return _ESCAPED.sub(lambda match: _STANDINS[match[1]], " ".join(caption.split()))


def _is_weight(match: re.Match[str]) -> bool:
    """Check whether words and a number in brackets are a weight, and not a ratio or a time: ``(16:9)``, ``(10:30)``."""
    words, number = match[1], match[2]
    return "." in number or (not words[-1].isdigit() and abs(int(number)) <= _MAX_PLAIN_WEIGHT)


def _is_join(match: re.Match[str]) -> bool:
    """Check whether a word in capitals stands among others that have none, so that nobody shouts: ``STOP AND GO``."""
    start, end = match.start(), match.end()
    before, after = re.findall(r"\w+", match.string[:start])[-1:], re.findall(r"\w+", match.string[end:])[:1]
    return not any(_CAPITALS.fullmatch(word) for word in (*before, *after))


def _always(match: re.Match[str]) -> bool:
    return True


_KINDS: tuple[tuple[str, re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    ("a LoRA", _NETWORK, _always),
    ("a weight", _WEIGHT, _is_weight),
    ("a weight", _DOUBLED, _always),
    ("a schedule", _SCHEDULE, _always),
    ("alternatives", _ALTERNATIVES, _always),
    (WILDCARD, _WILDCARD, _always),
    ("a join of prompts", _JOIN, _is_join),
    (_LESS, _BRACKETS, _always),
)


def _each_alternative(text: str) -> list[str]:
    """Return the text with each choice of its alternatives."""
    pieces: list[tuple[str, ...]] = []
    end = 0
    both = re.compile(f"{_ALTERNATIVES.pattern}|{_SCHEDULE.pattern}")
    for match in both.finditer(text):
        curly, square, first, second = match.groups()
        choices = (curly or square).split("|") if curly or square else [first, second or ""]
        pieces += [(text[end : match.start()],), tuple(dict.fromkeys(choice.strip() for choice in choices))]
        end = match.end()
    return ["".join(chosen) for chosen in islice(product(*pieces, (text[end:],)), MAX_ALTERNATIVES)]


def _tidy(text: str) -> str:
    """Close the gaps that were left: of spaces, and of commas with nothing between them."""
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"\s*,(?:\s*,)+", ",", text)
    return re.sub(r"\s+,", ",", text).strip(" ,")
