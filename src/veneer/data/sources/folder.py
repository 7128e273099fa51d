"""A folder or a zip of pictures with caption files beside them."""

from __future__ import annotations

from dataclasses import replace

from veneer.config.source_config import SourceConfig
from veneer.data.sources.caption_files import CaptionFiles
from veneer.data.sources.protocol import Listing
from veneer.data.sources.tree import Tree
from veneer.data.sources.unread import find_unread

__all__ = ["FolderSource"]


class FolderSource:
    """A folder or a zip of pictures, each of which may have caption files beside it."""

    def list_pictures(self, config: SourceConfig) -> Listing:
        """List the pictures of a folder and of those below it."""
        tree = Tree.walk(config.path, config.follow_links)
        captions = CaptionFiles(tree, config.captions)
        listing = tree.list_pictures(captions.describe)
        unread = find_unread(tree, captions.read)
        rejected = (*listing.rejected, *tree.find_misnamed(captions.read))
        notes = (*listing.notes, *captions.notes())
        return replace(listing, rejected=rejected, notes=notes, unread=tuple(unread))
