"""Paths as users write them, text files that are read, and files and folders that are written whole or not at all."""

from __future__ import annotations

import codecs
import errno
import functools
import inspect
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

from veneer.errors import UserError

__all__ = [
    "atomic_stream",
    "atomic_write",
    "check_free",
    "decode_text",
    "hub_dataset",
    "is_pickle",
    "name_beside",
    "open_home",
    "open_regular",
    "opens_paths",
    "public_name",
    "read_utf8",
    "remove_folder",
    "sync_folder",
    "url_of",
    "user_path",
    "write_folder",
    "write_synced",
]

_PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),  # begins as that of UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)
_PIECE = 2**24  # bytes a write: a signal or a full disk is noticed soon, and few calls are made

_HUB = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?")
_URL = re.compile(r"(?P<scheme>https?|hf|s3|gs|file|memory):/{1,2}(?P<rest>[^/].*)", re.DOTALL)

_Called = TypeVar("_Called", bound=Callable[..., Any])


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return the path that a user means: ``~`` is the home folder, ``~ada`` that of the user ada.

    A shell opens them, but not within quotes or behind an equals sign; files, notebooks and scripts have no shell.

    Raises:
        UserError: it is empty, has a zero byte, or names the home folder of a user whom this machine does not know.
    """
    text = os.fspath(path)
    if not text:
        raise UserError("is empty, but should be a path", code="files.no_path")
    if "\0" in text:
        raise UserError("has a zero byte in it, which no path may have", code="files.no_path")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{Path(text).parts[0]} is nobody's home folder", code="files.no_home") from None


def hub_dataset(place: str | os.PathLike[str]) -> tuple[str, str | None] | None:
    """Return the name and revision of a dataset of the hub, ``hub:owner/name@revision``; None: no such."""
    named = _HUB.fullmatch(os.fspath(place))
    return None if named is None else (named["name"], named["revision"])


def url_of(place: str | os.PathLike[str]) -> str | None:
    """Return the URL that a place is, with the second slash that a path loses; None if it is a path."""
    url = _URL.fullmatch(os.fspath(place))
    return None if url is None else f"{url['scheme']}://{url['rest']}"


def open_home(name: str) -> str:
    """Return a name that may be a path with its ``~`` opened: a model's, which may be a hub id, which begins with none.

    Raises:
        UserError: as of :func:`user_path`.
    """
    return str(user_path(name)) if name.startswith("~") else name


def check_free(place: Path, option: str = "--out") -> None:
    """Refuse to write over something.

    Args:
        place: of what is to be written.
        option: which names another place.

    Raises:
        UserError: there is something of this name.
    """
    if place.exists():
        raise UserError("is there already", code="output.exists", where=place, remedy=f"choose another {option}")


def opens_paths(called: _Called) -> _Called:
    """Let a function or a dataclass take text for each argument annotated as ``Path``, and open its ``~``.

    Lists and tuples of paths are opened element by element.
    """
    owner: Any = called
    is_class = inspect.isclass(called)
    inner = owner.__init__ if is_class else owner
    signature = inspect.signature(inner)
    # annotations are text, as `from __future__ import annotations` leaves them
    names = [name for name, each in signature.parameters.items() if re.search(r"\bPath\b", str(each.annotation))]

    @functools.wraps(inner)
    def opening(*args: Any, **keywords: Any) -> Any:
        given = signature.bind(*args, **keywords)
        for name in names:
            if name in given.arguments:
                given.arguments[name] = _opened(given.arguments[name])
        return inner(*given.args, **given.kwargs)

    if is_class:
        owner.__init__ = opening
        return called
    return cast(_Called, opening)


def _opened(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return user_path(value)
    if not isinstance(value, (list, tuple)):
        return value
    make = getattr(value, "_make", type(value))  # a named tuple takes its fields one by one
    return make(map(_opened, value))


def read_utf8(path: Path) -> str:
    """Read a text file: UTF-8, or what its byte order mark says, which may be UTF-16 or UTF-32.

    Raises:
        UserError: there is no such file, it may not be read, or it is not such a text.
    """
    try:
        with open_regular(path) as file:
            content = file.read()
    except FileNotFoundError:
        raise UserError("no such file", code="files.not_found", where=path) from None
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", code="files.unreadable", where=path) from None
    return decode_text(content, path)


def decode_text(content: bytes, where: object) -> str:
    """Decode a text file: UTF-8, or what its byte order mark says, which may be UTF-16 or UTF-32.

    Args:
        content: its bytes.
        where: the file, for messages.

    Raises:
        UserError: it is not such a text.
    """
    encoding, name = next((found for mark, *found in _MARKS if content.startswith(mark)), ("utf-8", "UTF-8"))
    try:
        text = content.decode(encoding)
        place = text.find("\0")
    except UnicodeDecodeError as error:
        place = error.start
    if place >= 0:  # a NUL, which no text has, tells of UTF-16 without a mark
        raise UserError(f"not {name} at byte {place}", code="files.not_utf8", where=where, remedy="save it as UTF-8")
    return text


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path) -> io.BufferedReader:
    """Open a file for reading, unless it is none: a pipe would be waited for, a device may never end.

    Raises:
        OSError: it is no regular file nor a link to one, is not there, or may not be read.
    """
    _check_regular(os.stat(path).st_mode)  # before it is opened, for opening a device can do something
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        _check_regular(os.fstat(descriptor).st_mode)
    except OSError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(errno.EINVAL, f"it is {kind} and no regular file")


def public_name(name: str, instead: str) -> str:
    """Return a folder's or file's name as others may see it: not if it is empty, or the user's own."""
    return instead if not name.strip(".") or name.lower() == Path.home().name.lower() else name


