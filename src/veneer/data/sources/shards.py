"""Find the shards that a source names: one file, a folder of them, or a pattern with braces.

``shards-{000..123}.tar`` stands for 124 names and ``{train,test}.parquet`` for two, as in a shell and in webdataset.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path

from veneer.config.source_config import SourceConfig
from veneer.data.sources.tree import is_picture
from veneer.data.wording import few
from veneer.errors import UserError
from veneer.files import hub_dataset, url_of

__all__ = ["COMPRESSED", "TABLES", "TARS", "expand_braces", "find_shards", "names_shards"]

TARS = (".tar",)
COMPRESSED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz")
TABLES = (".parquet",)

_BRACES = re.compile(r"\{([^{}]+)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MOST = 100_000
"""Shards that a pattern may stand for."""


def names_shards(path: Path) -> bool:
    """Check whether a path that is no folder names shards, a URL or a dataset of the hub, by its letters alone."""
    return hub_dataset(path) is not None or url_of(path) is not None or _ends(path, (*TARS, *COMPRESSED, *TABLES))


def find_shards(config: SourceConfig, endings: Sequence[str], others: Sequence[str] = ()) -> list[Path] | None:
    """Return the shards that a source names, sorted within a folder; None if it names none of these endings.

    Args:
        config: its path is one shard, a pattern of shards, or a folder which has shards and no picture.
        endings: of shards, in small letters.
        others: names of files, in small letters, which are no shards.

    Raises:
        UserError: some that a pattern names are not there, or a link leads out of the folder.
    """
    path = config.path
    if path.is_dir():
        shards = _shards_below(path, endings, others)
        if not config.follow_links:
            _refuse_links(path, shards)
        return shards or None
    if not _ends(path, endings):
        return None
    if path.exists():
        return [path]
    shards = [Path(name) for name in expand_braces(str(path))]
    missing = [shard for shard in shards if not shard.exists()]
    if missing:
        several = f"{len(missing)} of {len(shards)} shards are not there: {few(missing)}"
        what = several if len(shards) > 1 else "no such file"
        raise UserError(what, code="data.no_such_shard", where=path)
    return shards


def _shards_below(folder: Path, endings: Sequence[str], others: Sequence[str]) -> list[Path]:
    """Return the shards in a folder and below it; none if there is a picture as well."""
    shards: list[Path] = []
    for here, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = Path(here, name)
            if is_picture(path) and not name.startswith("."):
                return []
            if _ends(path, endings) and not name.startswith(".") and name.lower() not in others:
                shards.append(path)
    return sorted(shards, key=lambda path: path.relative_to(folder).parts)


def _refuse_links(folder: Path, shards: Sequence[Path]) -> None:
    root = folder.resolve()
    outside = [shard for shard in shards if shard.is_symlink() and not shard.resolve().is_relative_to(root)]
    if outside:
        what, remedy = "a link out of the folder", "follow_links: true in data.sources reads it"
        raise UserError(what, code="data.shard_outside", where=outside[0], remedy=remedy)


def _ends(path: Path, endings: Sequence[str]) -> bool:
    return path.name.lower().endswith(tuple(endings))


def expand_braces(pattern: str) -> list[str]:
    """Return the names that a pattern stands for, in order; of one without braces itself.

    Raises:
        UserError: there are too many.
    """
    names = list(islice(_expanded(pattern), _MOST + 1))
    if len(names) > _MOST:
        raise UserError(f"stands for more than {_MOST:,} shards", code="data.too_many_shards", where=pattern)
    return names


def _expanded(pattern: str) -> Iterator[str]:
    for braces in _BRACES.finditer(pattern):
        parts = _parts(braces[1])
        if parts is not None:
            for part, rest in product(parts, _expanded(pattern[braces.end() :])):
                yield pattern[: braces.start()] + part + rest
            return
    yield pattern


def _parts(inside: str) -> Sequence[str] | Iterator[str] | None:
    """Return what stands in place of braces; None if they are letters of a name."""
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",") if "," in inside else None
    first, last = numbers.groups()
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    return (f"{number:0{width}d}" for number in range(int(first), int(last) + 1))
