"""Read overrides such as ``train.max_steps=200``, and set a dotted key deep in a mapping."""

from __future__ import annotations

from typing import Any

from veneer.config.document import Key, read_yaml
from veneer.config.keys import dotted, is_named, known_keys, nearest, schema_name, section_at
from veneer.errors import UserError

__all__ = ["parse_override", "set_key"]


def parse_override(override: str) -> tuple[str, Any]:
    """Split ``train.max_steps=200`` into the dotted key and the value.

    Raises:
        UserError: it is not ``key=value``, or the value is not YAML.
    """
    name, equals, text = override.partition("=")
    if not equals or not all(part != "" for part in _parse_key(name)):
        remedy = "for example train.max_steps=200"
        raise UserError("should be key=value", code="config.malformed_override", where=override, remedy=remedy)
    return name.strip(), _parse_value(text, override)


def set_key(values: dict[str, Any], name: str, value: Any, where: str) -> Key:
    """Set a dotted key of a run's configuration, making the sections on its way that are not there.

    Args:
        values: changed in place.
        name: such as ``train.max_steps`` or ``data.sources.0.path``.
        value: as YAML has it.
        where: names the place in messages.

    Returns:
        The key.

    Raises:
        UserError: no configuration can have such a key.
    """
    key = _parse_key(name)
    here: Any = values
    for place, part in enumerate(key[:-1]):
        _check_place(here, key[: place + 1], where)
        if not isinstance(here, list):
            here[part] = _as_section(here.get(part), key[: place + 1])
        here = here[part]
    _check_place(here, key, where)
    here[key[-1]] = value
    return key


def _as_section(value: Any, key: Key) -> Any:
    """Return a section for keys to be set in: a new one, or one that was written as a text."""
    text_key = getattr(section_at(key), "text_key", None)
    if isinstance(value, str) and text_key is not None:
        return {text_key: value}
    return {} if value is None else value


def _parse_key(name: str) -> Key:
    return tuple(int(part) if part.isascii() and part.isdigit() else part for part in name.strip().split("."))


def _parse_value(text: str, override: str) -> Any:
    # to YAML a # starts a comment; on the command line nobody comments
    return text.strip() if text.lstrip().startswith("#") else read_yaml(text, override).values


def _check_place(here: Any, key: Key, override: str) -> None:
    """Refuse a key that no config can have, because of the part above its last one."""
    above, name = key[:-1], key[-1]
    if isinstance(here, list):
        if not isinstance(name, int) or name >= len(here):
            what = f"{dotted(above)} has {len(here)} elements, counted from 0"
            raise UserError(what, code="config.unknown_element", where=override)
    elif isinstance(name, int) or not isinstance(here, dict) or not (section_at(above) or is_named(key)):
        if not above or schema_name(above) in known_keys():
            raise UserError(f"{dotted(above) or 'a config'} has no {name}", code="config.unknown_key", where=override)
        meant = nearest(above)
        remedy = f"did you mean {meant}?" if meant else None
        raise UserError(f"{dotted(above)} is no key", code="config.unknown_key", where=override, remedy=remedy)
