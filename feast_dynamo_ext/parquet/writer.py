"""Writes Parquet where readers may be reading: files of bounded size, each whole or not at all."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from feast_dynamo_ext.errors import UnsupportedTypeError
from feast_dynamo_ext.exact import cast_exact
from feast_dynamo_ext.storage import discard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType

    from feast_dynamo_ext.storage import Files, NewFile


@dataclass(frozen=True)
class PartSize:
    """When a file and a row group are full.

    Attributes:
        file_bytes: bytes of a file after which the next one is begun.
        file_rows: the most rows of a file.
        group_bytes: bytes in memory of one row group: what writing holds at a time.
        group_rows: the most rows of one row group.
        least_group_rows: the fewest, however large they are; the last one may have fewer.
    """

    file_bytes: int = 128 << 20
    file_rows: int = 5_000_000
    group_bytes: int = 64 << 20
    group_rows: int = 262_144
    least_group_rows: int = 1


@dataclass(frozen=True)
class Part:
    """One file that was written: its URI, bytes, rows, and pyarrow's footer of it."""

    uri: str
    size: int
    rows: int
    footer: pq.FileMetaData


def zstd(_: pa.Table) -> dict[str, Any]:
    """All columns compressed alike."""
    return {"compression": "zstd"}


SAMPLE_ROWS = 1 << 16

WORTH = 0.75
"""What is left of a column's bytes, at most, for it to be worth the time."""


