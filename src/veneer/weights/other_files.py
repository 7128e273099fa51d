"""What is said of a file that should be a safetensors file and is something else."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from veneer.errors import UserError
from veneer.file_kind import GGUF, HDF5, NUMPY, SAFETENSORS, FileKind, kind_despite_ending
from veneer.weights.header import shown

__all__ = ["other_kind", "pickle_ending"]

_OTHER = "name the .safetensors file"
_ASK = "ask its maker for a .safetensors file"
_REMEDIES: Mapping[FileKind | str, str] = {
    GGUF: _ASK,
    HDF5: _ASK,
    NUMPY: _ASK,
    "archive": "unpack it, and name the .safetensors file in it",
    "markup": "a download page was saved in its place; fetch the file itself, logged in where that is asked for",
    "pointer": "git lfs pull",
    "text": "fetch the file itself",
}
"""What to do with a file of a kind, or else of a category."""
_TEXT_SHOWN = 60


def other_kind(kind: FileKind, path: Path, start: bytes = b"") -> UserError:
    """Return the error for a file of another kind.

    Args:
        kind: of the file.
        path: of the file.
        start: its first bytes, of which a text is quoted: what servers answer is saved as a file.
    """
    if kind.category == "pickle":
        return _pickle(path)
    what = f"is {kind.name}"
    if kind.category == "text":
        words = " ".join(start[:200].decode("utf-8", "replace").split())
        what += f" that begins {shown(words[:_TEXT_SHOWN])}"
    remedy = _REMEDIES.get(kind, _REMEDIES.get(kind.category, _OTHER))
    return UserError(what, code="weights.not_safetensors", where=path, remedy=remedy)


def pickle_ending(path: Path) -> UserError:
    """Return the error for a file with a pickle's ending, which is not read but to tell what else it may be."""
    kind = kind_despite_ending(path)
    if kind is None:
        return _pickle(path)
    if kind is not SAFETENSORS:
        return other_kind(kind, path)
    what = "is a safetensors file under the name of a pickle"
    remedy = f"rename it to {path.with_suffix('.safetensors').name}"
    return UserError(what, code="weights.wrong_ending", where=path, remedy=remedy)


def _pickle(path: Path) -> UserError:
    what = "is a pickle, which can run any code when it is opened, so it was not"
    return UserError(what, code="weights.pickle", where=path, remedy=_ASK)
