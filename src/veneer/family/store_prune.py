"""List what a folder of stored tensors holds, and remove what is not wanted any more.

A shard is copied without what goes, and then removed; whoever has it mapped keeps what it reads. One that another
process appends to at that moment is left as it is. A kill on the way leaves an entry in two shards at worst.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from veneer.family.store import ABOUT, old_files
from veneer.family.store_shard import INDEX, SHARD, Entry, Shard, Unavailable

__all__ = ["BaseUsage", "Keep", "Pruned", "newest_within", "prune", "usage"]

Keep = Callable[[str, Entry], bool]
"""Says of the name of a base's folder, and of an entry in it, whether the entry stays."""


@dataclass(frozen=True)
class BaseUsage:
    """What is stored of one base.

    Attributes:
        folder: name of its folder.
        name: of the base, for people.
        base: all that the numbers depend on beside their keys.
        entries: how many there are, by kind.
        sizes: bytes of them, by kind.
        first: when the oldest was written, in seconds since 1970.
        last: when the newest was.
    """

    folder: str
    name: str
    base: str
    entries: Mapping[str, int]
    sizes: Mapping[str, int]
    first: int
    last: int


@dataclass
class Pruned:
    """What was removed.

    Attributes:
        removed: entries that are gone.
        kept: entries that are there.
        freed: bytes that are free again.
        in_use: shards that another process was writing to, which were left as they are.
        old: files of an older release's layout that are gone.
    """

    removed: int = 0
    kept: int = 0
    freed: int = 0
    in_use: int = 0
    old: int = 0


def usage(folder: Path) -> list[BaseUsage]:
    """Return what a folder has of each base."""
    return [_usage(base) for base in _base_folders(folder)]


def _usage(folder: Path) -> BaseUsage:
    entries, sizes, written = Counter[str](), Counter[str](), list[int]()
    for shard in _shards(folder):
        for entry in shard.entries():
            entries[entry.kind] += 1
            sizes[entry.kind] += entry.length
            written.append(entry.written)
    about = _about(folder)
    times = min(written, default=0), max(written, default=0)
    return BaseUsage(folder.name, about.get("name", ""), about.get("base", ""), entries, sizes, *times)


def newest_within(folder: Path, size: int) -> Keep:
    """Return what keeps the entries that were written last, as many as take no more than ``size`` bytes."""
    places = [
        (entry.written, base.name, entry.digest, entry.length)
        for base in _base_folders(folder)
        for shard in _shards(base)
        for entry in shard.entries()
    ]
    kept, left = set[tuple[str, bytes]](), size
    for _, name, digest, length in sorted(places, reverse=True):
        left -= length
        if left < 0:
            break
        kept.add((name, digest))
    return lambda name, entry: (name, entry.digest) in kept


def prune(folder: Path, keep: Keep, *, old_layout: bool = False) -> Pruned:
    """Remove entries, and of those that are there twice the older one.

    Args:
        folder: of all bases.
        keep: says what stays.
        old_layout: whether files of the layout with one for each key go as well.

    Raises:
        OSError: the disk has no room for the copy of a shard, or the folder cannot be written to.
    """
    done = Pruned()
    for base in _base_folders(folder):
        _BaseFolder(base, done).prune(keep)
    for path in list(old_files(folder)) if old_layout else ():
        done.freed += path.stat().st_size
        path.unlink()
        done.old += 1
        with suppress(OSError):  # other files are in it
            path.parent.rmdir()
    return done


@dataclass
class _BaseFolder:
    """A base's folder that is pruned.

    Attributes:
        path: of the folder.
        done: is told what was removed.
        target: the shard that entries are copied to.
    """

    path: Path
    done: Pruned
    target: Shard | None = field(default=None)

    def prune(self, keep: Keep) -> None:
        """Remove entries."""
        shards = list(_shards(self.path))
        newest = _newest(shards)
        for shard in shards:
            try:
                with shard.locked():
                    rows = [row for row, entry in enumerate(shard.entries()) if keep(self.path.name, entry)]
                    self._prune_shard(
                        shard, [row for row in rows if newest[shard.entry(row).digest] == (shard.path, row)]
                    )
            except Unavailable:
                self.done.in_use += 1
                self.done.kept += len(shard)
        self._remove_rest()

    def _prune_shard(self, shard: Shard, rows: list[int]) -> None:
        before = len(shard)
        if len(shard.refresh()):  # another process was quicker: its entries are wanted
            raise Unavailable
        if len(rows) < before:
            size = shard.path.stat().st_size
            moved = sum(self._move(shard, row) for row in rows)
            shard.remove()
            self.done.freed += size - moved
        self.done.kept += len(rows)
        self.done.removed += before - len(rows)

    def _move(self, shard: Shard, row: int) -> int:
        """Copy an entry to another shard; return its bytes."""
        entry, content = shard.entry(row), shard.content(row)
        if content is None:
            return 0
        if self.target is None or not self.target.has_room:
            self.target = Shard.create(self.path)
        self.target.append(entry.digest, entry.kind, content, entry.written)
        return entry.length

    def _remove_rest(self) -> None:
        """Remove what a kill has left: shards without an index; and the folder, if nothing is in it any more."""
        for path in self.path.glob(f"*{SHARD}"):
            if not path.with_suffix(INDEX).exists():
                with suppress(Unavailable), Shard(path).locked():
                    Shard(path).remove()
        if not any(self.path.glob(f"*{INDEX}")):
            for path in (*self.path.glob("*.lock"), self.path / ABOUT):
                path.unlink(missing_ok=True)
            with suppress(OSError):  # other files are in it
                self.path.rmdir()


def _newest(shards: Iterable[Shard]) -> dict[bytes, tuple[Path, int]]:
    """Return where the newest entry of each key lies."""
    found: dict[bytes, tuple[int, Path, int]] = {}
    for shard in shards:
        for row, entry in enumerate(shard.entries()):
            if entry.digest not in found or found[entry.digest][0] <= entry.written:
                found[entry.digest] = entry.written, shard.path, row
    return {digest: (path, row) for digest, (_, path, row) in found.items()}


def _base_folders(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{ABOUT}"))


def _shards(folder: Path) -> Iterator[Shard]:
    for path in sorted(folder.glob(f"*{INDEX}")):
        shard = Shard(path.with_suffix(SHARD))
        shard.refresh()
        yield shard


def _about(folder: Path) -> dict[str, str]:
    try:
        found = json.loads((folder / ABOUT).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
