"""Say what a folder is that is no base, and which folder or file was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from veneer.errors import UserError
from veneer.family.base_index import INDEX, INDEXES, find_index
from veneer.family.file_content import fetch_again

__all__ = ["explain_folder", "near_names"]

_DEEPEST = 4  # folders below: models--owner--name/snapshots/hash has two
_MOST = 500  # files and folders that are looked through
_PARTS = ("unet", "transformer", "vae", "text_encoder", "scheduler")
_ADAPTERS = ("pytorch_lora_weights.safetensors", "adapter_config.json")


def explain_folder(folder: Path) -> UserError:
    """Return the mistake to take a folder for a base that has no index."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        return UserError(what, code="base.unreadable", where=folder, remedy="give yourself the right to read it")
    what, remedy = _explain(folder, names)
    return UserError(what, code="base.not_found", where=folder, remedy=remedy)


def _explain(folder: Path, names: Sequence[str]) -> tuple[str, str]:
    """Return what a folder of these names is, and what to give in its stead."""
    if not names:
        return "is an empty folder", "give the folder that the base was downloaded to"
    if find_index(folder.absolute().parent) is not None:
        return f"is one part of a base, its {folder.name}", f"give the folder above: {folder.absolute().parent}"
    if index := next((name for name in INDEXES if name in names), None):  # a link to nothing, or a folder
        return f"has a {index} that is not there", fetch_again(folder / index)
    if bases := _bases_below(folder):
        more = f", one of {len(bases)}" if len(bases) > 1 else ""
        return f"holds no {INDEX}", f"the base lies further down: give {bases[0]}{more}"
    if parts := [name for name in _PARTS if name in names]:
        what = f"holds no {INDEX}, which says what its {' and '.join(parts[:2])} are parts of"
        return what, fetch_again(folder / INDEX)
    if any(name in names for name in _ADAPTERS):
        return "holds an adapter, not a base", "give the base that it was trained on"
    if files := [name for name in names if name.endswith((".safetensors", ".ckpt", ".gguf"))]:
        return f"holds no {INDEX}, but {files[0]}", f"give the file, if it is the base: {folder / files[0]}"
    if "config.json" in names:
        return f"holds no {INDEX}: it is a single network", "give the folder of the whole base"
    return f"holds no {INDEX}", "give a base in diffusers' folder layout"


def _bases_below(folder: Path) -> list[Path]:
    """Return the folders below that hold a base, a few levels down at most."""
    found, level = list[Path](), [folder]
    for _ in range(_DEEPEST):
        below = [path for parent in level for path in islice(_folders(parent), _MOST)][:_MOST]
        found += [path for path in below if find_index(path) is not None]
        level = below
    return sorted(found)


def _folders(parent: Path) -> list[Path]:
    try:
        return [path for path in parent.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def near_names(path: Path) -> list[str]:
    """Return files and folders here whose names are almost that of a path that is not there."""
    parent = path.absolute().parent
    try:
        names = {other.name.casefold(): other.name for other in islice(parent.iterdir(), _MOST)}
    except OSError:
        return []
    near = difflib.get_close_matches(path.name.casefold(), names, n=1, cutoff=0.75)
    return [str(path.parent / names[name]) for name in near]
