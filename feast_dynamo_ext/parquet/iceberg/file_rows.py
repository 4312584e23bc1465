"""The rows of a table's data files, as the table has them now.

Columns are found by their numbers, whatever a file calls them; rows that are deleted by their
positions are left out; what is read at a time is bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from feast_dynamo_ext.errors import SourceReadError
from feast_dynamo_ext.parquet.iceberg.data_files import file_schema
from feast_dynamo_ext.parquet.writer import cast

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BATCH_ROWS, BATCH_BYTES = 65_536, 16 << 20

NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class FileRows:
    """Reads data files of a table.

    Attributes:
        table: pyiceberg's, as it was loaded.
    """

    table: Any
    _deletes: dict[str, dict[str, Any]] = field(default_factory=dict, compare=False)

    def batches(
        self, task: Any, columns: Sequence[str] | None = None, *, deleted_too: bool = False
    ) -> Iterator[pa.RecordBatch]:
        """The rows of a file that count, in its order, in the table's columns and types.

        Args:
            task: pyiceberg's plan of the file.
            columns: names of columns; default: all.
            deleted_too: also rows that do not count any more.

        Raises:
            SourceReadError: the file is not Parquet, or holds fewer or more rows than the table
                says.
        """
        from pyiceberg.io.pyarrow import (
            _get_column_projection_values,
            _to_requested_schema,
            pyarrow_to_schema,
        )

        file, schema = task.file, self.table.schema()
        if file.file_format.name != "PARQUET":
            raise SourceReadError(
                f"{file.file_path} is {file.file_format.name}, not Parquet. Rewrite the table "
                "with the engine that wrote it."
            )
        deleted = NONE if deleted_too else self._deleted(task)
        target = file_schema(self.table)
        wanted = schema
        if columns is not None:
            wanted, target = schema.select(*columns), pa.schema(map(target.field, columns))
        # Times of nanoseconds only exist in later formats than those that pyiceberg writes.
        is_us = self.table.format_version <= 2  # noqa: PLR2004
        with self.table.io.new_input(file.file_path).open() as opened:
            parquet = pq.ParquetFile(opened)
            stored = pyarrow_to_schema(
                parquet.schema_arrow,
                self.table.name_mapping(),
                downcast_ns_timestamp_to_us=is_us,
                format_version=self.table.format_version,
            )
            missing = _get_column_projection_values(
                file, wanted, schema, self.table.specs()[file.spec_id], stored.field_ids
            )
            start = 0
            for batch in parquet.iter_batches(
                _batch_rows(parquet), columns=_inside(wanted, stored), use_threads=False
            ):
                counted = _without(batch, deleted, start)
                start += batch.num_rows
                if counted.num_rows:
                    shaped = _to_requested_schema(
                        wanted,
                        stored,
                        counted,
                        downcast_ns_timestamp_to_us=is_us,
                        projected_missing_fields=missing,
                        allow_timestamp_tz_mismatch=True,
                    )
                    yield cast(shaped.select(target.names), target)
        if start != file.record_count:
            raise SourceReadError(
                f"{file.file_path} holds {start:,} rows, but the table's metadata says "
                f"{file.record_count:,}. Nothing was changed; look for a file that was replaced."
            )

    def live(self, task: Any) -> int:
        """How many rows of a file count."""
        return int(task.file.record_count) - len(self._deleted(task))

    def _deleted(self, task: Any) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Ascending positions of the rows of a file that are deleted."""
        from pyiceberg.io.pyarrow import _read_deletes

        found = [NONE]
        for file in task.delete_files:
            if file.file_path not in self._deletes:
                self._deletes[file.file_path] = _read_deletes(self.table.io, file)
            positions = self._deletes[file.file_path].get(task.file.file_path)
            if positions is not None:
                found.append(np.asarray(positions, dtype=np.int64))
        return np.unique(np.concatenate(found))


def _inside(wanted: Any, stored: Any) -> list[str] | None:
    """What columns are called in a file; None for all that it has."""
    inside = {column.field_id: column.name for column in stored.fields}
    names = [inside[column.field_id] for column in wanted.fields if column.field_id in inside]
    # In names of columns to read, a dot leads into a struct.
    return names if names and not any("." in name for name in names) else None


def _without(
    batch: pa.RecordBatch, deleted: np.ndarray[Any, np.dtype[np.int64]], start: int
) -> pa.RecordBatch:
    first, end = np.searchsorted(deleted, [start, start + batch.num_rows])
    # pyiceberg takes what lies around a slice of lists for a part of it.
    is_sliced = any(pa.types.is_nested(column.type) and column.offset for column in batch.columns)
    if first == end and not is_sliced:
        return batch
    counts = np.ones(batch.num_rows, dtype=bool)
    counts[deleted[first:end] - start] = False
    return batch.take(pa.array(np.flatnonzero(counts)))


def _batch_rows(parquet: pq.ParquetFile) -> int:
    rows = max(1, parquet.metadata.num_rows)
    groups = range(parquet.metadata.num_row_groups)
    size = sum(parquet.metadata.row_group(at).total_byte_size for at in groups)
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, size // rows))))
