"""Check what lies in a file of a base before a library opens it, so that a message names the cause.

Files that other programs left behind look alike to a loader: a page that the hub answered with, a pointer that git left
in place of weights, a download that broke off. Each is known by its first bytes or by its length, and needs another
remedy.
"""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path
from typing import Any

import veneer.base
from veneer.errors import UserError
from veneer.file_kind import EMPTY, GGUF, SAFETENSORS, FileKind, is_torn_zip, kind_in
from veneer.weights.header import Header, parse_header

__all__ = ["check_config", "check_content", "check_weights", "fetch_again", "header"]

_LENGTH = 8  # bytes before the header of a safetensors file
_HUB_CACHE = re.compile(r"models--(.+?)--(.+)")


def check_content(file: Path) -> FileKind | None:
    """Check that a file is there, can be read and holds what its maker put into it; return what it is, if it is known.

    Raises:
        UserError: otherwise.
    """
    if not file.exists() and file.is_symlink():
        what = f"is a link to {file.readlink()}, which is not there"
        raise UserError(what, code="base.file_missing", where=file, remedy=fetch_again(file))
    try:
        if not stat.S_ISREG(file.stat().st_mode):
            what = "is a folder" if file.is_dir() else "is no regular file"
            raise UserError(f"{what}, where a file is wanted", code="base.wrong_file", where=file)
        with file.open("rb") as opened:
            kind = kind_in(opened)
    except FileNotFoundError:
        raise UserError("is missing", code="base.file_missing", where=file, remedy=fetch_again(file)) from None
    except PermissionError as error:
        remedy = "give yourself the right to read it"
        raise UserError("may not be read", code="base.unreadable", where=file, remedy=remedy) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", code="base.unreadable", where=file) from error
    if kind is EMPTY:
        raise UserError("is empty", code="base.cut_short", where=file, remedy=fetch_again(file))
    if kind is not None and kind.category in ("pointer", "markup"):
        raise UserError(f"is {kind.name}", code="base.wrong_file", where=file, remedy=_replace(file, kind))
    return kind


def _replace(file: Path, kind: FileKind) -> str:
    if kind.category == "pointer" and any((folder / ".git").exists() for folder in file.absolute().parents):
        return "run git lfs pull in the folder that was cloned"
    if kind.category == "pointer":
        return "clone again with git-lfs installed, or fetch the file itself"
    return f"it was saved in place of the file, as when a login is asked for; {fetch_again(file)}"


def fetch_again(file: Path) -> str:
    """Return how to get a file of a base again, as far as its place tells where it came from."""
    if veneer.base.path() in file.parents:
        return "install Veneer again"
    for folder in file.absolute().parents:
        if (found := _HUB_CACHE.fullmatch(folder.name)) and "snapshots" in file.parts:
            name = file.absolute().relative_to(folder / "snapshots").parts[1:]
            return f"fetch it again: hf download {found[1]}/{found[2]} {'/'.join(name)} --force-download"
    return "fetch it again from where the base came from"


def check_config(file: Path) -> dict[str, Any]:
    """Check a JSON file of settings and return what it says.

    Raises:
        UserError: it is not there, cannot be read, or is no JSON object.
    """
    check_content(file)
    try:
        text = file.read_bytes().decode("utf-8")
        config = json.loads(text)
    except UnicodeDecodeError as error:
        what = f"is not UTF-8 at byte {error.start}"
        raise UserError(what, code="base.broken_config", where=file, remedy=fetch_again(file)) from error
    except json.JSONDecodeError as error:
        what = f"is no JSON at line {error.lineno}: {error.msg}"
        raise UserError(what, code="base.broken_config", where=file, remedy=_mend(file, text)) from error
    except RecursionError as error:
        what = "is nested too deep to be settings"
        raise UserError(what, code="base.broken_config", where=file, remedy=fetch_again(file)) from error
    if not isinstance(config, dict):
        what = f"holds no settings but a JSON {type(config).__name__}"
        raise UserError(what, code="base.broken_config", where=file, remedy=fetch_again(file))
    return config


def _mend(file: Path, text: str) -> str:
    if text.startswith("\ufeff"):
        return "save it as UTF-8 without a byte order mark"
    return f"mend the line if you edited it, else {fetch_again(file)}"


def check_weights(file: Path) -> None:
    """Check that a file of weights is whole and of the format that its ending says; no number is read.

    Raises:
        UserError: it is not.
    """
    if file.suffix == ".safetensors":
        header(file)
        return
    kind = check_content(file)
    if file.suffix == ".gguf" and kind is GGUF:
        return
    if is_torn_zip(file):
        raise UserError("is cut short", code="base.cut_short", where=file, remedy=fetch_again(file))
    if kind is None or kind.category != "pickle":
        what = "holds no weights that PyTorch wrote" + (f": it is {kind.name}" if kind else "")
        raise _wrong_file(file, what, f"rename it to {_safetensors_name(file)}" if kind is SAFETENSORS else None)


def _safetensors_name(file: Path) -> str:
    """Return the name that the libraries have for a safetensors file, for one that they have for a pickle."""
    return re.sub(r"^pytorch_model", "model", file.with_suffix(".safetensors").name)


def header(file: Path) -> Header:
    """Return the header of a safetensors file, checked against the file's length.

    Raises:
        UserError: it is not there, or no safetensors file that is whole.
    """
    kind = check_content(file)
    if kind is None:
        raise _wrong_file(file, "is no safetensors file: it does not begin with a header")
    if kind is not SAFETENSORS:
        raise _wrong_file(file, f"is {kind.name} under the name of a safetensors file", _REMEDIES.get(kind.category))
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(_LENGTH), "little")
        if _LENGTH + length > size:
            raise _cut_short(file, size, _LENGTH + length)
        content = opened.read(length)
    try:
        found = parse_header(content, file)
    except UserError as fault:
        raise _wrong_file(file, f"is damaged: {fault.what}") from fault
    if (whole := _LENGTH + length + found.data_bytes) != size:
        raise _cut_short(file, size, whole)
    return found


_REMEDIES = {
    "archive": "unpack it, and give the .safetensors file or the folder in it",
    "pickle": "convert it in a place you trust, or fetch the .safetensors file",
}
"""What to do with a file of each category that has the name of a safetensors file, if not fetch it again."""


def _wrong_file(file: Path, what: str, remedy: str | None = None) -> UserError:
    return UserError(what, code="base.wrong_file", where=file, remedy=remedy or fetch_again(file))


def _cut_short(file: Path, size: int, whole: int) -> UserError:
    if size > whole:
        what = f"has {size:,} bytes, and its header accounts for {whole:,}"
        return _wrong_file(file, what)
    what = f"is cut short: it has {size:,} of {whole:,} bytes"
    return UserError(what, code="base.cut_short", where=file, remedy=fetch_again(file))
