"""Identify a base by its weights' bytes, wherever they lie and whatever they are called, and by its settings.

The two are apart, for a folder with another scheduler has the same weights, and training on it is another training.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from veneer.errors import UserError
from veneer.family.registry import load_family, place_of
from veneer.family.shards import weight_files

__all__ = ["fingerprint", "settings_hash", "settings_of"]

_CHUNK = 2**20


def fingerprint(base: str) -> str:
    """Return the SHA-256 of a base's weights.

    For a single file it is that file's. For a folder it is that of the lines ``part/file SHA-256``, sorted, of the
    safetensors files in its parts, and of a part that has none those of PyTorch's format: configs, which each release
    of a library writes anew, and other files in the folder are not in it.

    Args:
        base: ``bundled``, a folder, a file, or a hub id that has been downloaded.

    Raises:
        UserError: it is not on this machine, or cannot be read.
    """
    place = _find(base)
    if place.is_file():
        return _hash(place)
    lines = [f"{file.parent.name}/{file.name} {_hash(file)}\n" for file in sorted(_weight_files(place))]
    if not lines:
        raise UserError("holds no weights", code="base.no_weights", where=place)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _weight_files(place: Path) -> list[Path]:
    found = [*place.glob("*/*.safetensors"), *place.glob("*/*.gguf")]
    pickled = [part for part in place.glob("*/") if not any(file.parent == part for file in found)]
    return [*found, *(file for part in pickled for file in weight_files(part))]


def settings_of(base: str) -> Mapping[str, str]:
    """Load a base and return its :attr:`veneer.family.protocol.Family.settings`; it is never downloaded for that.

    Raises:
        UserError: it is not on this machine, or is broken.
    """
    return load_family(str(_find(base))).settings


def settings_hash(settings: Mapping[str, str]) -> str:
    """Return the SHA-256 of a family's settings."""
    return hashlib.sha256(json.dumps(dict(settings), sort_keys=True).encode()).hexdigest()


def _find(base: str) -> Path:
    if (place := place_of(base)) is not None:
        return place
    return _find_download(base)


def _find_download(base: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(base, local_files_only=True))
    except (OSError, ValueError) as error:  # not downloaded, or no hub id at all
        raise UserError("is not on this machine", code="base.not_found", where=base) from error


def _hash(path: Path) -> str:
    try:
        state = path.stat()
        return _hash_of(path, state.st_size, state.st_mtime_ns, state.st_ino)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise UserError(what, code="base.unreadable", where=path) from error


@lru_cache(maxsize=256)
def _hash_of(path: Path, *state: int) -> str:
    """Return the SHA-256 of a file in a state; the same one is read once, for it may have many gigabytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
