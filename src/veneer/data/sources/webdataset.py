"""Tar shards in the form of the webdataset library. Members are read where they lie: nothing is unpacked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from veneer.config.source_config import SourceConfig
from veneer.data.collector import spared
from veneer.data.location import AT_LOCATION, Location
from veneer.data.manifest import Rejected
from veneer.data.remote import RemotePart, open_remote, remote_state
from veneer.data.seen import see
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.shard_index import ShardIndex
from veneer.data.sources.shards import COMPRESSED, TARS, expand_braces, find_shards
from veneer.data.sources.webdataset_shard import FIELDS, PackedPicture, ShardContent, read_shard
from veneer.data.wording import few
from veneer.errors import UserError
from veneer.files import open_regular, url_of

__all__ = ["WebdatasetSource"]

_GROUND = (255, 255, 255)
"""What transparent pictures are laid on where they are compared with others, whatever they are laid on in training."""


class WebdatasetSource:
    """One ``.tar``, a pattern of them with braces, a folder of them, or the URL of one or of a pattern.

    Args:
        cache: where indexes of shards that lie elsewhere are kept; None: in the user's own cache.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self._index = ShardIndex(cache)

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        """List the pictures of the shards in their order; None if the place has none.

        Raises:
            UserError: a shard is compressed or not there, or which member is the picture cannot be told.
        """
        url = url_of(config.path)
        if url is None:
            _refuse_compressed(config)
            shards = find_shards(config, TARS)
        else:
            _refuse_masks(config)
            shards = _remote_shards(url)
        if shards is None:
            return None
        entries, rejected, fields = list[Entry](), list[Rejected](), dict[str, None]()
        for shard in spared(dict.fromkeys(shards), every=1):  # what one holds is gone before the next is read
            content = self._read(shard, config)
            entries += _entries(shard, content.pictures)
            rejected += [Rejected(Location(shard, name or None).path, reason) for name, reason in content.rejected]
            fields |= dict.fromkeys(content.unread)
        if not entries and not rejected:
            remedy = f"fields that are read: {' '.join(FIELDS)}"
            raise UserError("no picture in the shards", code="data.no_picture", where=config.path, remedy=remedy)
        unread = [f".{name}" for name in fields]
        notes = (f"{config.path}: members of these fields are not read: {few(unread)}",) if unread else ()
        return Listing(tuple(entries), tuple(rejected), notes, has_masks=config.masks == "beside")

    def _read(self, shard: Path, config: SourceConfig) -> ShardContent:
        url = url_of(shard)
        try:
            if url is None:
                with open_regular(shard) as file:
                    return read_shard(file, config, shard)
            return self._index.get_or_read(url, remote_state(url), config, lambda: _stream(url, config))
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", code="files.unreadable", where=shard) from None


def _remote_shards(url: str) -> list[Path]:
    if not url.lower().partition("?")[0].endswith(TARS):
        what, remedy = "only .tar shards are read by URL", "download it, or name a dataset of the hub: hub:owner/name"
        raise UserError(what, code="data.unknown_url", where=url, remedy=remedy)
    return [Path(name) for name in expand_braces(url)]


def _refuse_masks(config: SourceConfig) -> None:
    """Refuse members as masks of shards that lie elsewhere, of which the index says nothing."""
    if config.masks == "beside":
        what, remedy = "masks beside pictures are read of shards on this machine alone", "download the shards"
        raise UserError(what, code="data.masks_by_url", where=config.path, remedy=remedy)


def _stream(url: str, config: SourceConfig) -> ShardContent:
    """Read a shard from its beginning to its end, decoding each picture in passing."""
    with open_remote(url) as file:
        return read_shard(file, config, url, lambda content: see(content, _GROUND))


def _refuse_compressed(config: SourceConfig) -> None:
    """Refuse compressed shards: such a file can be read from its beginning alone, and a draw needs one member of it."""
    found = find_shards(config, COMPRESSED)
    if found:
        what = "is compressed, so that no picture in it can be read without all before it"
        remedy = "unpack it to a .tar, e.g. with gunzip: its pictures are compressed by themselves"
        raise UserError(what, code="data.shards_compressed", where=found[0], remedy=remedy)


def _entries(shard: Path, pictures: Sequence[PackedPicture]) -> Iterator[Entry]:
    make, before = Location if url_of(shard) is None else RemotePart, f"{shard}/"
    for one in pictures:
        location, at = make(shard, one.name, one.offset, one.size), before + one.captions_at
        mask = None if one.mask is None else Location(shard, *one.mask)
        yield Entry(AT_LOCATION, one.captions, captions_at=at, location=location, mask=mask, seen=one.seen)
