"""The kinds of sources, and the one function that lists the pictures of any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from veneer.config.data_config import DataConfig
from veneer.config.source_config import SourceConfig
from veneer.data.captions import CaptionStyle, complete_captions, refuse_uncaptioned
from veneer.data.frame_sequence import FrameSequence
from veneer.data.manifest import Rejected
from veneer.data.sources.folder import FolderSource
from veneer.data.sources.hub import HubSource
from veneer.data.sources.image_sequences import list_sequences
from veneer.data.sources.kohya_toml import KohyaTomlSource
from veneer.data.sources.masks import with_masks
from veneer.data.sources.metadata import MetadataSource
from veneer.data.sources.numbered_folders import with_numbered_folders
from veneer.data.sources.parquet import ParquetSource
from veneer.data.sources.protocol import Entry, Listing, Source
from veneer.data.sources.references import with_references
from veneer.data.sources.tree import is_clip
from veneer.data.sources.unread import note_unread
from veneer.data.sources.webdataset import WebdatasetSource
from veneer.data.tags import TagRules
from veneer.data.wording import few

__all__ = ["SOURCES", "known_sources", "read_source", "read_sources"]


def known_sources(cache: Path | None = None) -> tuple[Source, ...]:
    """Return the kinds in the order in which they are asked; the last takes any place, or says what is wrong with it.

    Args:
        cache: folder in which what is read of shards that lie elsewhere is kept; None: the user's own cache.
    """
    tars = WebdatasetSource(cache)
    return (HubSource(), KohyaTomlSource(), tars, ParquetSource(), MetadataSource(), FolderSource())


SOURCES = known_sources()
_AS_WRITTEN = CaptionStyle()
_NO_FRAMES = "a clip, and data.frames is not set: [17, 33] is for a base of clips, 1 takes one frame for any base"
"""Why a clip is left out of a run that asks for no frames."""


def read_sources(config: DataConfig) -> list[Listing]:
    """List the pictures of all sources of a config, as :func:`read_source` does."""
    style = CaptionStyle.of(config)
    sources = known_sources(config.cache)
    clips = config.frames is not None
    return [read_source(source, config.trigger, sources, style, clips=clips) for source in config.sources]


def read_source(
    config: SourceConfig,
    trigger: str | None,
    sources: Sequence[Source] = SOURCES,
    style: CaptionStyle = _AS_WRITTEN,
    *,
    clips: bool = True,
) -> Listing:
    """List the pictures of a source with their captions, each of which holds the trigger.

    Args:
        config: the source.
        trigger: words that call the adapter.
        sources: the kinds that are known.
        style: how captions are completed.
        clips: whether videos are listed; else they are left out, which is said of each.

    Raises:
        Uncaptioned: a caption is missing and no trigger can stand for it.
        UserError: there is no such place or no picture in it, or a caption cannot be read.
    """
    if config.image_sequences is not None:
        listing = list_sequences(config, config.image_sequences)
    else:
        listings = (source.list_pictures(config) for source in sources)
        listing = next(listing for listing in listings if listing is not None)
    listing = listing if clips else _without_clips(listing)
    listing = with_masks(listing, config.path, config.masks, config.follow_links)
    if config.references:
        listing = with_references(listing, config)
    if config.numbered_folders:
        listing = with_numbered_folders(listing, config)
    notes = (*note_unread(listing.unread), *_note_uncaptioned(listing.entries))
    listing = complete_captions(config.path, listing, trigger, style, TagRules.of(config))
    if trigger is None:
        refuse_uncaptioned(config.path, listing)
    entries = listing.entries
    if (config.repeats, config.weight) != (1, 1):  # of a million pictures it takes seconds
        entries = tuple(
            entry.revised(repeats=entry.repeats * config.repeats, weight=entry.weight * config.weight)
            for entry in entries
        )
    return replace(listing, entries=entries, notes=(*listing.notes, *notes))


def _without_clips(listing: Listing) -> Listing:
    clips = [entry for entry in listing.entries if _is_clip(entry)]
    if not clips:
        return listing
    rejected = (*listing.rejected, *(Rejected(one.path, _NO_FRAMES) for one in clips))
    return replace(listing, entries=tuple(one for one in listing.entries if not _is_clip(one)), rejected=rejected)


def _is_clip(entry: Entry) -> bool:
    return is_clip(entry.path) or isinstance(entry.location, FrameSequence)


def _note_uncaptioned(entries: Sequence[Entry]) -> list[str]:
    """Note pictures without a caption among others that have one; where none has any, the trigger was meant for all."""
    missing = [entry.captions_at for entry in entries if not entry.captions]
    if not missing or len(missing) == len(entries):
        return []
    return [f"{len(missing)} of {len(entries)} pictures have no caption but the trigger: {few(missing)}"]
