"""Sorts the rows of some files and writes them, in bounded memory.

The types are the files' own. Rows of a bin keep the order in which they were added.

Rows are first parted on the local disk by bucket and slice of time, then each part is sorted in
memory. Where a part is larger than its share of the memory all the same (very many rows of one
moment), it is sorted in pieces: its rows are then less well sorted, but never out of the order
that equal rows must keep.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.errors import ColumnTypeError, SourceReadError
from feast_dynamo_ext.key_types import comparable
from feast_dynamo_ext.parquet.compaction.sorted_files import GROUP_BYTES, SortedFiles, plain_schema
from feast_dynamo_ext.parquet.pointer import bucket_of
from feast_dynamo_ext.parquet.spill import BinSpool
from feast_dynamo_ext.parquet.writer import cast
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST, Axis

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.compaction.layout import LayoutRequest, Unit
    from feast_dynamo_ext.parquet.compaction.snapshot import Snapshot
    from feast_dynamo_ext.parquet.pointer import Buckets, CompactedFile
    from feast_dynamo_ext.parquet.source import ParquetSource


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
            purpose="sort",
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
