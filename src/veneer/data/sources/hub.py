"""A dataset of the Hugging Face hub, by its name, through the ``datasets`` library.

That library fetches it and keeps it as Arrow tables in its own cache, whose cells are then read one by one. It has run
no code of a dataset since its release 4, and is never asked to.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from veneer.config.source_config import SourceConfig
from veneer.data.location import Location
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.table_columns import captions_in, picture_and_text
from veneer.data.table_file import TableCell, TableFile
from veneer.errors import UserError
from veneer.files import hub_dataset

__all__ = ["HubSource"]


class HubSource:
    """A dataset by its name: ``hub:owner/name``, or of one revision ``hub:owner/name@revision``."""

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        """List the rows of a split, fetching what is not here yet; None if the place is another.

        Raises:
            UserError: the library is missing, the hub does not give the dataset, or its columns cannot be told.
        """
        named = hub_dataset(config.path)
        if named is None:
            return None
        files = _fetch(*named, config)
        entries = tuple(_entries(files, config))
        if not entries:
            raise UserError("no row in this dataset", code="data.no_picture", where=config.path)
        return Listing(entries)


def _fetch(name: str, revision: str | None, config: SourceConfig) -> list[Path]:
    """Fetch a split of a dataset; return its tables in the order of its rows."""
    library = _library(config.path)
    library.disable_progress_bars()
    try:
        split = library.load_dataset(name, revision=revision, split=config.split)
    except Exception as error:  # the words of the hub's library of the day, of its server, and of the network
        raise _unfetched(error, config) from None
    return [Path(file["filename"]) for file in split.cache_files]


def _library(where: object) -> Any:
    try:
        return importlib.import_module("datasets")
    except ImportError:
        what, remedy = "needs the library datasets", "pip install 'veneer[hub-datasets]'"
        raise UserError(what, code="data.datasets_missing", where=where, remedy=remedy) from None


def _unfetched(error: Exception, config: SourceConfig) -> UserError:
    said = " ".join(str(error).split())[:300] or type(error).__name__
    if isinstance(error, ValueError) and config.split in str(error) and "split" in str(error).lower():
        return UserError(said, code="data.no_such_split", where=config.path, remedy="set split in data.sources")
    remedy = "check its name and the network, or hf download it once where there is one and name its folder"
    return UserError(f"cannot be fetched: {said}", code="data.not_fetched", where=config.path, remedy=remedy)


def _entries(files: list[Path], config: SourceConfig) -> Iterator[Entry]:
    """Yield the rows, each called by its number in the split."""
    number = 0
    for file in files:
        table = TableFile.open(file)
        image, text = picture_and_text(table.schema, config.columns, config.path)
        texts = ([None] for _ in range(table.rows)) if text is None else table.values([text])
        for row, ((value,), beside) in enumerate(zip(texts, table.files_beside(image), strict=True)):
            at = f"{config.path}[{number}]"
            location = TableCell(file, image, row) if beside is None else Location(_fetched(Path(beside), at))
            yield Entry(Path(at), captions_in(value, text or "", at), captions_at=at, location=location)
            number += 1


def _fetched(file: Path, at: str) -> Path:
    """Return a file that a table names in place of a picture's bytes: one that was fetched, and none else of this disk.

    Raises:
        UserError: it lies elsewhere.
    """
    config, constants = map(importlib.import_module, ("datasets.config", "huggingface_hub.constants"))
    roots = (config.HF_CACHE_HOME, config.HF_DATASETS_CACHE, constants.HF_HUB_CACHE)
    if ".." not in file.parts and any(file.is_relative_to(Path(root)) for root in roots):
        return file
    what = f"names the file {file}, which was not fetched with the dataset"
    raise UserError(what, code="data.table_names_file", where=at)
