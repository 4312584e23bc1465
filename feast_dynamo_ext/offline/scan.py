"""Reads Parquet files a row group at a time, and what their footers say without reading them."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from feast_dynamo_ext.offline.times import Axis

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from concurrent.futures import Future
    from datetime import datetime

BATCH_ROWS, BATCH_BYTES = 65_536, 32 << 20
"""Of rows that are read into memory as one batch."""

READ_AHEAD = {"batch_readahead": 1, "fragment_readahead": 1}
GROUPS_AHEAD = 1
"""Row groups that are fetched while one is read. Arrow's scan of a whole dataset reads ahead of a
slow consumer: finding the newest of 10 million rows it held 210 MB more than this does."""

FOOTERS_AT_ONCE = 16


@dataclass
class ReadingAt:
    """Which file is being read."""

    path: str


def batches(
    dataset: ds.FileSystemDataset, columns: Sequence[str], at: ReadingAt
) -> Iterator[pa.RecordBatch]:
    """All rows in the order of the files, in batches of bounded size.

    Args:
        dataset: the files.
        columns: names of the columns to read.
        at: is told which file is being read.
    """

    def opened(group: Any) -> tuple[pa.RecordBatch | None, Iterator[pa.RecordBatch]]:
        scanner = group.scanner(
            schema=dataset.schema,
            columns=list(columns),
            batch_size=_batch_rows(group),
            **READ_AHEAD,
        )
        found = scanner.to_batches()
        return next(found, None), found

    with ThreadPoolExecutor(1) as threads:
        ahead: deque[tuple[str, Future[Any]]] = deque()
        for group in _row_groups(dataset):
            ahead.append((group.path, threads.submit(opened, group)))
            if len(ahead) > GROUPS_AHEAD:
                at.path, first = ahead.popleft()
                yield from _rest(*first.result())
        for at.path, first in ahead:
            yield from _rest(*first.result())


def parts_within(
    dataset: ds.FileSystemDataset,
    column: str,
    first: datetime | None,
    last: datetime | None,
    at: ReadingAt,
) -> ds.FileSystemDataset | None:
    """The files and row groups that may hold rows of a range of time; see `ParquetSource.within`.

    Returns:
        None where they cannot be told apart: the column is a date, or the range has no bounds.
    """
    of_partitions = _range_condition(dataset.schema.field(column), first, last)
    if of_partitions is None:
        return None

    def part(fragment: Any) -> Any:
        at.path = fragment.path
        # In the file's own unit and zone: Arrow compares no others with its statistics.
        stored = fragment.physical_schema
        condition = None
        if column in stored.names:
            condition = _range_condition(stored.field(column), first, last)
        return fragment if condition is None else fragment.subset(condition, schema=stored)

    fragments = list(dataset.get_fragments(filter=of_partitions))
    # Footers are small and far away: many at once.
    with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
        parts = [found for found in pool.map(part, fragments) if found.row_groups]
    return ds.FileSystemDataset(parts, dataset.schema, dataset.format, dataset.filesystem)


def limits(dataset: ds.FileSystemDataset, column: str) -> pa.Array | None:
    """What footers say of a column of times; see `ParquetSource.limits`."""
    kind = dataset.schema.field(column).type
    found = [pa.array([], kind)]
    for fragment in dataset.get_fragments():
        of_file = _file_limits(fragment, column)
        if of_file is None:
            return None
        try:
            found.append(of_file.cast(kind))
        except pa.ArrowException:
            return None
    return pa.concat_arrays(found)


def _row_groups(dataset: ds.FileSystemDataset) -> Iterator[Any]:
    for file in dataset.get_fragments():
        yield from file.split_by_row_group()


def _batch_rows(group: Any) -> int:
    """How many rows of a row group make a batch; wide ones make smaller batches."""
    (info,) = group.row_groups
    row_bytes = max(1, info.total_byte_size // max(1, info.num_rows))
    return int(max(1, min(BATCH_ROWS, BATCH_BYTES // row_bytes)))


def _file_limits(fragment: Any, column: str) -> pa.Array | None:
    """The limits of a file's row groups, in the file's type; see `ParquetSource.limits`."""
    metadata = fragment.metadata
    leaves = [metadata.schema.column(at) for at in range(metadata.num_columns)]
    at = next((at for at, leaf in enumerate(leaves) if leaf.path == column), None)
    if at is None:
        return None
    # As numbers: Python's own times end in the year 9999, and know no nanoseconds.
    numbers: list[int] = []
    for group in fragment.row_groups:
        says = metadata.row_group(group.id).column(at).statistics
        if says is not None and says.has_min_max:
            numbers += [says.min_raw, says.max_raw]
        elif says is None or not says.has_null_count or says.null_count < group.num_rows:
            return None
    stored = pa.int32() if leaves[at].physical_type == "INT32" else pa.int64()
    return pa.array(numbers, stored).cast(fragment.physical_schema.field(column).type)


def _rest(first: pa.RecordBatch | None, others: Iterator[pa.RecordBatch]) -> Iterator[Any]:
    if first is not None:
        yield first
    yield from others


def _range_condition(
    column: pa.Field, first: datetime | None, last: datetime | None
) -> ds.Expression | None:
    """Whether first <= column <= last, in the column's type; None where it cannot be asked."""
    kind = column.type
    if not pa.types.is_timestamp(kind) or (first is None and last is None):
        return None
    axis, field = Axis.of(kind), ds.field(column.name)
    condition = None
    if first is not None:
        condition = field >= pa.scalar(axis.first_at_or_after(first), pa.int64()).cast(kind)
    if last is not None:
        upper = field <= pa.scalar(axis.last_at_or_before(last), pa.int64()).cast(kind)
        condition = upper if condition is None else condition & upper
    return condition
