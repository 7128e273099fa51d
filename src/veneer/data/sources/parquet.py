"""Parquet tables that hold the pictures themselves, as the ``datasets`` library writes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from veneer.config.source_config import ColumnsConfig, SourceConfig
from veneer.data.location import AT_LOCATION
from veneer.data.sources.protocol import Entry, Listing
from veneer.data.sources.shards import TABLES, find_shards
from veneer.data.sources.table_columns import captions_in, picture_and_text
from veneer.data.table_file import TableCell, TableFile
from veneer.errors import UserError

__all__ = ["ParquetSource", "list_tables"]

_LISTS = ("metadata.parquet",)
"""Names of tables that list the pictures beside them."""


class ParquetSource:
    """One ``.parquet`` with a column of pictures, a pattern of them with braces, or a folder of them."""

    def list_pictures(self, config: SourceConfig) -> Listing | None:
        """List the rows of the tables; None if the place has no such table.

        Raises:
            UserError: a table is broken or not there, or which of its columns is meant cannot be told.
        """
        tables = find_shards(config, TABLES, _LISTS)
        return None if tables is None else Listing(tuple(list_tables(tables, config.columns)))


def list_tables(paths: Sequence[Path], columns: ColumnsConfig) -> Iterator[Entry]:
    """Yield the rows of tables; no picture of them is read.

    Args:
        paths: of parquet or Arrow files.
        columns: what the user says of them.

    Raises:
        UserError: as of :meth:`ParquetSource.list_pictures`.
    """
    for path in paths:
        table = _open(path)
        image, text = picture_and_text(table.schema, columns, path)
        table.check_groups(image)
        values = ([None] for _ in range(table.rows)) if text is None else table.values([text])
        for row, (value,) in enumerate(values):
            location = TableCell(path, image, row)
            captions = captions_in(value, text or "", location)
            yield Entry(AT_LOCATION, captions, captions_at=str(location), location=location)


def _open(path: Path) -> TableFile:
    try:
        return TableFile.open(path)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", code="files.unreadable", where=path) from None
