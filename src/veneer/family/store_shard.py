"""A shard of a store: a file of entries end to end, and a file that says where each lies, both of which only grow.

An entry's bytes are written first, then its line in the index, of fixed length; so an entry whose writer was killed has
no whole line and does not exist. Whoever appends holds the shard's lock, which the kernel takes from a dead process,
and cuts off first what such a process has left behind the last whole entry. What a whole line speaks of is never
changed, so readers need no lock. A checksum of each entry is compared whenever it is read.
"""

from __future__ import annotations

import json
import mmap
import os
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
import xxhash
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from veneer.weights.safetensors import DTYPES

__all__ = [
    "DIGEST_BYTES",
    "ENTRY_BYTES",
    "INDEX",
    "SHARD",
    "SHARD_BYTES",
    "Entry",
    "Shard",
    "Tensors",
    "Unavailable",
    "encode_tensors",
]

Tensors: TypeAlias = dict[str, Tensor]

SHARD, INDEX, LOCK = ".shard", ".index", ".lock"
SHARD_BYTES = 2**28
"""Size from which on a shard gets no further entry: to remove some of its entries is to copy the others."""
DIGEST_BYTES = 16
_LINE = struct.Struct("<16s16sQQ12sI")
ENTRY_BYTES = _LINE.size
"""Length of an entry's line in the index."""
_ALIGNMENT = 64
"""Where an entry begins: tensors that are used where they lie in the file have their numbers at whole addresses."""
_MOST_HEADER = 2**24


class Unavailable(Exception):
    """A shard takes no entry now: another process appends to it, it is full, or it is gone."""


class Entry(NamedTuple):
    """What the index says of an entry.

    Attributes:
        digest: of its key.
        checksum: XXH3 of its bytes, 128 bits.
        offset: where it begins in the shard.
        length: in bytes.
        kind: what it is of, in a word: the first part of its key.
        written: when, in seconds since 1970.
    """

    digest: bytes
    checksum: bytes
    offset: int
    length: int
    kind: str
    written: int

    @classmethod
    def unpacked(cls, index: bytes | bytearray, row: int) -> Entry:
        """Return the entry of a row of an index."""
        digest, checksum, offset, length, kind, written = _LINE.unpack_from(index, row * ENTRY_BYTES)
        return cls(digest, checksum, offset, length, kind.rstrip(b"\0").decode("ascii", "replace"), written)

    def packed(self) -> bytes:
        """Return its line in the index."""
        return _LINE.pack(self.digest, self.checksum, self.offset, self.length, self.kind.encode()[:12], self.written)

    @property
    def end(self) -> int:
        """The byte behind its last."""
        return self.offset + self.length


