"""What a JSON object says of a picture, as taggers, downloaders and trainers write it.

``caption`` is what BLIP's and ai-toolkit's scripts and img2dataset write, ``tags`` what taggers, kohya's scripts and
downloaders from boorus do, ``tag_string`` is Danbooru's own name. Keys that are not known are named, not guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from veneer.errors import UserError

__all__ = ["CAPTION_KEYS", "captions_of", "is_captioned", "parse_json", "refuse_half_characters"]

_TEXTS = ("caption", "captions", "text")
_TAGS, _TAG_STRING = "tags", "tag_string"
CAPTION_KEYS = (*_TEXTS, _TAGS, _TAG_STRING)
"""The keys that are read."""


def is_captioned(record: object) -> bool:
    """Check whether something that JSON holds is an object with one of the keys."""
    return isinstance(record, dict) and not record.keys().isdisjoint(CAPTION_KEYS)


def captions_of(record: Mapping[str, Any], where: object) -> tuple[str, ...]:
    """Return the captions of a picture: those of the first key that has any, each with the tags behind it.

    So kohya's scripts join them. A list of tags is joined by commas; so are those of ``tag_string``, which spaces part.

    Args:
        record: what its file or list says of it.
        where: the place to name in messages.

    Raises:
        UserError: a value is of another type, or has half a character.
    """
    texts = next((found for key in _TEXTS if (found := _texts(record, key, where))), ())
    tags = ", ".join(_texts(record, _TAGS, where)) or ", ".join(" ".join(_texts(record, _TAG_STRING, where)).split())
    if not tags:
        return texts
    return tuple(f"{text}, {tags}" for text in texts) or (tags,)


def parse_json(text: str, where: object) -> object:
    """Parse JSON that nobody vouches for.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", code="data.captions_not_json", where=where) from None


def refuse_half_characters(text: str, key: str, where: object) -> None:
    """Refuse half of a UTF-16 pair, which JSON can write and UTF-8 cannot: no tokenizer takes it, and no file.

    Raises:
        UserError: the text has one.
    """
    half = re.search(r"[\ud800-\udfff]", text)
    if half:
        what = f"{key!r} has half a character, \\u{ord(half[0]):x}"
        remedy = "write the caption anew, e.g. with ensure_ascii=False"
        raise UserError(what, code="data.half_character", where=where, remedy=remedy)


def _texts(record: Mapping[str, Any], key: str, where: object) -> tuple[str, ...]:
    """Return the text or texts of a key that are not blank; none if it is missing or null."""
    value = record.get(key)
    texts: Sequence[object] = value if isinstance(value, list) else [] if value is None else [value]
    kept: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            raise UserError(f"{key!r} should be a text or a list of texts", code="data.json_caption", where=where)
        refuse_half_characters(text, key, where)
        kept += [text.strip()] if text.strip() else []
    return tuple(dict.fromkeys(kept))
