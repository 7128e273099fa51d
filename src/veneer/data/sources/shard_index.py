"""Keep what is known of shards that lie elsewhere, so that each is read through once and never again.

An index has a line for each picture: its place in the shard, its captions, and what decoding it told. It is keyed by
all that it depends on: what the server says of the shard (its size and ETag), how captions are read, and the version
of the decoding. It may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple
from itertools import islice
from pathlib import Path
from typing import Any

from veneer.config.source_config import SourceConfig
from veneer.data.decode import DECODING
from veneer.data.remote import RemoteState
from veneer.data.seen import Look, Seen
from veneer.data.sources.webdataset_shard import PackedPicture, ShardContent
from veneer.errors import UserError
from veneer.files import atomic_stream

__all__ = ["ShardIndex"]

_VERSION = 1
"""Raise it when the same shard begins to give other lines."""
_FOLDER = "shard-index"
_LINES = 2**12
"""Lines that are read at a time."""


class ShardIndex:
    """A folder of indexes, one for each shard.

    Args:
        cache: the folder that a run keeps latents in; None: the user's own cache.
    """

    def __init__(self, cache: Path | None) -> None:
        self._folder = (cache or _user_cache()) / _FOLDER

    def get_or_read(
        self, url: str, state: RemoteState, config: SourceConfig, read: Callable[[], ShardContent]
    ) -> ShardContent:
        """Return what a shard holds; read it and keep that if nothing is kept of the shard as it is.

        Args:
            url: of the shard.
            state: what its server says of it.
            config: how its captions are read.
            read: reads the shard.
        """
        path = self._path(url, state, config)
        kept = _load(path)
        if kept is not None:
            return kept
        content = read()
        # a server that gives no tag cannot tell of a change; an index saves time, and no run has to end without it
        if state.tag is not None:
            with suppress(UserError):
                atomic_stream(path, _lines(url, content))
        return content

    def _path(self, url: str, state: RemoteState, config: SourceConfig) -> Path:
        how = [config.captions, config.columns.image, config.columns.text]
        key = json.dumps([_VERSION, DECODING, url, state.size, state.tag, *how])
        return self._folder / f"{hashlib.sha256(key.encode()).hexdigest()}.jsonl"


def _user_cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veneer"


def _lines(url: str, shard: ShardContent) -> Iterator[bytes]:
    yield _line({"url": url, "rejected": shard.rejected, "unread": shard.unread})
    for picture in shard.pictures:
        assert picture.seen is not None
        content, width, height, thumb, remarks, look, *frames = astuple(picture.seen)
        seen = (content, width, height, b2a_base64(thumb, newline=False).decode(), remarks, look, *frames)
        at = None if picture.captions_at == picture.name else picture.captions_at
        yield _line([picture.name, picture.offset, picture.size, picture.captions, at, seen])
    yield _line({"pictures": len(shard.pictures)})


def _line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def _load(path: Path) -> ShardContent | None:
    """Return what an index holds; None if there is none, or it is no whole one."""
    try:
        with path.open("rb") as file:
            head = json.loads(next(file))
            content = ShardContent([], [(name, reason) for name, reason in head["rejected"]], list(head["unread"]))
            while lines := list(islice(file, _LINES)):
                # as one text, for a million lines by themselves take twice the time
                rows = json.loads(b"[" + b",".join(lines) + b"]")
                end = rows.pop() if isinstance(rows[-1], dict) else None
                content.pictures += map(_picture, rows)
                if end is not None:
                    return content if end["pictures"] == len(content.pictures) else None
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return None
    return None


def _picture(values: list[Any]) -> PackedPicture:
    name, offset, size, captions, at, (content, width, height, thumb, remarks, look, *frames) = values
    conversions, edge_width, is_flat = look
    look = Look(tuple(conversions), edge_width, is_flat)
    seen = Seen(content, width, height, a2b_base64(thumb), tuple(remarks), look, *frames)
    return PackedPicture(name, offset, size, tuple(captions), name if at is None else at, seen)