class Shard:
    """A shard as one process sees it.

    Args:
        path: of the file of entries.

    Attributes:
        path: as above.
        index: the lines of the index that were read so far.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.index = path, bytearray()
        self._map: mmap.mmap | None = None

    @classmethod
    def create(cls, folder: Path) -> Shard:
        """Make an empty shard of a name that no other has.

        Raises:
            OSError: the folder cannot be written to.
        """
        shard = cls(folder / f"{secrets.token_hex(8)}{SHARD}")
        for path in (shard.path, shard.path.with_suffix(INDEX)):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        return shard

    def __len__(self) -> int:
        """Return how many entries the index has, as far as it was read."""
        return len(self.index) // ENTRY_BYTES

    def entry(self, row: int) -> Entry:
        """Return the entry of a row."""
        return Entry.unpacked(self.index, row)

    def entries(self) -> Iterator[Entry]:
        """Yield all entries, as far as the index was read."""
        return (self.entry(row) for row in range(len(self)))

    def refresh(self) -> range:
        """Read the lines that the index has got since; return their rows, none where the shard is gone."""
        begin = len(self)
        with suppress(OSError), self.path.with_suffix(INDEX).open("rb") as file:
            file.seek(len(self.index))
            new = file.read()
            self.index += new[: len(new) - len(new) % ENTRY_BYTES]
        return range(begin, len(self))

    def read(self, row: int) -> Tensors | None:
        """Return an entry's tensors, which lie in the file's memory map; None if they are damaged or gone.

        The map stays as long as a tensor of it is used, also when the file is removed.
        """
        content = self.content(row)
        return None if content is None else _tensors_in(content)

    def content(self, row: int) -> memoryview | None:
        """Return the bytes of an entry, compared with their checksum; None if they are damaged or gone."""
        entry = self.entry(row)
        mapped = self._mapped(entry.end)
        if mapped is None:
            return None
        content = memoryview(mapped)[entry.offset : entry.end]
        return content if xxhash.xxh3_128_digest(content) == entry.checksum else None

    def _mapped(self, end: int) -> mmap.mmap | None:
        """Return a map that reaches to a byte; None: the file does not."""
        if self._map is None or len(self._map) < end:
            try:
                with self.path.open("rb") as file:
                    size = os.fstat(file.fileno()).st_size
                    if size < end:
                        return None
                    # a copy on write: tensors want memory that can be written to, and no file is changed by them
                    self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY)
            except (OSError, ValueError):
                return None
        return self._map

    def unmap(self) -> None:
        """Let the map go, as soon as no tensor needs it."""
        self._map = None

    def append(self, digest: bytes, kind: str, content: bytes | memoryview, written: int | None = None) -> int:
        """Append an entry; return its row.

        Args:
            digest: of its key.
            kind: what it is of.
            content: its bytes.
            written: when; None: now.

        Raises:
            Unavailable: not to this shard.
            OSError: the disk is full, or cannot be written to; the shard is as it was.
        """
        checksum = xxhash.xxh3_128_digest(content)
        with self.locked(), _opened(self.path) as data, _opened(self.path.with_suffix(INDEX)) as index:
            self.refresh()
            if not self.has_room:
                raise Unavailable
            end = self._end
            offset = -(-end // _ALIGNMENT) * _ALIGNMENT
            moment = int(time.time()) if written is None else written
            line = Entry(digest, checksum, offset, len(content), kind, moment).packed()
            _write_at(data, offset, content, keep=end)
            _write_at(index, len(self.index), line, keep=len(self.index))
        self.refresh()
        return len(self) - 1

    @property
    def has_room(self) -> bool:
        """Whether another entry may be appended, as far as the index was read."""
        return self._end < SHARD_BYTES

    @property
    def _end(self) -> int:
        return self.entry(len(self) - 1).end if len(self) else 0

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from appending.

        Raises:
            Unavailable: one appends now.
            OSError: there are no locks here.
        """
        lock = FileLock(self.path.with_suffix(LOCK))
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise Unavailable from None
        try:
            yield
        finally:
            lock.release()

    def remove(self) -> None:
        """Remove the shard's files; its lock must be held. Maps of it stay.

        Raises:
            OSError: they cannot be removed, as on Windows where a run has them open.
        """
        self.path.with_suffix(INDEX).unlink(missing_ok=True)  # first, for by it the shard is known
        self.path.unlink(missing_ok=True)
        self.path.with_suffix(LOCK).unlink(missing_ok=True)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a file of a shard to be written to.

    Raises:
        Unavailable: it is gone.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except FileNotFoundError:
        raise Unavailable from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, offset: int, content: bytes | memoryview, keep: int) -> None:
    """Write bytes at an offset, with nothing behind them; where that fails the file ends at ``keep``."""
    try:
        if os.fstat(descriptor).st_size > keep:
            os.ftruncate(descriptor, keep)  # what a dead process has left goes
        os.lseek(descriptor, offset, os.SEEK_SET)
        rest = memoryview(content)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
    except BaseException:
        with suppress(OSError):
            os.ftruncate(descriptor, keep)
        raise


def encode_tensors(tensors: Tensors) -> bytes:
    """Return the bytes of tensors, as a safetensors file has them."""
    return save({name: tensor.contiguous() for name, tensor in tensors.items()})


def _tensors_in(content: memoryview) -> Tensors | None:
    """Return the tensors of a safetensors file where they lie in memory; None if it is none."""
    try:
        length = int.from_bytes(content[:8], "little")
        if length > min(_MOST_HEADER, len(content) - 8):
            return None
        header = json.loads(bytes(content[8 : 8 + length]))
        data = content[8 + length :]
        return {name: _tensor(said, data) for name, said in header.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, RuntimeError):
        return None


def _tensor(said: dict[str, Any], data: memoryview) -> Tensor:
    (start, end), dtype, shape = said["data_offsets"], DTYPES[said["dtype"]], tuple(said["shape"])
    if start == end:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data[start:end], dtype=dtype).reshape(shape)