def is_pickle(path: Path) -> bool:
    """Check by its ending whether a file is a pickle: such are not opened, for opening one can run code."""
    return path.suffix.lower() in _PICKLES


def name_beside(path: Path) -> Path:
    """Return a hidden name beside a place, for what is written before it takes that place; no other writer has it.

    A process's number is no such name: two containers that share a folder may have the same, and two threads do.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def atomic_write(path: Path, content: bytes) -> None:
    """Write a file that a reader sees whole or not at all: beside its place, synced, renamed.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    _write_aside(path, lambda beside: write_synced(beside, content))


def atomic_stream(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a file as :func:`atomic_write` does, of pieces that are made one after the other.

    Raises:
        UserError: the folder cannot be made or written to.
    """
    _write_aside(path, lambda beside: _write_pieces(beside, pieces))


def _write_aside(path: Path, write: Callable[[Path], None]) -> None:
    """Let a file be written beside its place, and give it its place once it is whole."""
    beside = name_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(beside)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of files that a reader sees whole or not at all, also after a power cut.

    The files are written in the order given into a folder beside the place, each synced; then that folder is synced,
    renamed, and the folders above it, which hold its name, are synced. A folder that is at the place already, which
    its owner knows to be of no use, is removed first.

    Raises:
        UserError: it cannot be written; what was written so far is gone again, and so is the space that it took.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _fill(beside, files)
            if path.exists():
                remove_folder(path)
            os.rename(beside, path)
            sync_folder(path.parent)
            sync_folder(path.parent.parent)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"cannot be written: {error.strerror or error}", code="files.unwritable", where=path)


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, content in files.items():
        write_synced(folder / name, content)
    sync_folder(folder)


def write_synced(path: Path, content: bytes) -> None:
    """Write a file in place and wait until the disk has it."""
    _write_pieces(path, [content])


def _write_pieces(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o666)
    try:
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                rest = rest[os.write(descriptor, rest[:_PIECE]) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the disk has a folder's names; Windows has no such thing and keeps them by itself."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_folder(folder: Path) -> None:
    """Remove a folder such that no reader finds half of it: its name goes first."""
    aside = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(folder, aside)
    shutil.rmtree(aside, ignore_errors=True)
