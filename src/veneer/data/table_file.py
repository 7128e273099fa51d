"""Read one cell of a table that holds pictures: a parquet file by its row groups, an Arrow file by its batches."""

from __future__ import annotations

import importlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any

from veneer.data.location import MAX_BYTES, Location
from veneer.data.unreadable import Unreadable, check_size
from veneer.errors import UserError
from veneer.files import open_regular

__all__ = ["TableCell", "TableFile", "import_pyarrow"]

_PARQUET = b"PAR1"
_GROUPS_KEPT = 2
"""Row groups whose pictures stay in memory."""
_MAX_GROUP = 2**30
"""Bytes of pictures in a row group, at most: reading one picture reads all of its group."""


def import_pyarrow(where: object, module: str = "pyarrow") -> Any:
    """Return pyarrow, or a module of it.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        what, remedy = "tables are read by pyarrow, which is not installed", "pip install 'veneer[parquet]'"
        raise UserError(what, code="data.pyarrow_missing", where=where, remedy=remedy) from None


@dataclass(frozen=True, slots=True)
class TableCell(Location):
    """A picture in a table: ``container`` is the file, ``member`` the column, ``offset`` the row, from 0."""

    def __str__(self) -> str:
        """Return the place for messages."""
        return f"{self.container}[{self.offset}]"

    def read(self, limit: int = MAX_BYTES) -> bytes:
        """Read the picture's bytes.

        Raises:
            OSError: the file is not there or may not be read.
            Unreadable: the row has no bytes, or more than ``limit``; or the file is broken.
        """
        assert self.member is not None and self.offset is not None
        try:
            content = TableFile.open(self.container).cell(self.member, self.offset)
        except UserError as error:
            raise Unreadable(error.what) from None
        if content is None:
            raise Unreadable("the row has no picture")
        check_size(len(content), limit)
        return content

    def head(self, count: int) -> bytes:
        """Read the first bytes of the picture."""
        return self.read()[:count]


class TableFile:
    """A parquet or Arrow file of which single cells are read.

    Args:
        path: the file.

    Attributes:
        schema: pyarrow's.
        rows: how many there are.

    Raises:
        OSError: it is not there or may not be read.
        UserError: pyarrow is not installed, or the file is broken.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, Lock()
        with open_regular(path) as file:
            is_parquet = file.read(4) == _PARQUET
        arrow = import_pyarrow(path)
        try:
            self._parts: _Parquet | _Arrow = (_Parquet if is_parquet else _Arrow)(path)
        except (arrow.ArrowException, ValueError) as error:
            raise self._broken(error) from None
        self.schema = self._parts.schema
        self._ends = list(accumulate(self._parts.lengths))
        self.rows = self._ends[-1] if self._ends else 0

    @staticmethod
    def open(path: Path) -> TableFile:
        """Return the table of a file, opened once for as long as it stays the same."""
        status = path.stat()
        return _opened(path, status.st_mtime_ns, status.st_size)

    def cell(self, column: str, row: int) -> bytes | None:
        """Return the bytes of a picture, those of its row group are kept for the next one; None if it has none."""
        part = bisect_right(self._ends, row)
        if part == len(self._ends):
            raise UserError(f"has {self.rows} rows, none of which is {row}", code="data.broken_table", where=self._path)
        start = self._ends[part] - self._parts.lengths[part]
        value = _bytes_of(_kept(self, part, column))[row - start].as_py()
        return value if isinstance(value, bytes) else None

    def values(self, columns: Sequence[str]) -> Iterator[list[Any]]:
        """Yield each row's values of some columns, dotted ones being fields of one, read a row group at a time."""
        for part in range(len(self._parts.lengths)):
            values = [_field_of(self.read(part, name), name).to_pylist() for name in columns]
            yield from map(list, zip(*values, strict=True))

    def files_beside(self, column: str) -> Iterator[str | None]:
        """Yield each row's path of a picture that is named in place of its bytes; None where the bytes are there."""
        arrow = import_pyarrow(self._path)
        for part in range(len(self._parts.lengths)):
            pictures = self.read(part, column)
            if arrow.types.is_struct(pictures.type) and pictures.type.get_field_index("path") >= 0:
                missing = pictures.field("bytes").is_null()
                yield from (
                    path if is_missing else None
                    for path, is_missing in zip(pictures.field("path").to_pylist(), missing.to_pylist(), strict=True)
                )
            else:
                yield from (None for _ in range(len(pictures)))

    def check_groups(self, column: str) -> None:
        """Refuse row groups that are too large for one picture of them to be read.

        Raises:
            UserError: there is one.
        """
        largest = self._parts.largest(column)
        if largest > _MAX_GROUP:
            what = f"has a row group of {largest / 2**30:.1f} GiB of pictures, all of which is read for one"
            remedy = "write it anew in row groups of 100 rows, as datasets does: to_parquet(..., row_group_size=100)"
            raise UserError(what, code="data.row_group_too_large", where=self._path, remedy=remedy)

    def read(self, part: int, column: str) -> Any:
        """Return a column's values in a row group, as one array of pyarrow's."""
        arrow = import_pyarrow(self._path)
        try:
            with self._lock:
                return self._parts.read(part, column)
        except (arrow.ArrowException, OSError, ValueError) as error:
            raise self._broken(error) from None

    def _broken(self, error: Exception) -> UserError:
        what = f"cannot be read: {' '.join(str(error).split())[:200]}"
        return UserError(what, code="data.broken_table", where=self._path)