def worthwhile_options(sample: pa.Table) -> dict[str, Any]:
    """Compression and dictionaries for those columns alone of which they save a good part.

    Every reader pays for unpacking: zstd on random doubles saves 6% of the bytes and takes three
    times as long to read.

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


class PartWriter:
    """Writes rows, in order, as files of a bounded size.

    A context manager: where its block fails, none of its files remains.

    Attributes:
        written: the files; all of them once the block has ended.

    Args:
        files: the destination.
        stem: URI of the files without number and suffix; no other writer may have it.
        schema: names and types of the columns.
        size: when a file is full.
        options: arguments for pyarrow's writer of a file, given its first rows.
    """

    def __init__(
        self,
        files: Files,
        stem: str,
        schema: pa.Schema,
        size: PartSize,
        options: Callable[[pa.Table], dict[str, Any]] = zstd,
    ) -> None:
        self.written: list[Part] = []
        self._files, self._stem, self._schema = files, stem, schema
        self._size, self._options = size, options
        self._held: list[pa.Table] = []
        self._held_rows = self._held_bytes = 0
        self._opened = contextlib.ExitStack()
        self._file: NewFile | None = None
        self._writer: Any = None
        self._rows = 0

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Add rows.

        Raises:
            AwsError: S3 refused.
            DestinationError: the disk did.
            UnsupportedTypeError: Parquet has no form for a column.
        """
        if not rows.num_rows:
            return
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        self._held.append(table)
        self._held_rows += table.num_rows
        self._held_bytes += table.nbytes
        group_rows = self._group_rows()
        if self._held_rows < group_rows:
            return
        held = pa.concat_tables(self._held)
        while held.num_rows >= group_rows:
            self._write_group(held.slice(0, group_rows))
            held = held.slice(group_rows)
        self._held, self._held_rows, self._held_bytes = [held], held.num_rows, held.nbytes

    @property
    def file_bytes(self) -> int:
        """Bytes of the file that is being written, without the rows of its last row group."""
        return self._file.written if self._file is not None else 0

    def end_file(self) -> None:
        """Write all rows that were added; those to come begin another file.

        Raises: as `write`.
        """
        if self._held_rows:
            self._write_group(pa.concat_tables(self._held))
        self._held, self._held_rows, self._held_bytes = [], 0, 0
        self._end_file()

    def write_empty(self) -> None:
        """A file without rows, which keeps the columns where there are none."""
        self._write_group(self._schema.empty_table())

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self.end_file()
        except BaseException as failed:
            self._give_up(failed)
            raise
        if error is not None:
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self._opened.__exit__(type(error), error, error.__traceback__)
        discard(self._files, [part.uri for part in self.written])

    def _group_rows(self) -> int:
        row_bytes = max(1, self._held_bytes // self._held_rows)
        wanted = max(self._size.least_group_rows, self._size.group_bytes // row_bytes)
        return min(wanted, self._size.group_rows, self._size.file_rows)

    def _write_group(self, rows: pa.Table) -> None:
        if self._rows + rows.num_rows > self._size.file_rows:
            self._end_file()
        group = cast(rows, self._schema)
        if self._file is None:
            self._file = self._opened.enter_context(self._files.new_file(self._next_uri()))
            uri = self._next_uri()
            self._writer = open_writer(self._file, self._schema, uri, **self._options(group))
        self._writer.write_table(group, row_group_size=max(1, rows.num_rows))
        self._rows += rows.num_rows
        if self._file.written >= self._size.file_bytes:
            self._end_file()

    def _next_uri(self) -> str:
        return f"{self._stem}-{len(self.written):05d}.parquet"

    def _end_file(self) -> None:
        if self._file is None:
            return
        self._writer.close()
        self._opened.close()
        footer = self._writer.writer.metadata
        self.written.append(Part(self._next_uri(), self._file.written, self._rows, footer))
        self._file, self._writer, self._rows = None, None, 0


def open_writer(sink: Any, schema: pa.Schema, uri: str, **options: Any) -> pq.ParquetWriter:
    """A writer of one file.

    Raises:
        UnsupportedTypeError: Parquet has no form for a column.
    """
    try:
        return pq.ParquetWriter(sink, schema, **options)
    except pa.ArrowNotImplementedError as error:
        columns = ", ".join(f"`{each.name}` ({each.type})" for each in schema if _is_foreign(each))
        raise UnsupportedTypeError(
            f"{uri}: Parquet has no form for the columns {columns}. Give maps without keys as "
            "texts of JSON (`json.dumps`), and cast columns of other types."
        ) from error


def _is_foreign(column: pa.Field) -> bool:
    try:
        pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([column])).close()
    except pa.ArrowNotImplementedError:
        return True
    return False


class _OneFile(PartWriter):
    def _next_uri(self) -> str:
        return self._stem


def write_parts(
    files: Files,
    folder: str,
    name: str,
    schema: pa.Schema,
    batches: Iterable[pa.RecordBatch],
    size: PartSize | None = None,
) -> list[str]:
    """Write rows as new files of a folder, in order; where one fails, none of them remains.

    Args:
        files: the destination.
        folder: URI of the folder.
        name: what names of files begin with; they must be new.
        schema: of the rows.
        batches: the rows; without any, one file without rows is written.
        size: when a file is full.

    Returns:
        The files' URIs, whose order is that of the rows.

    Raises:
        AwsError: S3 refused.
        DestinationError: a disk did.
        UnsupportedTypeError: Parquet has no form for a column.
    """
    stem = f"{folder.rstrip('/')}/{name}"
    return _write_all(PartWriter(files, stem, schema, size or PartSize()), batches)


def write_file(
    files: Files, uri: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    """Write rows as one file, in place of the one that may be there.

    Raises: as `write_parts`.
    """
    whole = PartSize(file_bytes=sys.maxsize, file_rows=sys.maxsize)
    _write_all(_OneFile(files, uri, schema, whole), batches)


def _write_all(writer: PartWriter, batches: Iterable[pa.RecordBatch]) -> list[str]:
    has_rows = False
    with writer:
        for batch in batches:
            writer.write(batch)
            has_rows = has_rows or batch.num_rows > 0
        if not has_rows:
            writer.write_empty()
    return [part.uri for part in writer.written]


def cast(rows: pa.RecordBatch | pa.Table, schema: pa.Schema) -> pa.RecordBatch | pa.Table:
    """Rows in the types of a schema, column by column, each value equal to what it was.

    Raises:
        ValueError: a value has no equal in its column's type.
    """
    columns = [
        cast_exact(column, field.type) for column, field in zip(rows.columns, schema, strict=True)
    ]
    return type(rows).from_arrays(columns, schema=schema)
