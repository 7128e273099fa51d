"""Check what lies in a file of a base before a library opens it, so that a message names the cause.

Files that other programs left behind look alike to a loader: a page that the hub answered with, a pointer that git left
in place of weights, a download that broke off. Each is known by its first bytes or by its length, and needs another
remedy.
"""

from __future__ import annotations

import json
import re
import stat
import zipfile
from pathlib import Path
from typing import Any

import veneer.base
from veneer.errors import UserError
from veneer.weights.header import MOST_BYTES, Header, parse_header

__all__ = ["check_config", "check_content", "check_weights", "fetch_again", "header", "kind_of_content"]

_START = 512  # bytes that tell what a file is
_LENGTH = 8  # bytes before the header of a safetensors file
_HUB_CACHE = re.compile(r"models--(.+?)--(.+)")
_LFS = "a git-lfs pointer, not the file itself"
_PICKLE = "a pickle"


def kind_of_content(start: bytes) -> str | None:
    """Return what a file is by its first bytes, in words; None if they tell nothing.

    Args:
        start: at least 8 bytes, of a longer file.
    """
    if start.startswith(b"version https://git-lfs"):
        return _LFS
    if re.match(rb"\s*<(!doctype html|html|\?xml)", start, re.I):
        return "a web page"
    if start.startswith(b"GGUF"):
        return "a GGUF file"
    if start.startswith(b"PK\x03\x04") or (re.match(rb"\x80[\x01-\x05]", start) and not _may_be_safetensors(start)):
        return _PICKLE
    if start.startswith((b"\x1f\x8b", b"7z\xbc\xaf\x27\x1c", b"Rar!", b"\x28\xb5\x2f\xfd")):
        return "a compressed archive"
    return None


def _may_be_safetensors(start: bytes) -> bool:
    """Return whether a header's JSON follows eight bytes of its length, whatever these are."""
    return start[_LENGTH : _LENGTH + 1] == b"{"


def check_content(file: Path) -> bytes:
    """Check that a file is there, can be read and holds what its maker put into it; return its first bytes.

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
            start = opened.read(_START)
    except FileNotFoundError:
        raise UserError("is missing", code="base.file_missing", where=file, remedy=fetch_again(file)) from None
    except PermissionError as error:
        remedy = "give yourself the right to read it"
        raise UserError("may not be read", code="base.unreadable", where=file, remedy=remedy) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror or error}", code="base.unreadable", where=file) from error
    if not start:
        raise UserError("is empty", code="base.cut_short", where=file, remedy=fetch_again(file))
    if (kind := kind_of_content(start)) in (_LFS, "a web page"):
        raise UserError(f"is {kind}", code="base.wrong_file", where=file, remedy=_replace(file, kind))
    return start


def _replace(file: Path, kind: str | None) -> str:
    if kind == _LFS and any((folder / ".git").exists() for folder in file.absolute().parents):
        return "run git lfs pull in the folder that was cloned"
    if kind == _LFS:
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
    start = check_content(file)
    if file.suffix == ".safetensors":
        header(file)
    elif start.startswith(b"PK") and not zipfile.is_zipfile(file):  # whose table of contents comes last
        raise UserError("is cut short", code="base.cut_short", where=file, remedy=fetch_again(file))
    elif kind_of_content(start) != _PICKLE:
        what = "holds no weights that PyTorch wrote"
        raise UserError(what, code="base.wrong_file", where=file, remedy=fetch_again(file))


def header(file: Path) -> Header:
    """Return the header of a safetensors file, checked against the file's length.

    Raises:
        UserError: it is not there, or no safetensors file that is whole.
    """
    start = check_content(file)
    length, size = int.from_bytes(start[:_LENGTH], "little"), file.stat().st_size
    if kind := kind_of_content(start):
        raise _no_safetensors(file, f"is {kind} under the name of a safetensors file")
    if not _may_be_safetensors(start) or length > MOST_BYTES:
        raise _no_safetensors(file, "is no safetensors file: it does not begin with a header")
    if _LENGTH + length > size:
        raise _cut_short(file, size, _LENGTH + length)
    with file.open("rb") as opened:
        opened.seek(_LENGTH)
        content = opened.read(length)
    try:
        found = parse_header(content, file)
    except UserError as fault:
        raise _no_safetensors(file, f"is damaged: {fault.what}") from fault
    if (whole := _LENGTH + length + found.data_bytes) != size:
        raise _cut_short(file, size, whole)
    return found


def _no_safetensors(file: Path, what: str) -> UserError:
    remedy = "convert it in a place you trust, or fetch the .safetensors file"
    if _PICKLE not in what:
        remedy = fetch_again(file)
    return UserError(what, code="base.wrong_file", where=file, remedy=remedy)


def _cut_short(file: Path, size: int, whole: int) -> UserError:
    if size > whole:
        what = f"has {size:,} bytes, and its header accounts for {whole:,}"
        return UserError(what, code="base.wrong_file", where=file, remedy=fetch_again(file))
    what = f"is cut short: it has {size:,} of {whole:,} bytes"
    return UserError(what, code="base.cut_short", where=file, remedy=fetch_again(file))
