"""Writes Parquet where readers may be reading: files of bounded size, each whole or not at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from feast_dynamo_ext.storage import Files, NewFile


@dataclass(frozen=True)
class PartSize:
    """When a file is full.

    Attributes:
        file_bytes: bytes of a file after which the next one is begun.
        file_rows: the most rows of a file.
        group_bytes: bytes in memory of one row group: what writing holds at a time.
        group_rows: rows of one row group.
    """

    file_bytes: int = 128 << 20
    file_rows: int = 5_000_000
    group_bytes: int = 64 << 20
    group_rows: int = 262_144


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
    """
    size = size or PartSize()
    groups = _groups(schema, batches, size)
    written: list[str] = []
    group: pa.Table | None = next(groups, schema.empty_table())
    try:
        while group is not None:
            uri = f"{folder.rstrip('/')}/{name}-{len(written):05d}.parquet"
            group = _write_part(files, uri, schema, group, groups, size)
            written.append(uri)
    except BaseException:
        files.delete(written)
        raise
    return written


def write_file(
    files: Files, uri: str, schema: pa.Schema, batches: Iterable[pa.RecordBatch]
) -> None:
    """Write rows as one file, in place of the one that may be there.

    Raises: as `write_parts`.
    """
    with files.new_file(uri) as file, _writer(file, schema) as writer:
        for group in _groups(schema, batches, PartSize()):
            writer.write_table(group)


def _write_part(
    files: Files,
    uri: str,
    schema: pa.Schema,
    first: pa.Table,
    rest: Iterator[pa.Table],
    size: PartSize,
) -> pa.Table | None:
    """Write a file until it is full; the group that begins the next one, if there is any."""
    rows = 0
    group: pa.Table | None = first
    with files.new_file(uri) as file, _writer(file, schema) as writer:
        while group is not None:
            writer.write_table(group)
            rows += group.num_rows
            group = next(rest, None)
            more = group.num_rows if group is not None else 0
            if file.written >= size.file_bytes or rows + more > size.file_rows:
                break
    return group


def _groups(
    schema: pa.Schema, batches: Iterable[pa.RecordBatch], size: PartSize
) -> Iterator[pa.Table]:
    """Rows in the row groups in which they are written."""
    most = min(size.group_rows, size.file_rows)
    held: list[pa.RecordBatch] = []
    rows = held_bytes = 0
    for batch in batches:
        start = 0
        while start < batch.num_rows:
            part = batch.slice(start, most - rows)
            start += part.num_rows
            held.append(part)
            rows += part.num_rows
            held_bytes += part.nbytes
            if rows >= most or held_bytes >= size.group_bytes:
                yield pa.Table.from_batches(held, schema)
                held, rows, held_bytes = [], 0, 0
    if held:
        yield pa.Table.from_batches(held, schema)


def _writer(file: NewFile, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, compression="zstd")
