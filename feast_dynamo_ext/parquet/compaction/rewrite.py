"""Sorts the rows of some files and writes them, in bounded memory.

The types are the files' own. Rows of a bin keep the order in which they were added.

Rows are first parted on the local disk by bucket and slice of time, then each part is sorted in
memory. Where a part is larger than its share of the memory all the same (very many rows of one
moment), it is sorted in pieces: its rows are then less well sorted, but never out of the order
that equal rows must keep.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.arrow_types import comparable
from feast_dynamo_ext.errors import ColumnTypeError, OfflineStoreError, SourceReadError
from feast_dynamo_ext.parquet.compaction.sorted_files import (
    GROUP_BYTES,
    SortedFiles,
    plain_schema,
)
from feast_dynamo_ext.parquet.pointer import bucket_of
from feast_dynamo_ext.parquet.writer import cast
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST, Axis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from types import TracebackType

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest, Unit
    from feast_dynamo_ext.parquet.compaction.snapshot import Snapshot
    from feast_dynamo_ext.parquet.pointer import Buckets, CompactedFile
    from feast_dynamo_ext.parquet.source import ParquetSource


class BinSpool:
    """A context manager, whose end deletes the rows; so does the end of the process."""

    def __init__(
        self,
        schema: pa.Schema,
        bins: int,
        bin_of: Callable[[pa.RecordBatch], NDArray[np.int64]],
        held_bytes: int,
        folder: str | None = None,
    ) -> None:
        """Nothing is on the disk yet.

        Args:
            schema: of the rows; without dictionaries, see `plain_schema`.
            bins: how many.
            bin_of: the bin of each row of a batch.
            held_bytes: of rows that are in memory before they are written.
            folder: of the disk; default: the system's folder for temporary files.
        """
        self.rows = 0
        self.spilled_bytes = 0
        self._schema, self._bins, self._bin_of = schema, bins, bin_of
        self._most_held = held_bytes
        self._folder = folder or tempfile.gettempdir()
        self._held: list[pa.RecordBatch] = []
        self._held_bytes = 0
        self._parts: dict[int, list[tuple[int, int]]] = {}
        with self._disk_errors():
            # Without a name: nothing is left of it after a kill -9. Unbuffered: closing it never
            # writes what a full disk has not taken.
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115

    def add(self, batch: pa.RecordBatch) -> None:
        """Keep rows.

        Raises:
            OfflineStoreError: the disk is full.
        """
        self.rows += batch.num_rows
        self._held.append(batch)
        self._held_bytes += batch.nbytes
        if self._held_bytes >= self._most_held:
            self._flush()

    def finish(self) -> None:
        """All rows are there.

        Raises: as `add`.
        """
        # The rows of one bin that fit in memory need no disk.
        if self._bins > 1 or self._parts:
            self._flush()

    def read(self, found: int) -> Iterator[pa.RecordBatch]:
        """The rows of a bin, in the order in which they were added."""
        for start, length in self._parts.get(found, []):
            self._file.seek(start)
            data = self._file.read(length)
            if data is None or len(data) < length:
                raise OfflineStoreError(
                    f"Rows that were kept in {self._folder} are gone. Run it again."
                )
            yield pa.ipc.read_record_batch(pa.py_buffer(data), self._schema)
        yield from self._held

    def _flush(self) -> None:
        if not self._held:
            return
        table = pa.Table.from_batches(self._held, self._schema).combine_chunks()
        bins = np.concatenate([self._bin_of(batch) for batch in self._held])
        self._held, self._held_bytes = [], 0
        with self._disk_errors():
            for found, rows in _parted(table, bins, self._bins):
                for batch in rows.to_batches():
                    self._parts.setdefault(found, []).append(self._append(batch.serialize()))

    def _append(self, data: pa.Buffer) -> tuple[int, int]:
        start, rest = self.spilled_bytes, memoryview(data)
        # Reading moved to another place.
        self._file.seek(start)
        while rest:
            rest = rest[self._file.write(rest) :]
        self.spilled_bytes += data.size
        return start, data.size

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OfflineStoreError(
                f"The rows to sort cannot be kept in {self._folder}: {error}. Free space there, "
                "or point `spill_folder` of the offline store to a larger disk."
            ) from error

    def __enter__(self) -> BinSpool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def _parted(
    table: pa.Table, bins: NDArray[np.int64], count: int
) -> Iterator[tuple[int, pa.Table]]:
    if count == 1:
        yield 0, table
        return
    counts = np.bincount(bins, minlength=count)
    ends = counts.cumsum()
    ordered = table.take(pa.array(np.argsort(bins, kind="stable")))
    for found in np.flatnonzero(counts):
        yield int(found), ordered.slice(ends[found] - counts[found], counts[found])


# A part is in memory twice while it is sorted, and once more while a row group is written.
PARTS_IN_MEMORY = 6
MOST_HELD_BYTES, MOST_PART_BYTES = 128 << 20, 512 << 20
IN_MEMORY = 4
"""Times that Arrow needs of what a footer says; a guess, which `_row_bytes` makes better."""

MOST_SLICES = 1_024
SAMPLED_ROWS = 1 << 20


@dataclass(frozen=True)
class Rewrite:
    """How one unit is rewritten.

    Attributes:
        snapshot: the source.
        unit: which of its files.
        buckets: by which keys, or None.
        generation: name of this run.
        asked: what the caller wants.
        advance: called with numbers of rows as they are read and as they are written.
    """

    snapshot: Snapshot
    unit: Unit
    buckets: Buckets | None
    generation: str
    asked: LayoutRequest
    advance: Callable[[int], object]

    def run(self) -> list[CompactedFile]:
        """Write the new files; nobody reads them yet.

        Raises:
            SourceReadError: a file cannot be read, or has fewer or more rows than it says.
            OfflineStoreError: a disk is full.
            AwsError: S3 refused.
        """
        source = self._source()
        slices = self._slices(source)
        count = self.buckets.count if self.buckets else 1
        plain = plain_schema(source.schema)
        with BinSpool(
            plain,
            count * (len(slices) + 1),
            lambda batch: self._bins(batch, slices),
            min(MOST_HELD_BYTES, self._part_bytes),
            self.asked.spill_folder,
        ) as spool:
            for batch in source.scan(source.schema.names):
                spool.add(cast(batch.select(source.schema.names), plain))
                self.advance(batch.num_rows)
            spool.finish()
            self._check_rows(spool.rows)
            return self._written(spool, source.schema, count, len(slices) + 1)

    @property
    def _part_bytes(self) -> int:
        return min(MOST_PART_BYTES, self.asked.memory_bytes // PARTS_IN_MEMORY)

    def _source(self) -> ParquetSource:
        whole, root = self.snapshot.source, self.snapshot.folder.root
        inside = frozenset[str]().union(*(file.columns for file in self.unit.files))
        names = [
            name
            for name in whole.schema.names
            # A folder's column is in the folder's name still, but for buckets.
            if self.buckets or name in inside or name not in whole.of_folders
        ]
        paths = {f"{root}/{file.path}" for file in self.unit.files}
        return whole.only(paths, whole.schema_of(names))

    def _slices(self, source: ParquetSource) -> NDArray[np.int64]:
        """Where one slice of time ends and the next begins; none where all fits in memory."""
        count = self.buckets.count if self.buckets else 1
        rows = sum(file.rows for file in self.unit.files)
        guess: float = sum(file.plain_bytes for file in self.unit.files) * IN_MEMORY
        if guess / count > self._part_bytes:
            guess = rows * _row_bytes(source)
        slices = min(MOST_SLICES, int(guess / count / self._part_bytes) + 1)
        if slices == 1:
            return np.empty(0, dtype=np.int64)
        times = self._sample(source, rows)
        return np.unique(times[np.arange(1, slices) * len(times) // slices])

    def _sample(self, source: ParquetSource, rows: int) -> NDArray[np.int64]:
        every = -(-rows // SAMPLED_ROWS)
        column = self.snapshot.target.event_time
        times = [_numbers(batch.column(0), HIGHEST)[::every] for batch in source.scan([column])]
        return np.sort(np.concatenate(times))

    def _bins(self, batch: pa.RecordBatch, slices: NDArray[np.int64]) -> NDArray[np.int64]:
        target = self.snapshot.target
        times = _numbers(batch.column(target.event_time), HIGHEST)
        bins: NDArray[np.int64] = np.searchsorted(slices, times, side="right").astype(np.int64)
        if self.buckets:
            bins += self._buckets(batch, self.buckets) * (len(slices) + 1)
        return bins

    def _buckets(self, batch: pa.RecordBatch, buckets: Buckets) -> NDArray[np.int64]:
        try:
            return bucket_of([batch.column(name) for name in buckets.columns], buckets.count)
        except pa.ArrowException as error:
            raise ColumnTypeError(
                f"{self.snapshot.source.uri}: a join key of {list(buckets.columns)} holds a value "
                f"that cannot be compared exactly: {error}. Use --by-partition, or 64-bit "
                "integers or text as keys."
            ) from error

    def _check_rows(self, read: int) -> None:
        said = sum(file.rows for file in self.unit.files)
        if read != said:
            raise SourceReadError(
                f"{self.snapshot.source.uri}: {read:,} rows were read, but the footers of its "
                f"files say {said:,}. Nothing was changed; look for a corrupt file."
            )

    def _written(
        self, spool: BinSpool, schema: pa.Schema, buckets: int, slices: int
    ) -> list[CompactedFile]:
        found: list[CompactedFile] = []
        for bucket in range(buckets):
            files = SortedFiles(
                self.snapshot.folder,
                self._stem(bucket),
                schema,
                self.asked.target_bytes,
                bucket if self.buckets else None,
                min(GROUP_BYTES, self._part_bytes),
            )
            with files.writer() as writer:
                for part in range(bucket * slices, (bucket + 1) * slices):
                    for table in self._sorted(spool.read(part)):
                        writer.write(table)
                        self.advance(table.num_rows)
            found += files.written(writer)
        return found

    def _stem(self, bucket: int) -> str:
        folder = self.snapshot.folder.generation_path(self.generation)
        if self.buckets:
            return f"{folder}/bucket-{bucket:04d}"
        within = f"{self.unit.folder}/" if self.unit.folder else ""
        return f"{folder}/{within}part-{self.unit.layer:03d}"

    def _key_ranks(self, table: pa.Table) -> Iterator[NDArray[np.int64]]:
        """In buckets the rows of a key stand together; the last of these ranks counts most."""
        if self.buckets:
            for name in reversed(self.buckets.columns):
                yield _rank(comparable(table.column(name)))

    def _sorted(self, batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
        for table in _pieces(batches, 2 * self._part_bytes):
            times = _numbers(table.column(self.snapshot.target.event_time), HIGHEST)
            created = np.zeros(len(times), dtype=np.int64)
            if self.snapshot.target.created_time:
                created = _numbers(table.column(self.snapshot.target.created_time), LOWEST)
            # Stable: what is equal in all keeps its order.
            order = np.lexsort((created, times, *self._key_ranks(table)))
            if (order[1:] > order[:-1]).all():
                yield table
            else:
                yield table.take(pa.array(order))


def _rank(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Numbers in the order of a column's values."""
    if pa.types.is_integer(column.type) and not column.null_count:
        numbers: NDArray[np.int64] = column.to_numpy()
        return numbers
    ranks: NDArray[np.int64] = pc.rank(column, tiebreaker="dense").to_numpy()
    return ranks


def _numbers(column: pa.Array | pa.ChunkedArray, null: int) -> NDArray[np.int64]:
    numbers: NDArray[np.int64] = (
        Axis.from_type(column.type).cast(column).fill_null(null).to_numpy()
    )
    return numbers


def _row_bytes(source: ParquetSource) -> float:
    for batch in source.scan(source.schema.names):
        if batch.num_rows:
            return float(batch.nbytes / batch.num_rows)
    return 0


def _pieces(batches: Iterable[pa.RecordBatch], most_bytes: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        if held and size + batch.nbytes > most_bytes:
            yield pa.Table.from_batches(held).combine_chunks()
            held, size = [], 0
        held.append(batch)
        size += batch.nbytes
    if held:
        yield pa.Table.from_batches(held).combine_chunks()
