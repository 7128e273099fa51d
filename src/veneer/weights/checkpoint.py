"""Checkpoints on disk: one folder each, whole or not there, with a manifest of hashes to tell a damaged one by."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from veneer.errors import UserError
from veneer.files import remove_folder, write_folder
from veneer.weights.safetensors import encode, first_not_finite

__all__ = [
    "MANIFEST",
    "OLD_FORMAT",
    "STATE",
    "Checkpoint",
    "Provenance",
    "checkpoints_in",
    "clear_checkpoints",
    "newest_checkpoint",
    "prune_checkpoints",
    "read_checkpoint",
    "write_checkpoint",
]

STATE = "state.safetensors"
"""Name of the file with all that a run must remember: adapter, moments, loss scale, step."""
MANIFEST = "manifest.json"
"""Name of the file that says what the state belongs to, with the hashes by which damage shows; written last."""

_FORMAT = 2
OLD_FORMAT = "checkpoint.old_format"
"""Code of the mistake to go on from a checkpoint of an older release."""
_NAME = re.compile(r"step-(\d{9,})")
_HASH = "sha256"


@dataclass(frozen=True)
class Provenance:
    """The inputs that a run was made from.

    Attributes:
        config: the resolved one, as plain values.
        hashes: of what the config only points to, by the config's key for it.
        version: of Veneer.
        threads: that each of its processes computed with.
        settings: the base's own, which its weights do not tell, by name.
    """

    config: Mapping[str, Any]
    hashes: Mapping[str, str]
    version: str
    threads: int
    settings: Mapping[str, str]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found whole.

    Attributes:
        path: its folder.
        step: steps done.
        provenance: of the run that wrote it.
        state: as it was given to ``write_checkpoint``.
    """

    path: Path
    step: int
    provenance: Provenance
    state: Mapping[str, Tensor] = field(repr=False)


def write_checkpoint(folder: Path, step: int, state: Mapping[str, Tensor], provenance: Provenance) -> Path:
    """Write ``folder/step-000000100``; it appears whole, after all of it has reached the disk, or not at all.

    Raises:
        UserError: it cannot be written, or the state holds NaN or infinity, from which no run can go on.
    """
    path = folder / f"step-{step:09d}"
    if (broken := first_not_finite(state)) is not None:
        raise UserError(f"tensor {broken} holds NaN or infinity", code="checkpoint.not_finite", where=path)
    content = encode(state, {})
    manifest = {
        "format": _FORMAT,
        "step": step,
        "provenance": asdict(provenance),
        "files": {STATE: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}},
    }
    write_folder(path, {STATE: content, MANIFEST: _with_hash(manifest)})
    return path


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint and check every byte of it against its manifest.

    Raises:
        UserError: it is not there, was not finished, or is not what was written.
    """
    if not path.is_dir():
        remedy = "name a folder such as checkpoints/step-000000100"
        raise UserError("no such checkpoint", code="checkpoint.not_found", where=path, remedy=remedy)
    manifest = _checked(_read(path, MANIFEST), path)
    _check_format(manifest, path)
    content = _read(path, STATE)
    try:
        _compare(content, manifest["files"][STATE], path)
        return Checkpoint(path, int(manifest["step"]), Provenance(**manifest["provenance"]), from_safetensors(content))
    except (KeyError, TypeError, SafetensorError) as error:  # whole, but written by another program
        what = f"is none of Veneer's ({error!r})"
        raise UserError(what, code="checkpoint.foreign", where=path) from error


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder by rising step, whole or damaged; those never finished have no such name."""
    return sorted((path for path in folder.glob("step-*") if _NAME.fullmatch(path.name)), key=_step_of)


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[UserError, ...]]:
    """Return the newest checkpoint of a folder that is whole, if any is, and what is wrong with each newer one."""
    faults: list[UserError] = []
    for path in reversed(checkpoints_in(folder)):
        try:
            return read_checkpoint(path), tuple(faults)
        except UserError as fault:
            faults.append(fault)
    return None, tuple(faults)


def prune_checkpoints(folder: Path, newest: Path, keep: int) -> None:
    """Remove what ``newest``, which is in place, made superfluous: all but the ``keep`` newest up to it.

    Later ones go too, for a run that got to ``newest`` has passed them over as damaged; and so does what a killed run
    left half-written.

    Raises:
        OSError: one cannot be removed.
    """
    present = checkpoints_in(folder)
    place = present.index(newest) + 1
    for path in (*present[place:], *present[: max(0, place - keep)]):
        remove_folder(path)
    _remove_leftovers(folder)


def clear_checkpoints(folder: Path) -> None:
    """Remove all checkpoints of a folder, and the folder itself unless something else is in it."""
    for path in checkpoints_in(folder):
        remove_folder(path)
    _remove_leftovers(folder)
    with suppress(OSError):  # not there, or not empty
        folder.rmdir()


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed runs left half-written or half-removed."""
    for leftover in folder.glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _step_of(path: Path) -> int:
    return int(path.name.partition("-")[2])


def _with_hash(manifest: Mapping[str, Any]) -> bytes:
    """Return JSON with a hash of itself in it; the text depends on the content alone."""
    hashed = {**manifest, _HASH: hashlib.sha256(_json(manifest)).hexdigest()}
    return _json(hashed)


def _checked(content: bytes, path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(content)
        whole = isinstance(manifest, dict) and _HASH in manifest and _json(manifest) == content
    except (ValueError, RecursionError):
        whole = False
    if not whole or manifest.pop(_HASH) != hashlib.sha256(_json(manifest)).hexdigest():
        raise UserError(f"{MANIFEST} is damaged", code="checkpoint.damaged", where=path)
    assert isinstance(manifest, dict)
    return manifest


def _json(manifest: Mapping[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def _check_format(manifest: Mapping[str, Any], path: Path) -> None:
    found = manifest.get("format")
    if isinstance(found, int) and found < _FORMAT:
        what = f"is by Veneer {manifest.get('version')}, from whose checkpoints this release cannot go on"
        remedy = "finish the run with that release, or start over with --overwrite"
        raise UserError(what, code=OLD_FORMAT, where=path, remedy=remedy)
    if found != _FORMAT:
        what = f"is of format {found}, and {_FORMAT} is known"
        raise UserError(what, code="checkpoint.newer_format", where=path, remedy="update Veneer")


def _read(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except FileNotFoundError:
        raise UserError(f"has no {name}, so it is not whole", code="checkpoint.damaged", where=path) from None
    except OSError as error:
        what = f"{name} cannot be read: {error.strerror or error}"
        raise UserError(what, code="checkpoint.unreadable", where=path) from error


def _compare(content: bytes, expected: Mapping[str, Any], path: Path) -> None:
    if len(content) != expected["bytes"]:
        what = f"{STATE} has {len(content):,} bytes of {expected['bytes']:,}"
    elif hashlib.sha256(content).hexdigest() != expected["sha256"]:
        what = f"{STATE} is damaged: its SHA-256 is not the one in {MANIFEST}"
    else:
        return
    raise UserError(what, code="checkpoint.damaged", where=path)
