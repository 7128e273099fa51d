"""The two archives that travel: the packages that the machine lacks, and the bundled base's weights.

Wheels are installed here, for the machine's Python, and compressed together: a third of the wheels' own size. Weights
in float16 are compressed with the high bytes of their numbers apart from the low ones, which takes a sixth off. Only
the standard library is needed to unpack them.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

__all__ = ["pack_folder", "pack_parts", "pack_weights", "unpack_folder", "unpack_parts", "unpack_weights"]

_PRESET: Literal[9] = 9
_LEFT_OUT = re.compile(r"__pycache__|/tests?/|libbitsandbytes_(?!cpu\.|cuda130\.)")
"""Of packages: compiled files, tests, and bitsandbytes's kernels for other devices than one of CUDA 13.0."""
_HIGH, _LOW = ".high", ".low"


def pack_folder(folder: Path, archive: Path) -> None:
    """Write the files of a folder of packages into an archive, but those that are not needed."""
    with tarfile.open(archive, "w:xz", preset=_PRESET) as tar:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not _LEFT_OUT.search(name):
                tar.add(path, name)


def unpack_folder(archive: Path, folder: Path) -> None:
    """Write an archive's files into a folder."""
    with tarfile.open(archive, "r:xz") as tar:
        tar.extractall(folder, filter="data")


def pack_parts(folder: Path, archive: Path, most: int = 15 << 20) -> list[Path]:
    """Write a folder's files into an archive in parts of at most so many bytes: ``archive.0`` and on.

    What comes back from the machine may have 16 MiB a file. Nothing is compressed: weights hardly could be, and time is
    short there.
    """
    whole = io.BytesIO()
    with tarfile.open(fileobj=whole, mode="w") as tar:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(folder).as_posix())
    content = whole.getvalue()
    parts = [archive.with_name(f"{archive.name}.{place}") for place in range(-(-len(content) // most))]
    for part, begin in zip(parts, range(0, len(content), most), strict=True):
        part.write_bytes(content[begin : begin + most])
    return parts


def unpack_parts(archive: Path, folder: Path) -> None:
    """Write the files of an archive in parts into a folder.

    Raises:
        ValueError: there are no parts.
    """
    parts = sorted(archive.parent.glob(f"{archive.name}.*"), key=lambda part: int(part.suffix[1:]))
    if not parts:
        raise ValueError(f"{archive}.0: there is no such file")
    with tarfile.open(fileobj=io.BytesIO(b"".join(part.read_bytes() for part in parts))) as tar:
        tar.extractall(folder, filter="data")


def pack_weights(root: Path, files: Iterable[Path], archive: Path) -> None:
    """Write files of 16-bit numbers into an archive, under their paths below ``root``."""
    with tarfile.open(archive, "w:xz", preset=_PRESET) as tar:
        for file in files:
            whole, name = file.read_bytes(), file.relative_to(root).as_posix()
            for ending, part in ((_HIGH, whole[1::2]), (_LOW, whole[::2])):
                entry = tarfile.TarInfo(name + ending)
                entry.size = len(part)
                tar.addfile(entry, io.BytesIO(part))


def unpack_weights(archive: Path, root: Path) -> list[str]:
    """Write an archive's files below ``root`` where there is none; return the paths of those that were written."""
    written = []
    with lzma.open(archive) as raw, tarfile.open(fileobj=raw) as tar:
        parts: dict[str, bytes] = {}
        for entry in tar:
            name, _, kind = entry.name.rpartition(".")
            content = tar.extractfile(entry)
            assert content is not None
            parts[kind] = content.read()
            if f".{kind}" == _LOW and not (root / name).exists():
                (root / name).write_bytes(_interleaved(parts["high"], parts["low"]))
                written.append(name)
    return written


def _interleaved(high: bytes, low: bytes) -> bytes:
    whole = bytearray(len(high) + len(low))
    whole[1::2], whole[::2] = high, low
    return bytes(whole)