@lru_cache(maxsize=32)
def _opened(path: Path, changed: int, size: int) -> TableFile:
    return TableFile(path)


@lru_cache(maxsize=_GROUPS_KEPT)
def _kept(table: TableFile, part: int, column: str) -> Any:
    return table.read(part, column)


class _Parquet:
    def __init__(self, path: Path) -> None:
        self._file = import_pyarrow(path, "pyarrow.parquet").ParquetFile(path)
        self._metadata = self._file.metadata
        self.schema = self._file.schema_arrow
        self.lengths = [self._metadata.row_group(part).num_rows for part in range(self._metadata.num_row_groups)]

    def read(self, part: int, column: str) -> Any:
        name = column.partition(".")[0]
        return self._file.read_row_group(part, columns=[name], use_threads=False).column(0).combine_chunks()

    def largest(self, column: str) -> int:
        sizes = []
        for part in range(len(self.lengths)):
            group = self._metadata.row_group(part)
            leaves = [group.column(number) for number in range(group.num_columns)]
            sizes.append(sum(leaf.total_uncompressed_size for leaf in leaves if _is_of(leaf.path_in_schema, column)))
        return max(sizes, default=0)


class _Arrow:
    """An Arrow file or stream, as ``datasets`` keeps it; it is mapped, and a batch is read where it lies."""

    def __init__(self, path: Path) -> None:
        arrow = import_pyarrow(path)
        mapped = arrow.memory_map(str(path))
        reader = import_pyarrow(path, "pyarrow.ipc").open_stream(mapped)
        self.schema = reader.schema
        self._batches = list(reader)
        self.lengths = [batch.num_rows for batch in self._batches]

    def read(self, part: int, column: str) -> Any:
        return self._batches[part].column(column.partition(".")[0])

    def largest(self, column: str) -> int:
        return 0


def _is_of(path: str, column: str) -> bool:
    return path == column or path.startswith(f"{column}.")


def _field_of(values: Any, name: str) -> Any:
    for part in name.split(".")[1:]:
        values = values.field(part)
    return values


def _bytes_of(values: Any) -> Any:
    """Return the bytes of a column of pictures, which is a struct of ``bytes`` and ``path``, or the bytes alone."""
    arrow = importlib.import_module("pyarrow")
    return values.field("bytes") if arrow.types.is_struct(values.type) else values
