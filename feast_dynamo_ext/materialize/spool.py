"""Encoded rows on a local disk, by key bucket: what a run has read and is to write.

All rows are encoded before the first is written, so a value that cannot be kept fails a view
before anything of it is in the table. Keys fall into buckets by a hash of their own, so the rows
of a bucket are spread over all of DynamoDB's partitions, which go by another hash.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.duckdb_connection import registered
from feast_dynamo_ext.dynamo.encoding.protobuf import lengths_of
from feast_dynamo_ext.dynamo.encoding.requests import Deletions, EncodedRows
from feast_dynamo_ext.dynamo.layouts.series import SORT
from feast_dynamo_ext.parquet.spill import BinSpool
from feast_dynamo_ext.timestamps import LOWEST

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

    from numpy.typing import NDArray

    from feast_dynamo_ext.dynamo.encoding.requests import Order
    from feast_dynamo_ext.dynamo.layouts.packed import RowSchema

MOST_BUCKETS = 256
"""Rows are written to the disk a buffer at a time: more buckets would make shorter pieces."""

BUFFER_BYTES = 16 << 20
BLOCK_ROWS, BLOCK_BYTES = 10_000, 4 << 20
"""Of rows that are in memory as requests at once."""

LAYOUT = pa.schema(
    [
        ("key", pa.large_binary()),
        ("values", pa.large_binary()),
        ("event_us", pa.int64()),
        ("created_us", pa.int64()),
    ]
)


MARK = "mark "
"""What stands before the names of further attributes among the columns."""

MARK_TYPES = {"S": pa.large_string(), "B": pa.large_binary()}

GONE = ("key", "created_us")
"""Columns of a deletion; its values are null."""

_FIXED_BYTES = 33
"""Of a row in memory: two offsets, two numbers, and a bit for each that says if it is there."""


def bucket_count(rows: int, rows_per_bucket: int) -> int:
    """How many buckets so many rows are parted into: a power of two, at most 256."""
    wanted = max(1, -(-rows // rows_per_bucket))
    return min(MOST_BUCKETS, 1 << (wanted - 1).bit_length())


class Spool:
    """The rows of one view. A context manager, whose end deletes them.

    Of a series all rows are given, and of those of one event only the newest come out.

    Attributes:
        schema: what rows' values stand for.
        is_series: whether rows are events, which have sort keys among their marks.
    """

    def __init__(
        self,
        schema: RowSchema,
        ttl_s: int | None,
        buckets: int,
        done: frozenset[int] = frozenset(),
        folder: str | None = None,
        order: Order = "event",
        marks: Mapping[str, str] | None = None,
    ) -> None:
        """Nothing is on the disk yet.

        Args:
            schema: what rows' values stand for.
            ttl_s: the view's ttl in seconds, or None.
            buckets: number of key buckets.
            done: buckets whose rows are not kept.
            folder: of the disk; default: the system's folder for temporary files.
            order: which row of a key wins.
            marks: DynamoDB's types of further attributes, by name: see `EncodedRows.marks`.
        """
        self.schema, self._ttl_s, self._order = schema, ttl_s, order
        self.is_series = SORT in (marks or {})
        self._marks = dict(marks or {})
        self._layout = pa.schema(
            [*LAYOUT, *((MARK + name, MARK_TYPES[kind]) for name, kind in self._marks.items())]
        )
        self._done = np.isin(np.arange(buckets), list(done))
        self._duckdb = duckdb.connect(":memory:", config={"threads": "1"})
        self._bins = BinSpool(
            self._layout,
            buckets,
            self._buckets_of,
            BUFFER_BYTES,
            folder,
            purpose="write",
            dropped=done,
        )

    @property
    def buckets(self) -> int:
        """Number of key buckets."""
        return len(self.rows)

    @property
    def rows(self) -> NDArray[np.int64]:
        """Rows of each bucket, once all are there."""
        return self._bins.counts

    @property
    def resumed(self) -> int:
        """Rows of buckets that are done."""
        return int(self.rows[self._done].sum())

    @property
    def todo(self) -> list[int]:
        """Buckets that are not done, and have rows."""
        return [int(bucket) for bucket in np.flatnonzero((self.rows > 0) & ~self._done)]

    def add(self, rows: EncodedRows) -> None:
        """Keep rows.

        Raises:
            OfflineStoreError: the disk is full.
        """
        created = rows.created_us
        if created is None:
            created = pa.nulls(len(rows), pa.int64())
        marks = [rows.marks[name][1] for name in self._marks]
        self._bins.add(
            pa.record_batch(
                [rows.keys, rows.values, rows.event_us, created, *marks], schema=self._layout
            )
        )

    def add_deletions(self, deletions: Deletions) -> None:
        """Keep deletions, as rows without values.

        Raises: as `add`.
        """
        values, times = pa.nulls(len(deletions), pa.large_binary()), deletions.written_us
        marks = [
            deletions.sorts
            if name == SORT and deletions.sorts is not None
            else pa.nulls(len(deletions), MARK_TYPES[kind])
            for name, kind in self._marks.items()
        ]
        self._bins.add(
            pa.record_batch([deletions.keys, values, times, times, *marks], schema=self._layout)
        )

    def finish(self) -> None:
        """All rows are there, and none of them is in memory.

        Raises: as `add`.
        """
        self._bins.flush()

    def blocks(self, bucket: int) -> Iterator[EncodedRows | Deletions]:
        """The rows and deletions of a bucket, in blocks of bounded size."""
        found = self._bins.read(bucket)
        for table in _bounded(self._newest(found) if self.is_series else found):
            rows = table
            if table.column("values").null_count:
                is_row = table.column("values").is_valid()
                rows, gone = table.filter(is_row), table.filter(pc.invert(is_row))
                names = (*GONE, MARK + SORT) if self.is_series else GONE
                yield Deletions(*(gone.column(name).combine_chunks() for name in names))
            if not len(rows):
                continue
            key, values, event_us, created_us, *marks = (
                column.combine_chunks() for column in rows.columns
            )
            typed = zip(self._marks.values(), marks, strict=True)
            created = None if created_us.null_count == len(created_us) else created_us
            yield EncodedRows(
                key,
                values,
                event_us,
                created,
                self.schema,
                self._ttl_s,
                self._order,
                dict(zip(self._marks, typed, strict=True)),
            )

    def _newest(self, batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        """Of the rows of a bucket the newest one of each event, by created time, then the last.

        An event that was deleted and written at one time was written: an item that was there
        twice, under another key between, is there.
        """
        table = pa.Table.from_batches(batches, self._layout)
        if not len(table):
            return
        columns = [table[name] for name in ("key", MARK + SORT, "created_us")]
        columns += [table["values"].is_valid(), np.arange(len(table))]
        numbered = pa.table(columns, ["key", "sort", "created_us", "is_row", "row"])
        with registered(self._duckdb, "events", numbered):
            kept = self._duckdb.execute(
                "SELECT max_by(row, (coalesce(created_us, ?), is_row, row)) AS row FROM events "
                "GROUP BY key, sort ORDER BY row",
                [LOWEST],
            ).fetchnumpy()["row"]
        if len(kept) == len(table):
            yield from table.to_batches()
        else:
            yield from table.take(pa.array(np.asarray(kept, dtype=np.int64))).to_batches()

    def _buckets_of(self, batch: pa.RecordBatch) -> NDArray[np.int64]:
        """DuckDB's hash: the same in every process with its version."""
        with registered(self._duckdb, "rows", pa.Table.from_batches([batch.select(["key"])])):
            found = self._duckdb.execute(
                "SELECT (hash(key) % ?)::BIGINT AS bucket FROM rows", [self.buckets]
            ).fetchnumpy()["bucket"]
        return np.asarray(found, dtype=np.int64)

    def close(self) -> None:
        """Delete the rows."""
        self._duckdb.close()
        self._bins.close()

    def __enter__(self) -> Spool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _bounded(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in tables of at most BLOCK_ROWS and BLOCK_BYTES."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        for part in _cut(batch):
            if held and (rows + part.num_rows > BLOCK_ROWS or size + part.nbytes > BLOCK_BYTES):
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, 0
            held.append(part)
            rows, size = rows + part.num_rows, size + part.nbytes
    if held:
        yield pa.Table.from_batches(held)


def _cut(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Wide rows may follow each other: what counts is the size of each, not their mean."""
    sizes = _FIXED_BYTES + lengths_of(batch["key"]) + lengths_of(batch["values"])
    for column in batch.columns[len(LAYOUT) :]:
        sizes = sizes + lengths_of(column.cast(pa.large_binary()))
    ends = sizes.cumsum()
    start = before = 0
    while start < batch.num_rows:
        fitting = int(np.searchsorted(ends, before + BLOCK_BYTES, side="right"))
        stop = max(start + 1, min(start + BLOCK_ROWS, fitting))
        yield batch.slice(start, stop - start)
        start, before = stop, int(ends[stop - 1])
