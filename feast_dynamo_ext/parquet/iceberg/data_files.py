"""Data files of an Iceberg table: written in the table's own schema, and described to it.

The files are ours (see `writer`): of a bounded size, each whole or not at all, compressed where it
pays. Iceberg wants of each what its footer says: rows, sizes, the least and the greatest values.
"""

from __future__ import annotations

import sys
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import LARGE_TO_PLAIN, map_type
from feast_dynamo_ext.parquet.iceberg.catalog import file_settings
from feast_dynamo_ext.parquet.iceberg.table_schema import TARGET_FILE_BYTES
from feast_dynamo_ext.parquet.writer import PartSize, PartWriter, worthwhile_options
from feast_dynamo_ext.storage import discard, files_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout
    from feast_dynamo_ext.parquet.writer import Part


GROUP_ROWS, GROUP_BYTES = 262_144, 64 << 20


def file_schema(table: Any) -> pa.Schema:
    """Names and types of a table's columns as its files have them, with Iceberg's numbers."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    return plain_layouts(schema_to_pyarrow(table.schema(), include_field_ids=True))


def table_columns(schema: Any) -> pa.Schema:
    """Names and types of the columns of a schema of Iceberg's, without its numbers."""
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    return plain_layouts(schema_to_pyarrow(schema, include_field_ids=False))


def plain_layouts(schema: pa.Schema) -> pa.Schema:
    """Text, bytes and lists without Arrow's large layouts, which pyiceberg takes."""
    return pa.schema([field.with_type(map_type(field.type, _plain_layout)) for field in schema])


def _plain_layout(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_list(kind):
        return pa.list_(kind.value_field)
    return LARGE_TO_PLAIN.get(kind, kind)


def partitions_of(table: Any, rows: pa.Table) -> Iterator[tuple[Any, pa.Table]]:
    """Rows by partition, as (pyiceberg's key of it, or None where there are none; its rows)."""
    from pyiceberg.io.pyarrow import _determine_partitions

    if table.spec().is_unpartitioned():
        yield None, rows
        return
    for part in _determine_partitions(table.spec(), table.schema(), rows):
        yield part.partition_key, part.arrow_table_partition


@dataclass(frozen=True)
class KnownPartition:
    """The partition of a file that is there, as pyiceberg's key of one.

    Attributes:
        partition: pyiceberg's record of its values.
        spec: pyiceberg's partitioning.
        schema: pyiceberg's, of the table.
    """

    partition: Any
    spec: Any
    schema: Any

    @classmethod
    def from_file(cls, table: Any, file: Any) -> KnownPartition | None:
        """That of a file; None where its partitioning has no columns."""
        spec = table.specs()[file.spec_id]
        return None if spec.is_unpartitioned() else cls(file.partition, spec, table.schema())

    def to_path(self) -> str:
        """What the folders of its files are called."""
        path: str = self.spec.partition_to_path(self.partition, self.schema)
        return path


@dataclass(frozen=True)
class DataFiles:
    """Writes files of a table.

    Attributes:
        table: pyiceberg's, as it was loaded.
        settings: how S3 is reached.
        options: arguments for pyarrow's writer of a file, given its first rows.
    """

    table: Any
    settings: AwsSettings
    options: Callable[[pa.Table], dict[str, Any]] = worthwhile_options

    def write(
        self,
        partition: Any,
        batches: Iterable[pa.RecordBatch | pa.Table],
        *,
        is_sorted: bool,
        may_end: Callable[[pa.RecordBatch | pa.Table, int], bool] | None = None,
    ) -> list[Any]:
        """Write rows of one partition as new files; nobody reads them before they are committed.

        Args:
            partition: pyiceberg's key of it, or None.
            batches: the rows, in the table's types; their columns in any order.
            is_sorted: whether they are in the table's sort order.
            may_end: whether a file may end before a batch, given the file's bytes so far; by
                default it ends where it is full.

        Returns:
            pyiceberg's descriptions of the files, in the order of the rows.

        Raises:
            AwsError: S3 refused. DestinationError: a disk did. Nothing is left then.
        """
        location = self.table.location_provider().new_data_location(uuid.uuid4().hex, partition)
        files = files_of(location, file_settings(self.table, self.settings))
        full = target_bytes(self.table)
        size = PartSize(
            file_bytes=sys.maxsize if may_end else full,
            file_rows=sys.maxsize,
            group_bytes=min(GROUP_BYTES, full),
            group_rows=GROUP_ROWS,
        )
        schema = file_schema(self.table)
        with PartWriter(files, location, schema, size, self.options) as writer:
            for given in batches:
                batch = given.select(schema.names)
                if may_end is not None and may_end(batch, writer.file_bytes):
                    writer.end_file()
                writer.write(batch)
        order = self.table.sort_order().order_id if is_sorted else None
        return [self._described(part, partition, order) for part in writer.written]

    def discard(self, written: Iterable[Any]) -> None:
        """Delete files that were written here and are surely not committed."""
        uris = [file.file_path for file in written]
        if uris:
            discard(files_of(uris[0], file_settings(self.table, self.settings)), uris)

    def _described(self, part: Part, partition: Any, order: int | None) -> Any:
        from pyiceberg.io.pyarrow import (
            compute_statistics_plan,
            data_file_statistics_from_parquet_metadata,
            parquet_path_to_id_mapping,
        )
        from pyiceberg.manifest import DataFile, DataFileContent, FileFormat
        from pyiceberg.typedef import Record

        schema = self.table.schema()
        says = data_file_statistics_from_parquet_metadata(
            parquet_metadata=part.footer,
            stats_columns=compute_statistics_plan(schema, self.table.properties),
            parquet_column_mapping=parquet_path_to_id_mapping(schema),
        )
        return DataFile.from_args(
            content=DataFileContent.DATA,
            file_path=part.uri,
            file_format=FileFormat.PARQUET,
            partition=partition.partition if partition else Record(),
            file_size_in_bytes=part.size,
            sort_order_id=order,
            spec_id=self.table.spec().spec_id,
            equality_ids=None,
            key_metadata=None,
            **says.to_serialized_dict(),
        )


def in_order(rows: pa.Table, layout: TableLayout) -> pa.Table:
    """Rows in the sort order of a table that we made: ascending, nulls first."""
    order = order_of(rows, layout)
    is_ordered = bool((order[1:] > order[:-1]).all())
    return rows if is_ordered else rows.take(pa.array(order))


def order_of(rows: pa.Table, layout: TableLayout) -> NDArray[np.int64]:
    """Numbers of the rows as `in_order` has them; rows that are equal keep their order."""
    columns: dict[str, pa.Array | pa.ChunkedArray] = {}
    for name in layout.order:
        column = rows.column(name)
        if column.null_count:
            columns[f"has {name}"] = column.is_valid()
        columns[name] = column
    order = pc.sort_indices(pa.table(columns), [(name, "ascending") for name in columns])
    numbers: NDArray[np.int64] = order.to_numpy().astype(np.int64)
    return numbers


def target_bytes(table: Any) -> int:
    """Of a file, after which the next one is begun."""
    return int(table.properties.get("write.target-file-size-bytes", TARGET_FILE_BYTES))
