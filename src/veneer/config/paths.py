"""What relative paths in a config are relative to.

A relative path in a file is relative to that file's folder, so that the file means the same wherever it is read from;
one on the command line, or in a mapping without a file, is relative to the working directory. The config that a run
leaves beside its result has whole paths, but for what lies in the run's own folder, which may be moved.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from veneer.config.document import Key
from veneer.config.keys import dotted, has_names, schema_name, section_at
from veneer.config.schema import OutputConfig
from veneer.errors import UserError
from veneer.files import hub_dataset, public_name, url_of, user_path

__all__ = ["BUNDLED", "anchored", "check_elsewhere", "names_only", "portable", "set_default_output"]

BUNDLED = "bundled"
"""Name of the base that comes with Veneer, whatever lies under it."""
_BASE = "base"
_BASES = (_BASE, f"{_BASE}.path")
"""Keys of a name that may be a path."""
_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")


def anchored(values: Any, folder: Path, key: Key = ()) -> Any:
    """Return values of a config with each relative path joined to the folder of the file that they are from.

    A base is joined if it is there, or if it begins as only paths do (``./``, ``../``): else it is a hub id.

    Args:
        values: of a whole config, or of the part of it at ``key``.
        folder: of the file.
        key: the place of ``values``; the empty one for a whole config. Names in it may be dotted, as in a study.
    """
    return _with_paths(values, key, folder, lambda path: str(folder / path))


def portable(values: Any, folder: Path) -> Any:
    """Return values of a config as a file in a folder has them, to mean the same from wherever it is read.

    Paths are whole, but for those of what is within the folder: they are relative, so that it may be moved.
    """
    return _with_paths(values, (), Path(), lambda path: _portable(Path(path), _whole(folder)))


def names_only(values: Any) -> Any:
    """Return values of a config as others may see them: of each path the last part, and a base's hub id."""
    named = _with_paths(values, (), Path(), _public, lambda text, _, key: _may_be_path(text, key))
    if isinstance(parts := named[_BASE], dict):
        named[_BASE] = {**parts, "path": _public_base(str(parts["path"]))}
    else:
        named[_BASE] = _public_base(str(parts))
    return named


def _public_base(base: str) -> str:
    is_local = base != BUNDLED and (not _HUB_ID.fullmatch(base) or user_path(base).exists())
    return _public(base) if is_local else base


def _public(path: str) -> str:
    return public_name(Path(path).name, "folder")


def _with_paths(
    values: Any,
    key: Key,
    folder: Path,
    change: Callable[[str], str],
    is_path: Callable[[str, Path, Key], bool] | None = None,
) -> Any:
    """Return values with each path changed; ``folder`` is where a base is looked for."""
    is_path = is_path or _is_path
    if isinstance(values, dict):
        return {
            name: _with_paths(value, (*key, *str(name).split(".")), folder, change, is_path)
            for name, value in values.items()
        }
    if isinstance(values, (list, tuple)):
        return [_with_paths(value, (*key, place), folder, change, is_path) for place, value in enumerate(values)]
    return change(values) if isinstance(values, str) and is_path(values, folder, key) else values


def _is_path(text: str, folder: Path, key: Key) -> bool:
    """Check whether a text is a path that depends on where it is written."""
    name = schema_name(key)
    if name in _BASES:
        return text != BUNDLED and _can_lead(text) and (text.startswith(("./", "../")) or (folder / text).exists())
    return _may_be_path(text, key) and _can_lead(text)


def _may_be_path(text: str, key: Key) -> bool:
    """Check whether the key of a text holds paths, and the text is none of the words that it may be instead."""
    words = _path_keys().get(schema_name(key))
    return words is not None and text not in words


def _can_lead(text: str) -> bool:
    """Check whether a text, as a path, could lead somewhere from a folder."""
    is_elsewhere = hub_dataset(text) is not None or url_of(text) is not None
    return bool(text) and "\0" not in text and not text.startswith("~") and not is_elsewhere


@lru_cache(maxsize=1)
def _path_keys() -> Mapping[str, frozenset[str]]:
    """Return the keys that hold paths, named as ``schema_name`` does, each with the words that it may be instead."""
    return {name: frozenset(_words(annotation)) for name, annotation in _find_path_keys(())}


def _find_path_keys(above: Key) -> Iterator[tuple[str, Any]]:
    """Yield them, each with its annotation."""
    section = section_at(above)
    for name, field in section.model_fields.items() if section else ():
        key = (*above, name)
        if has_names(field.annotation) and _holds_path(field.annotation):
            yield schema_name((*key, "")), field.annotation
        elif key != (_BASE,) and _holds_path(field.annotation):
            yield schema_name(key), field.annotation
        elif section_at(key) is not None:
            yield from _find_path_keys(key)


def _holds_path(annotation: Any) -> bool:
    return annotation is Path or any(map(_holds_path, get_args(annotation)))


def _words(annotation: Any) -> Iterator[str]:
    """Yield the words of the literals in an annotation."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from _words(part)


def set_default_output(values: dict[str, Any], folder: Path) -> None:
    """Let the results of a file that does not say where they go be in its folder as well."""
    output = values.setdefault("output", {})
    if isinstance(output, dict):
        output.setdefault("dir", str(folder / OutputConfig().dir))


def check_elsewhere(written: Any, used: Any, folder: Path, places: dict[Key, str], key: Key = ()) -> None:
    """Refuse a path of a file that leads nowhere from the file's folder, but somewhere from the working directory.

    To go on would start a run over, or read and write in another place than the one meant.

    Args:
        written: as the file has it.
        used: the same keys as the run will have them.
        folder: of the file.
        places: file and line of each key that the file sets and no override does.
        key: the place of ``written``.

    Raises:
        UserError: there is such a path; the remedy says how to write it.
    """
    if isinstance(written, dict) and isinstance(used, dict):
        for name in (name for name in written if name in used):
            check_elsewhere(written[name], used[name], folder, places, (*key, name))
    elif isinstance(written, list) and isinstance(used, list):
        for place, pair in enumerate(zip(written, used, strict=False)):
            check_elsewhere(*pair, folder, places, (*key, place))
    elif key in places and used == anchored(written, folder, key) and _leads_elsewhere(written, folder, key):
        raise _elsewhere(written, folder, places[key], key)


def _leads_elsewhere(text: Any, folder: Path, key: Key) -> bool:
    if (
        not isinstance(text, str)
        or not (_may_be_path(text, key) or schema_name(key) in _BASES)
        or text == BUNDLED
        or not _can_lead(text)
        or os.path.isabs(text)
    ):
        return False
    return Path(text).exists() and not (folder / text).exists()


def _elsewhere(text: str, folder: Path, place: str, key: Key) -> UserError:
    name = dotted(key)
    return UserError(
        f"is {text}, which is not in {folder}, and relative paths in a file are relative to its folder; "
        "the working directory has one",
        code="config.path_elsewhere",
        where=f"{place}: {name}",
        remedy=f"if that is meant, write {os.path.relpath(text, folder)}, or give {name}={text} on the command line",
    )


def _portable(path: Path, folder: Path) -> str:
    whole = _whole(path)
    return whole.relative_to(folder).as_posix() if folder in whole.parents else str(whole)


def _whole(path: Path) -> Path:
    """Return a path from the root on, without ``..`` unless a link makes another place of it."""
    straight = Path(os.path.abspath(path))
    try:
        return straight if straight.resolve() == Path(path).resolve() else Path(path).absolute()
    except (OSError, RuntimeError):  # links that go round
        return straight
