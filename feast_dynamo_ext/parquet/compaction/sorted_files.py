"""Writes sorted rows as files of about a size, in row groups of about a size.

Every reader pays for unpacking: zstd on random doubles saves 6% of the bytes and takes three times
as long to read. So a column is compressed, or has a dictionary, only where that saves a good part.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from feast_dynamo_ext.parquet.pointer import CompactedFile

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from feast_dynamo_ext.parquet.compaction.commit import Folder


def plain(kind: pa.DataType) -> pa.DataType:
    """The type with values in the place of dictionaries, nested ones included."""
    found = kind
    if pa.types.is_dictionary(kind):
        found = plain(kind.value_type)
    elif pa.types.is_struct(kind):
        found = pa.struct([_plain_field(field) for field in kind])
    elif pa.types.is_map(kind):
        found = pa.map_(plain(kind.key_type), plain(kind.item_type), kind.keys_sorted)
    elif pa.types.is_fixed_size_list(kind):
        found = pa.list_(_plain_field(kind.value_field), kind.list_size)
    elif pa.types.is_large_list(kind):
        found = pa.large_list(_plain_field(kind.value_field))
    elif pa.types.is_list(kind):
        found = pa.list_(_plain_field(kind.value_field))
    return found


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns in plain types."""
    return pa.schema([_plain_field(field) for field in schema])


def cast(batch: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.RecordBatch | pa.Table:
    """Rows in the types of a schema, column by column."""
    columns = [
        column if column.type == field.type else column.cast(field.type)
        for column, field in zip(batch.columns, schema, strict=True)
    ]
    return type(batch).from_arrays(columns, schema=schema)


def _plain_field(field: pa.Field) -> pa.Field:
    return field.with_type(plain(field.type))


SAMPLE_ROWS = 1 << 16

WORTH = 0.75
"""What is left of a column's bytes, at most, for it to be worth the time."""


def options(sample: pa.Table) -> dict[str, Any]:
    """Arguments for `pyarrow.parquet.ParquetWriter`.

    Args:
        sample: rows as they will be written; the first of them are tried.
    """
    sample = sample.slice(0, SAMPLE_ROWS)
    plain, coded = _sizes(sample, coded=False), _sizes(sample, coded=True)
    with_dictionary = [
        path for path, (_, size) in coded.items() if size < WORTH * max(1, plain[path][1])
    ]
    compression = {}
    for path in plain:
        packed, size = (coded if path in with_dictionary else plain)[path]
        compression[path] = "zstd" if packed < WORTH * max(1, size) else "none"
    # No names at all would mean every column.
    return {"compression": compression or "none", "use_dictionary": with_dictionary or False}


def _sizes(sample: pa.Table, *, coded: bool) -> Mapping[str, tuple[int, int]]:
    """Bytes of each column, by its path: compressed, and not."""
    sink = pa.BufferOutputStream()
    pq.write_table(sample, sink, compression="zstd", use_dictionary=coded)
    footer = pq.read_metadata(pa.BufferReader(sink.getvalue()))
    found: dict[str, tuple[int, int]] = {}
    for group in map(footer.row_group, range(footer.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            packed, size = found.get(column.path_in_schema, (0, 0))
            found[column.path_in_schema] = (
                packed + column.total_compressed_size,
                size + column.total_uncompressed_size,
            )
    return found


GROUP_BYTES = 32 << 20
"""In memory, of a row group: small enough to pass over by its statistics, large enough to be worth
a request."""

LEAST_GROUP_ROWS, MOST_GROUP_ROWS = 1 << 14, 1 << 20


@dataclass
class FilesOut:
    """The files of one bucket or partition; `close` says what was written.

    A context manager: where its block fails, the file that it was at is given up.

    Attributes:
        folder: the source's folder.
        stem: path of the files below it, without number and suffix.
        schema: names and types of the columns.
        target_bytes: of a file, about; it ends with the row group that reaches it.
        bucket: whose rows they are, or None.
        group_bytes: of a row group in memory.
    """

    folder: Folder
    stem: str
    schema: pa.Schema
    target_bytes: int
    bucket: int | None
    group_bytes: int = GROUP_BYTES
    written: list[CompactedFile] = field(default_factory=list)
    _held: list[pa.Table] = field(default_factory=list)
    _held_rows: int = 0
    _rows: int = 0
    _path: str = ""
    _sink: Any = None
    _writer: Any = None
    _opened: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def add(self, table: pa.Table) -> None:
        """Write rows, which are not before those that were written.

        Raises:
            AwsError: S3 refused.
            DestinationError: the disk did.
        """
        group_rows = self._group_rows(table)
        self._held.append(table)
        self._held_rows += table.num_rows
        while self._held_rows >= group_rows:
            held = pa.concat_tables(self._held)
            self._write(held.slice(0, group_rows))
            rest = held.slice(group_rows)
            self._held, self._held_rows = [rest], rest.num_rows

    def close(self) -> list[CompactedFile]:
        """Write what is left, and tell which files there are.

        Raises: as `add`.
        """
        if self._held_rows:
            self._write(pa.concat_tables(self._held))
        self._end_file()
        self._held, self._held_rows = [], 0
        return self.written

    def _group_rows(self, table: pa.Table) -> int:
        row_bytes = max(1, table.nbytes // max(1, table.num_rows))
        return int(min(MOST_GROUP_ROWS, max(LEAST_GROUP_ROWS, self.group_bytes // row_bytes)))

    def _write(self, table: pa.Table) -> None:
        rows = cast(table, self.schema)
        if self._writer is None:
            self._open(rows)
        self._writer.write_table(rows, row_group_size=max(1, table.num_rows))
        self._rows += table.num_rows
        if self._sink.written >= self.target_bytes:
            self._end_file()

    def _open(self, sample: pa.Table) -> None:
        self._path = f"{self.stem}-{len(self.written):05d}.parquet"
        file = self.folder.files.new_file(f"{self.folder.uri}/{self._path}")
        self._sink = self._opened.enter_context(file)
        self._writer = pq.ParquetWriter(self._sink, self.schema, **options(sample))

    def _end_file(self) -> None:
        if self._writer is None:
            return
        self._writer.close()
        self._opened.close()
        size = self._sink.written
        self.written.append(CompactedFile(self._path, size, self._rows, self.bucket))
        self._writer, self._sink, self._rows = None, None, 0

    def write_empty(self) -> None:
        """A file without rows, which keeps the columns of a source that has none."""
        self._write(cast(self.schema.empty_table(), self.schema))

    def __enter__(self) -> FilesOut:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._opened.__exit__(kind, error, traceback)
