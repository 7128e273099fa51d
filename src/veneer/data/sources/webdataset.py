"""Tar shards in the form of the webdataset library. Members are read where they lie: nothing is unpacked."""

from __future__ import annotations

from pathlib import Path

from veneer.config.schema import SourceConfig
from veneer.data.location import Location
from veneer.data.manifest import Rejected
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.shards import COMPRESSED, TARS, find_shards
from veneer.data.sources.webdataset_shard import FIELDS, PackedPicture, ShardContent, read_shard
from veneer.data.wording import few
from veneer.errors import UserError
from veneer.files import open_regular

__all__ = ["WebdatasetSource"]


class WebdatasetSource:
    """One ``.tar``, a pattern of them with braces, or a folder of them."""

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        """List the pictures of the shards in their order; None if the place has none.

        Raises:
            UserError: a shard is compressed or not there, or which member is the picture cannot be told.
        """
        _refuse_compressed(config)
        shards = find_shards(config, TARS)
        if shards is None:
            return None
        contents = {shard: _read(shard, config) for shard in shards}
        entries = tuple(_entry(shard, one) for shard, content in contents.items() for one in content.pictures)
        rejected = tuple(
            Rejected(Location(shard, name or None).path, reason)
            for shard, content in contents.items()
            for name, reason in content.rejected
        )
        if not entries and not rejected:
            remedy = f"fields that are read: {' '.join(FIELDS)}"
            raise UserError("no picture in the shards", code="data.no_picture", where=config.path, remedy=remedy)
        unread = [f".{name}" for name in dict.fromkeys(name for one in contents.values() for name in one.unread)]
        notes = (f"{config.path}: members of these fields are not read: {few(unread)}",) if unread else ()
        return Listing(entries, rejected, notes)


def _refuse_compressed(config: SourceConfig) -> None:
    """Refuse compressed shards: such a file can be read from its beginning alone, and a draw needs one member of it."""
    found = find_shards(config, COMPRESSED)
    if found:
        what = "is compressed, so that no picture in it can be read without all before it"
        remedy = "unpack it to a .tar, e.g. with gunzip: its pictures are compressed by themselves"
        raise UserError(what, code="data.shards_compressed", where=found[0], remedy=remedy)


def _read(shard: Path, config: SourceConfig) -> ShardContent:
    try:
        with open_regular(shard) as file:
            return read_shard(file, config, shard)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", code="files.unreadable", where=shard) from None


def _entry(shard: Path, picture: PackedPicture) -> Entry:
    location = Location(shard, picture.name, picture.offset, picture.size)
    at = f"{shard}/{picture.captions_at}"
    return Entry(location.path, picture.captions, captions_at=at, location=location)
