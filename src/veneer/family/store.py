"""Store what a base made of pictures and captions, for later runs, keyed by what it was made from.

A key is a hash of everything that the numbers depend on: the base's weights and settings, the machine's kind, the
picture's bytes and the version of the decoding, the part that was cut, the caption. So nothing in a store is ever
stale, runs of any kind may share one, at once or one after the other, and it can be deleted at any time.

In the folder each base has a folder of its own, with shards that only grow (:mod:`veneer.family.store_shard`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from veneer.errors import UserError
from veneer.family.store_shard import (
    DIGEST_BYTES,
    INDEX,
    SHARD,
    Shard,
    Tensors,
    Unavailable,
    encode_tensors,
)
from veneer.files import atomic_write

__all__ = ["ABOUT", "MemoryStore", "Store", "TensorStore", "has_old_layout", "old_files"]

ABOUT = "about.json"
"""File in a base's folder that says which base it is of."""
_VERSION = 1
"""Part of every key: raise it when the same inputs begin to give other numbers."""
_MOST_MAPS = 128
_MOST_TRIES = 8  # other processes may take a new shard before this one does


class TensorStore(Protocol):
    """Keeps tensors that take long to compute."""

    @property
    def fault(self) -> UserError | None:
        """Why nothing more is kept for later runs; None: all is, or nothing was meant to be."""

    def get_or_compute(self, key: tuple[object, ...], compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors that are kept under a key; compute and keep them if there are none."""

    def holds(self, key: tuple[object, ...]) -> bool:
        """Check whether tensors are kept under a key, as far as is known without reading them."""


class MemoryStore:
    """Keeps tensors as long as the process lives.

    Attributes:
        kept: tensors by key.
        fault: none.
    """

    fault: UserError | None = None

    def __init__(self) -> None:
        self.kept: dict[tuple[object, ...], Tensors] = {}

    def get_or_compute(self, key: tuple[object, ...], compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors that are kept under a key; compute and keep them if there are none."""
        if key not in self.kept:
            self.kept[key] = compute()
        return self.kept[key]

    def holds(self, key: tuple[object, ...]) -> bool:
        """Check whether tensors are kept under a key."""
        return key in self.kept


class Store:
    """A folder of tensors.

    What is stored is read where it lies in the file, by a memory map, and takes no memory of the process. It is
    compared with its checksum each time, and computed anew where it is damaged. One thread at a time may use a store.

    Args:
        folder: the folder; made when the first tensors are stored.
        base: what all keys have in common: what the base's numbers depend on, as one text.
        name: of the base, for people.

    Attributes:
        folder: where this base's tensors lie.
        fault: why nothing more is stored: the disk is full, or the folder cannot be written to; None: all is.
        computed: how many entries were computed, for they were not there.
    """

    def __init__(self, folder: Path, base: str, name: str = "") -> None:
        self._base, self._name = base, name
        self.folder = folder / hashlib.sha256(base.encode()).hexdigest()[:16]
        self.fault: UserError | None = None
        self.computed = 0
        self._unstored: dict[bytes, Tensors] = {}
        self._shards: dict[Shard, int] = {}  # with how many entries of each are among the places
        self._places: dict[bytes, tuple[Shard, int]] = {}
        self._mapped: dict[Shard, None] = {}  # the one used last is last
        self._last: Shard | None = None
        self._looked = False

    def get_or_compute(self, key: tuple[object, ...], compute: Callable[[], Tensors]) -> Tensors:
        """Return the tensors that are stored under a key; compute and store them if there are none.

        What cannot be stored is kept in memory.

        Args:
            key: all that the tensors depend on beside the base; of JSON's types.
            compute: computes the tensors.
        """
        digest = self.digest(key)
        tensors = self._unstored[digest] if digest in self._unstored else self._read(digest)
        if tensors is None:
            tensors = compute()
            self.computed += 1
            if not self._write(digest, str(key[0]), encode_tensors(tensors)):
                self._unstored[digest] = tensors
        return tensors

    def holds(self, key: tuple[object, ...]) -> bool:
        """Check whether tensors are stored under a key, as far as the index says, or are kept in memory."""
        digest = self.digest(key)
        if not self._looked:
            self._refresh()
        return digest in self._places or digest in self._unstored

    def size_of(self, key: tuple[object, ...]) -> int:
        """Return the bytes that an entry takes which is stored or, for want of a place, in memory."""
        digest = self.digest(key)
        if digest in self._places:
            shard, row = self._places[digest]
            return shard.entry(row).length
        return sum(tensor.nbytes for tensor in self._unstored[digest].values())

    def digest(self, key: tuple[object, ...]) -> bytes:
        """Return what a key is found by."""
        return hashlib.sha256(json.dumps([_VERSION, self._base, *key]).encode()).digest()[:DIGEST_BYTES]

    def _read(self, digest: bytes) -> Tensors | None:
        """Return the tensors of a key, which another process may have stored since the last look at the folder."""
        tensors = self._read_known(digest)
        if tensors is None:
            self._refresh()
            tensors = self._read_known(digest)
        return tensors

    def _read_known(self, digest: bytes) -> Tensors | None:
        if digest not in self._places:
            return None
        shard, row = self._places[digest]
        tensors = shard.read(row)
        if tensors is None:  # damaged, or removed by whoever pruned the folder
            del self._places[digest]
            return None
        self._note_map(shard)
        return tensors

    def _note_map(self, shard: Shard) -> None:
        """Let the map go that was not used for longest, where there are too many: each takes an open file."""
        self._mapped.pop(shard, None)
        self._mapped[shard] = None
        if len(self._mapped) > _MOST_MAPS:
            oldest = next(iter(self._mapped))
            oldest.unmap()
            del self._mapped[oldest]

    def _refresh(self) -> None:
        """Look for entries that are new in the folder."""
        self._looked = True
        known = {shard.path.stem for shard in self._shards}
        for name in sorted(_shard_names(self.folder) - known):
            self._shards[Shard(self.folder / f"{name}{SHARD}")] = 0
        for shard in self._shards:
            shard.refresh()
            self._place_new(shard)

    def _place_new(self, shard: Shard) -> None:
        """Remember where a shard's new entries lie; of two of a key the newer one counts: the other may be damaged."""
        for row in range(self._shards[shard], len(shard)):
            entry = shard.entry(row)
            known = self._places.get(entry.digest)
            if known is None or known[0].entry(known[1]).written <= entry.written:
                self._places[entry.digest] = shard, row
        self._shards[shard] = len(shard)

    def _write(self, digest: bytes, kind: str, content: bytes) -> bool:
        """Store an entry, unless an earlier one could not be: a store saves time, and no run has to end without it."""
        if self.fault is None:
            try:
                self.append(digest, kind, content)
            except OSError as error:
                what = f"cannot be written: {error.strerror or error}"
                remedy = "make room, or name a folder on another disk: data.cache=FOLDER"
                self.fault = UserError(what, code="files.unwritable", where=self.folder, remedy=remedy)
            except UserError as fault:
                self.fault = fault
        return self.fault is None

    def append(self, digest: bytes, kind: str, content: bytes | memoryview, written: int | None = None) -> None:
        """Append an entry to a shard that has room and that no other process appends to.

        Raises:
            OSError: the disk is full, or cannot be written to.
            UserError: likewise.
        """
        for shard in self._candidates():
            try:
                row = shard.append(digest, kind, content, written)
            except (Unavailable, PermissionError):
                continue
            self._place_new(shard)
            self._places[digest] = shard, row
            self._last = shard
            return
        raise UserError("cannot be written: no file in it can be locked", code="cache.no_lock", where=self.folder)

    def _candidates(self) -> Iterator[Shard]:
        """Yield shards to append to: the last one, the others, then new ones."""
        if self._last is not None and self._last.has_room:
            yield self._last
        self._refresh()
        yield from [shard for shard in self._shards if shard is not self._last and shard.has_room]
        for _ in range(_MOST_TRIES):
            if not (self.folder / ABOUT).exists():
                about = {"base": self._base, "name": self._name}
                atomic_write(self.folder / ABOUT, f"{json.dumps(about, indent=2)}\n".encode())
            shard = Shard.create(self.folder)
            self._shards[shard] = 0
            yield shard


def has_old_layout(folder: Path) -> bool:
    """Check whether a folder holds files of the layout with one for each key, which are not read any more."""
    return next(old_files(folder), None) is not None


def old_files(folder: Path) -> Iterator[Path]:
    """Yield the files of the layout with one for each key."""
    for path in folder.glob("[0-9a-f][0-9a-f]/*.safetensors"):
        if re.fullmatch(r"[0-9a-f]{62}", path.stem):
            yield path


def _shard_names(folder: Path) -> set[str]:
    try:
        return {path.stem for path in folder.iterdir() if path.suffix == INDEX}
    except OSError:  # nothing is stored yet
        return set()
