"""Tell which column of a table holds the pictures, and which their captions."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from veneer.config.source_config import ColumnsConfig
from veneer.data.sources.json_captions import CAPTION_KEYS, refuse_half_characters
from veneer.data.wording import few
from veneer.errors import UserError

__all__ = ["captions_in", "picture_and_text"]

_NAMES = ("text", "caption", "captions", "prompt", "prompts", "txt", "description")
"""Columns that are captions, the likeliest first."""
_NESTED = "json"
"""Column that webdataset's ``.json`` becomes."""


def picture_and_text(schema: Any, columns: ColumnsConfig, where: object) -> tuple[str, str | None]:
    """Return the column of the pictures and that of the captions; None for the latter if there is none.

    Args:
        schema: pyarrow's, of which the metadata of ``datasets`` say what is a picture; without it, what holds bytes is.
        columns: what the user says, which counts more.
        where: the table, for messages.

    Raises:
        UserError: there is no such column, or it cannot be told.
    """
    image = _chosen(columns.image, _pictures(schema), schema, "image", where)
    if image is None:
        what = f"no column holds pictures: it has {few(schema.names)}"
        raise UserError(what, code="data.no_picture_column", where=where)
    if columns.text:
        return image, _checked(columns.text, schema, where)
    texts = _texts(schema)
    usual = [name for name in (*_NAMES, *(f"{_NESTED}.{key}" for key in CAPTION_KEYS)) if name in texts]
    return image, usual[0] if usual else _chosen(None, texts, schema, "text", where)


def captions_in(value: object, column: str, where: object) -> tuple[str, ...]:
    """Return the captions of a cell, which is a text or a list of such; none if it is null or blank.

    Raises:
        UserError: it is of another type, or has half a character.
    """
    texts: Sequence[object] = value if isinstance(value, list) else [] if value is None else [value]
    kept: dict[str, None] = {}
    for text in texts:
        if not isinstance(text, str):
            what = f"{column!r} should be a caption or a list of captions"
            raise UserError(what, code="data.metadata_caption", where=where)
        refuse_half_characters(text, column, where)
        kept |= {text.strip(): None} if text.strip() else {}
    return tuple(kept)


def _chosen(asked: str | None, found: Sequence[str], schema: Any, key: str, where: object) -> str | None:
    if asked is not None:
        return _checked(asked, schema, where)
    if len(found) > 1:
        what = f"{len(found)} columns may be the {key}: {few(found)}"
        remedy = f"say which one is: columns: {{{key}: {found[0]}}} in data.sources"
        raise UserError(what, code="data.which_column", where=where, remedy=remedy)
    return found[0] if found else None


def _checked(name: str, schema: Any, where: object) -> str:
    first, *fields = name.split(".")
    kind = schema.field(first).type if first in schema.names else None
    for field in fields:
        kind = _field_type(kind, field)
    if kind is None:
        what = f"has no column {name!r}: it has {few(schema.names)}"
        raise UserError(what, code="data.no_such_column", where=where)
    return name


def _field_type(kind: Any, name: str) -> Any:
    """Return the type of a field of a struct; None if it is none or has no such field."""
    if kind is None or not _types().is_struct(kind) or kind.get_field_index(name) < 0:
        return None
    return kind.field(name).type


def _pictures(schema: Any) -> list[str]:
    said = _features(schema)
    if said:
        return [name for name in schema.names if _is_image(said.get(name))]
    return [field.name for field in schema if _holds_bytes(field.type)]


def _features(schema: Any) -> Mapping[str, Any]:
    """Return what ``datasets`` says of the columns; nothing if another library wrote the table."""
    try:
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _is_image(feature: object) -> bool:
    return isinstance(feature, dict) and feature.get("_type") == "Image"


def _holds_bytes(kind: Any) -> bool:
    types = _types()
    kind = kind if _field_type(kind, "bytes") is None else _field_type(kind, "bytes")
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _texts(schema: Any) -> list[str]:
    found = [field.name for field in schema if _is_text(field.type)]
    nested = schema.field(_NESTED).type if _NESTED in schema.names else None
    if nested is not None and _types().is_struct(nested):
        found += [f"{_NESTED}.{field.name}" for field in nested if field.name in CAPTION_KEYS and _is_text(field.type)]
    return [name for name in found if not name.startswith("__")]


def _is_text(kind: Any) -> bool:
    types = _types()
    if types.is_list(kind) or types.is_large_list(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def _types() -> Any:
    return importlib.import_module("pyarrow.types")
