"""The hashes by which programs know an adapter file: of its bytes, and of its numbers alone."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from veneer.files import open_regular

__all__ = ["LEGACY_BYTES", "LEGACY_START", "FileHashes", "file_sha256", "hashing", "legacy_hash", "legacy_hash_of"]

_PIECE = 2**18  # bytes read at a time
LEGACY_START, LEGACY_BYTES = 0x100000, 0x10000
"""The part of a file that A1111's old hash is of: 64 KiB at 1 MiB."""
_AUTOV1, _AUTOV2, _AUTOV3 = 8, 10, 12  # digits


@dataclass(frozen=True)
class FileHashes:
    """The hashes of a safetensors file, in lower case; of an adapter of several files those of all of them.

    Attributes:
        sha256: SHA-256 of the whole file.
        data_sha256: SHA-256 of what lies behind the header. kohya's trainer writes it as ``sshs_model_hash``; it stays
            when metadata is edited.
        legacy: A1111's old hash, of 64 KiB at 1 MiB into the file: of nothing, where the file is shorter.
    """

    sha256: str
    data_sha256: str
    legacy: str

    @property
    def by_name(self) -> Mapping[str, str]:
        """Each as Civitai names and writes it: SHA256, AutoV1, AutoV2, AutoV3.

        AutoV1 is what A1111 called a checkpoint by before 2023, AutoV2 what it calls one by since, AutoV3 what it and
        Forge call an adapter by in the parameters of a picture.
        """
        return {
            "SHA256": self.sha256.upper(),
            "AutoV1": self.legacy.upper(),
            "AutoV2": self.sha256[:_AUTOV2].upper(),
            "AutoV3": self.data_sha256[:_AUTOV3].upper(),
        }


@contextmanager
def hashing(places: Mapping[Path, int]) -> Iterator[Callable[[], FileHashes]]:
    """Take an adapter's hashes in threads, while the block does something else; an error in the block ends them.

    Args:
        places: of its files, each with the byte behind its header; several are hashed as one, in the order of names.

    Yields:
        A function that waits for the hashes; it raises OSError where a file cannot be read.
    """
    stopped, ordered = Event(), dict(sorted(places.items()))
    with ThreadPoolExecutor(2) as threads:
        try:
            starts = (dict.fromkeys(ordered, 0), ordered)
            whole, data = (threads.submit(_sha256, each, stopped) for each in starts)
            yield lambda: FileHashes(whole.result(), data.result(), legacy_hash_of(next(iter(ordered))))
        except BaseException:
            stopped.set()
            raise


def _sha256(places: Mapping[Path, int], stopped: Event) -> str:
    """Return the SHA-256 of files from a byte on; they are not held in memory, and Python's lock is free meanwhile."""
    digest, buffer = hashlib.sha256(), bytearray(_PIECE)
    for path, start in places.items():
        with open_regular(path) as file:
            file.seek(start)
            while not stopped.is_set() and (length := file.readinto(buffer)):
                digest.update(memoryview(buffer)[:length])
    return digest.hexdigest()


def file_sha256(*paths: Path) -> str:
    """Return the SHA-256 of a whole file; of an adapter's several files that of all of them, in the order of names.

    Raises:
        OSError: it cannot be read.
    """
    return _sha256(dict.fromkeys(sorted(paths), 0), Event())


def legacy_hash(content: bytes | bytearray) -> str:
    """Return A1111's old hash, 8 hex digits of SHA-256.

    Args:
        content: of a file from 1 MiB on; what comes after the first 64 KiB of it is not looked at.
    """
    return hashlib.sha256(content[:LEGACY_BYTES]).hexdigest()[:_AUTOV1]


def legacy_hash_of(path: Path) -> str:
    """Return A1111's old hash of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        file.seek(LEGACY_START)
        return legacy_hash(file.read(LEGACY_BYTES))
