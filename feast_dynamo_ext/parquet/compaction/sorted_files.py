"""How sorted rows are written: sizes of files and row groups, and what is worth packing.

Every reader pays for unpacking: zstd on random doubles saves 6% of the bytes and takes three times
as long to read. So a column is compressed, or has a dictionary, only where that saves a good part.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from feast_dynamo_ext.arrow_types import map_schema, without_dictionary
from feast_dynamo_ext.parquet.pointer import CompactedFile
from feast_dynamo_ext.parquet.writer import PartSize, PartWriter

if TYPE_CHECKING:
    from collections.abc import Mapping

    from feast_dynamo_ext.parquet.compaction.commit import Folder


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """The same columns with values in the place of dictionaries, nested ones included."""
    return map_schema(schema, without_dictionary).remove_metadata()


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


@dataclass(frozen=True)
class SortedFiles:
    """The files of one bucket or partition, to be written.

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

    def writer(self) -> PartWriter:
        """What writes their rows; their order is that of the rows."""
        size = PartSize(
            file_bytes=self.target_bytes,
            file_rows=sys.maxsize,
            group_bytes=self.group_bytes,
            group_rows=MOST_GROUP_ROWS,
            least_group_rows=LEAST_GROUP_ROWS,
        )
        stem = f"{self.folder.uri}/{self.stem}"
        return PartWriter(self.folder.files, stem, self.schema, size, options)

    def written(self, writer: PartWriter) -> list[CompactedFile]:
        """The files that a writer has written."""
        start = len(self.folder.uri) + 1
        return [
            CompactedFile(part.uri[start:], part.size, part.rows, self.bucket)
            for part in writer.written
        ]
