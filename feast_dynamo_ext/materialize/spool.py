"""Encoded rows on a local disk, by key bucket: what a run has read and is to write.

All rows are encoded before the first is written, so a value that cannot be kept fails a view
before anything of it is in the table. Keys fall into buckets by a hash of their own, so the rows
of a bucket are spread over all of DynamoDB's partitions, which go by another hash.
"""

from __future__ import annotations

import contextlib
import tempfile
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa

from feast_dynamo_ext.dynamo.encoding.protobuf import lengths_of
from feast_dynamo_ext.dynamo.encoding.requests import EncodedRows
from feast_dynamo_ext.errors import OfflineStoreError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from numpy.typing import NDArray

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


_FIXED_BYTES = 33
"""Of a row in memory: two offsets, two numbers, and a bit each that says whether it is there."""


def bucket_count(rows: int, rows_per_bucket: int) -> int:
    """How many buckets so many rows are parted into: a power of two, at most 256."""
    wanted = max(1, -(-rows // rows_per_bucket))
    return min(MOST_BUCKETS, 1 << (wanted - 1).bit_length())


class Spool:
    """The rows of one view. A context manager, whose end deletes them."""

    def __init__(
        self,
        schema: RowSchema,
        ttl_s: int | None,
        buckets: int,
        done: frozenset[int] = frozenset(),
        folder: str | None = None,
    ) -> None:
        """Nothing is on the disk yet.

        Args:
            schema: what rows' values stand for.
            ttl_s: the view's ttl in seconds, or None.
            buckets: number of key buckets.
            done: buckets whose rows are not kept.
            folder: of the disk; default: the system's folder for temporary files.
        """
        self.buckets = buckets
        self.rows = np.zeros(buckets, dtype=np.int64)
        self.schema, self._ttl_s = schema, ttl_s
        self._done = np.isin(np.arange(buckets), list(done))
        self._folder = folder or tempfile.gettempdir()
        self._duckdb = duckdb.connect(":memory:", config={"threads": "1"})
        # One file, without a name, so that nothing of it is left on the disk after a kill -9.
        # Unbuffered, so that closing it never writes what a full disk has not taken.
        with self._disk_errors():
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115
        self._size = 0
        self._parts: dict[int, list[tuple[int, int]]] = {}
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0

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
        batch = pa.record_batch([rows.keys, rows.values, rows.event_us, created], schema=LAYOUT)
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes >= BUFFER_BYTES:
            self._flush()

    def finish(self) -> None:
        """All rows are there.

        Raises: as `add`.
        """
        self._flush()

    def blocks(self, bucket: int) -> Iterator[EncodedRows]:
        """The rows of a bucket, in blocks of bounded size."""
        for table in _bounded(self._read(part) for part in self._parts.get(bucket, [])):
            key, values, event_us, created_us = (
                column.combine_chunks() for column in table.columns
            )
            created = None if created_us.null_count == len(created_us) else created_us
            yield EncodedRows(key, values, event_us, created, self.schema, self._ttl_s)

    def _flush(self) -> None:
        if not self._held:
            return
        table = pa.Table.from_batches(self._held, LAYOUT).combine_chunks()
        self._held, self._held_bytes = [], 0
        with self._disk_errors():
            for bucket, rows in self._parted(table):
                for batch in rows.to_batches():
                    self._parts.setdefault(bucket, []).append(self._append(batch.serialize()))

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OfflineStoreError(
                f"The rows to write cannot be kept in {self._folder}: {error}. Free space there, "
                "or point `spill_folder` of the offline store to a larger disk."
            ) from error

    def _parted(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        buckets = self._buckets_of(table)
        counts = np.bincount(buckets, minlength=self.buckets)
        self.rows += counts
        if self.buckets == 1:
            if not self._done[0]:
                yield 0, table
            return
        order = np.argsort(buckets, kind="stable")
        ends = counts.cumsum()
        sorted_rows = table.take(pa.array(order))
        for bucket in np.flatnonzero((counts > 0) & ~self._done):
            yield int(bucket), sorted_rows.slice(ends[bucket] - counts[bucket], counts[bucket])

    def _buckets_of(self, table: pa.Table) -> NDArray[np.int64]:
        """DuckDB's hash: the same in every process with its version."""
        if self.buckets == 1:
            return np.zeros(table.num_rows, dtype=np.int64)
        self._duckdb.register("rows", table.select(["key"]))
        found = self._duckdb.execute(
            "SELECT (hash(key) % ?)::BIGINT AS bucket FROM rows", [self.buckets]
        ).fetchnumpy()["bucket"]
        self._duckdb.unregister("rows")
        return np.asarray(found, dtype=np.int64)

    def _append(self, data: pa.Buffer) -> tuple[int, int]:
        """Where in the file the data is now: first byte and length."""
        start, rest = self._size, memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]
        self._size += data.size
        return start, data.size

    def _read(self, part: tuple[int, int]) -> pa.RecordBatch:
        start, length = part
        self._file.seek(start)
        data = self._file.read(length)
        if data is None or len(data) < length:
            raise OfflineStoreError(
                f"Rows that were kept in {self._folder} are gone. Run it again."
            )
        return pa.ipc.read_record_batch(pa.py_buffer(data), LAYOUT)

    def close(self) -> None:
        """Delete the rows."""
        self._duckdb.close()
        self._file.close()

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
    ends = (_FIXED_BYTES + lengths_of(batch["key"]) + lengths_of(batch["values"])).cumsum()
    start = before = 0
    while start < batch.num_rows:
        fitting = int(np.searchsorted(ends, before + BLOCK_BYTES, side="right"))
        stop = max(start + 1, min(start + BLOCK_ROWS, fitting))
        yield batch.slice(start, stop - start)
        start, before = stop, int(ends[stop - 1])
