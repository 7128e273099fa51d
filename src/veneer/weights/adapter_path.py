"""The file that a path to an adapter means."""

from __future__ import annotations

from pathlib import Path

from veneer.errors import UserError
from veneer.weights.formats.names import NETWORKS
from veneer.weights.formats.strength import FILE_NAME as PEFT_NAME

__all__ = ["FILE_NAME", "file_in", "files_in"]

FILE_NAME = "pytorch_lora_weights.safetensors"
"""The name that ``load_lora_weights`` looks for in a folder."""


def file_in(path: Path) -> Path:
    """Return the adapter file that a path means: itself, or in a folder the one of a usual name.

    Raises:
        UserError: the folder has none.
    """
    if not path.is_dir():
        return path
    for name in (FILE_NAME, PEFT_NAME):
        if (path / name).is_file():
            return path / name
    what = f"holds neither {FILE_NAME} nor {PEFT_NAME}"
    raise UserError(what, code="weights.no_adapter_file", where=path, remedy="name the file itself")


def files_in(path: Path) -> dict[Path, str | None]:
    """Return the files of an adapter, each with the network that its folder's name tells; None: it tells none.

    peft keeps one network in a folder, so that an adapter of several is a folder of such folders.

    Raises:
        UserError: the folder has none.
    """
    if not path.is_dir() or (path / FILE_NAME).is_file() or (path / PEFT_NAME).is_file():
        return {file_in(path): None}
    networks = {path / name / PEFT_NAME: name for name in NETWORKS if (path / name / PEFT_NAME).is_file()}
    return {**networks} or {file_in(path): None}
