"""Read files by URL: from beginning to end, or a part of one. HTTP by the standard library, all else by fsspec."""

from __future__ import annotations

import errno
import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar, TypeVar, cast

from veneer.data.location import MAX_BYTES, Location
from veneer.data.unreadable import Unreadable, check_size
from veneer.files import url_of

__all__ = ["ForwardFile", "RemotePart", "RemoteState", "open_remote", "remote_state"]

T = TypeVar("T")
_TRIES = 4
_TIMEOUT = 60  # seconds without a byte
_KEPT = 1024  # bytes behind the place, for those who look back at a header
_PIECE = 2**20
_GONE = frozenset({401, 403, 404, 410, 416})
"""Answers that another try would not change."""


@dataclass(frozen=True)
class RemoteState:
    """What a server says of a file, which changes when the file does.

    Attributes:
        size: in bytes; None if it does not say.
        tag: its ETag, checksum or time of change; None likewise.
    """

    size: int | None
    tag: str | None


def remote_state(url: str) -> RemoteState:
    """Ask for the state of a file.

    Raises:
        OSError: it is not there, or the server does not answer.
    """
    return _tried(lambda: _http_state(url) if _is_http(url) else _other_state(url), url)


def open_remote(url: str) -> BinaryIO:
    """Open a file that is read once, from its beginning.

    Raises:
        OSError: it is not there, or the server does not answer.
    """
    return cast(BinaryIO, ForwardFile(_tried(lambda: _opened(url, {}), url)))


@dataclass(frozen=True, slots=True)
class RemotePart(Location):
    """A part of a file that a server has: ``container`` is its URL, as a path."""

    is_remote: ClassVar[bool] = True

    def __str__(self) -> str:
        """Return the place for messages."""
        return f"{url_of(self.container)}/{self.member}"

    def read(self, limit: int = MAX_BYTES) -> bytes:
        """Read the part alone.

        Raises:
            OSError: it is not there, or the server does not answer.
            Unreadable: it has more bytes than ``limit``, or the file has become shorter.
        """
        assert self.offset is not None and self.size is not None
        check_size(self.size, limit)
        url, offset, size = url_of(self.container) or "", self.offset, self.size
        content = _tried(lambda: _read_part(url, offset, size), url)
        if len(content) < size:
            raise Unreadable(f"{url} is cut short: {size - len(content):,} bytes of it are missing")
        return content

    def head(self, count: int) -> bytes:
        """Read the first bytes."""
        return self.read()[:count]


class ForwardFile:
    """A stream as a file that is sought forward, and a little back.

    Args:
        stream: has ``read(size)``, which may return less.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._place = 0  # of the stream
        self._kept = b""  # the last bytes before it
        self._back = 0  # bytes of them that are read again

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._place - self._back

    def seek(self, place: int, whence: int = 0) -> int:
        """Go to a place."""
        assert whence == 0, "from the beginning alone"
        ahead = place - self.tell()
        if ahead < 0 and self._back - ahead > len(self._kept):
            raise OSError(errno.ESPIPE, "a stream is not read back")
        if ahead < 0:
            self._back -= ahead
        while ahead > 0:
            read = len(self.read(min(ahead, _PIECE)))
            if not read:
                break
            ahead -= read
        return self.tell()

    def read(self, size: int) -> bytes:
        """Read as many bytes; fewer at the end alone."""
        again = self._kept[len(self._kept) - self._back :][:size] if self._back else b""
        self._back -= len(again)
        pieces = [again]
        missing = size - len(again)
        while missing > 0:
            piece = self._stream.read(min(missing, _PIECE))
            if not piece:
                break
            pieces.append(piece)
            self._place += len(piece)
            missing -= len(piece)
        read = b"".join(pieces)
        if len(read) > len(again):
            self._kept = (self._kept + read[len(again) :])[-_KEPT:]
        return read

    def close(self) -> None:
        """Close the stream."""
        self._stream.close()

    def __enter__(self) -> ForwardFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _tried(call: Callable[[], T], url: str) -> T:
    """Return what a call returns, tried anew where a server or the network is at fault.

    Raises:
        OSError: each try fails, or another one would not help.
    """
    for left in reversed(range(_TRIES)):
        try:
            return call()
        except FileNotFoundError:
            raise OSError(errno.ENOENT, f"{url} is not there") from None
        except urllib.error.HTTPError as error:
            if error.code in _GONE or not left:
                raise OSError(errno.EIO, f"{url} is not given: {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            if not left:
                reason = getattr(error, "reason", None) or error
                raise OSError(errno.EIO, f"{url} cannot be reached: {reason}") from None
        time.sleep(0.5 * 2 ** (_TRIES - 1 - left))
    raise AssertionError("the last try returns or raises")


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _request(url: str, headers: dict[str, str], method: str = "GET") -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "veneer", **headers}, method=method)
    return urllib.request.urlopen(request, timeout=_TIMEOUT)


def _http_state(url: str) -> RemoteState:
    with _request(url, {}, "HEAD") as answer:
        size = answer.headers.get("Content-Length")
        tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified")
        return RemoteState(None if size is None else int(size), tag)


def _filesystem(url: str) -> tuple[Any, str]:
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise OSError(errno.ENOSYS, f"{url} needs another library: {error}") from None
    return system, str(path)


def _other_state(url: str) -> RemoteState:
    system, path = _filesystem(url)
    info = system.info(path)
    tag = next((info[key] for key in ("etag", "ETag", "blob_id", "oid", "mtime", "created") if info.get(key)), None)
    return RemoteState(info.get("size"), None if tag is None else str(tag))


def _opened(url: str, headers: dict[str, str]) -> Any:
    if _is_http(url):
        return _request(url, headers)
    system, path = _filesystem(url)
    return system.open(path, "rb")


def _read_part(url: str, offset: int, size: int) -> bytes:
    if not _is_http(url):
        system, path = _filesystem(url)
        return bytes(system.cat_file(path, start=offset, end=offset + size))
    if not size:
        return b""
    with _request(url, {"Range": f"bytes={offset}-{offset + size - 1}"}) as answer:
        if answer.status != 206:
            raise OSError(errno.ENOTSUP, "its server gives no parts of a file")
        return bytes(answer.read())
