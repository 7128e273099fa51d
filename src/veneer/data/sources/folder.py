"""A folder of pictures with caption files beside them."""

from __future__ import annotations

from dataclasses import replace

from veneer.config.schema import SourceConfig
from veneer.data.sources.caption_files import CaptionFiles
from veneer.data.sources.protocol import Listing
from veneer.data.sources.tree import Tree
from veneer.data.sources.unread import find_unread

__all__ = ["FolderSource"]


class FolderSource:
    """A folder of pictures, each of which may have caption files beside it."""

    def list_pictures(self, config: SourceConfig) -> Listing:
        """List the pictures of a folder and of those below it."""
        tree = Tree.walk(config.path)
        captions = CaptionFiles(tree.own_files, tree.pictures, config.captions)
        listing = tree.list_pictures(lambda picture: [captions.describe(picture)])
        read = [file.path for file in captions.read]
        unread = find_unread(tree.own_files, tree.pictures, read)
        rejected = (*listing.rejected, *tree.find_misnamed(read))
        return replace(listing, rejected=rejected, notes=tuple(captions.notes()), unread=tuple(unread))
