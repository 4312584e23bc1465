"""Rewrites a history table's small and unsorted files as sorted ones of a good size.

Partition by partition, small ones committed together, beside appends and reads. No answer
changes: rows keep their sequence, by which equal rows are decided, and where the sequence is equal
or missing too, they are put in the order of what they hold.

The files of a partition are seen as **runs**: files whose sequences overlap, as those that one
rewrite made, or one append. A run is sound where its files are sorted, lack deletes, hold disjoint
keys or times, and no two of them are small. What comes first and is sound and large stays as it
is; all that follows is rewritten as one run, unless it is one sound run already. So a partition
that grows is not rewritten from its start each time.

Rows that do not fit in memory are split on the local disk by ranges of the sort order, and each
range is sorted in memory.
"""

from __future__ import annotations

import itertools
import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.errors import NotCommittedError, OfflineStoreError, SourceReadError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.parquet.iceberg.commits import (
    OPERATION,
    Change,
    clean_manifests,
    new_commit_id,
    planned,
)
from feast_dynamo_ext.parquet.iceberg.content_order import content_ranks
from feast_dynamo_ext.parquet.iceberg.data_files import (
    DataFiles,
    KnownPartition,
    file_schema,
    in_order,
    order_of,
    target_bytes,
)
from feast_dynamo_ext.parquet.iceberg.file_rows import FileRows
from feast_dynamo_ext.parquet.iceberg.table_files import ManifestBounds
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout
from feast_dynamo_ext.parquet.spill import BinSpool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

logger = logging.getLogger(__name__)

SHARES = 10
"""Of the memory: a range is in memory three times while it is sorted, a row group is written
meanwhile, and Python with its libraries needs a part."""

LEAST_RANGE_BYTES, MOST_RANGE_BYTES = 1 << 20, 256 << 20
MOST_PIECE_BYTES = 8 << 20
"""Of sorted rows, after which a file may end."""

MOST_RANGES = 4_096
SAMPLED_ROWS = 200_000

IN_MEMORY = 4.0
"""Times that Arrow needs of a file's bytes; a guess, until some rows are read."""

COMMITTED_TOGETHER, TOGETHER_BYTES = 50, 128 << 20
"""Small partitions that are one commit. Each commit writes a table's metadata anew, with all
snapshots: one for each of a thousand days would take minutes, and slow down all that follow."""

CONFLICTS = 3
"""Times that a partition is planned anew where others change it meanwhile."""


@dataclass(frozen=True)
class PartitionResult:
    """What became of one partition.

    Attributes:
        partition: as the folders of its files are called; empty where the table has none.
        rows: that were rewritten.
        files_before: files that were replaced.
        files_after: files in their place.
        bytes_before: of the former.
        bytes_after: of the latter.
        skipped: why it was left as it is; empty where it was not.
    """

    partition: str
    rows: int
    files_before: int
    files_after: int
    bytes_before: int
    bytes_after: int
    skipped: str = ""


@dataclass(frozen=True)
class OptimizeReport:
    """What an optimization did, or would do.

    Attributes:
        table: its name.
        partitions: those that needed work.
        untouched: how many partitions need nothing.
        older: files that were written under an older partitioning, which are left as they are.
    """

    table: str
    partitions: tuple[PartitionResult, ...]
    untouched: int
    older: int

    @property
    def skipped(self) -> tuple[PartitionResult, ...]:
        """Partitions that another writer kept changing."""
        return tuple(part for part in self.partitions if part.skipped)


def optimize(
    handle: TableHandle,
    memory_bytes: int = 1 << 30,
    spill_folder: str | None = None,
    advance: Callable[[int, int], object] = lambda _done, _total: None,
    *,
    dry_run: bool = False,
) -> OptimizeReport:
    """Rewrite what needs it of a table that we made.

    Args:
        handle: the table.
        memory_bytes: that it may take; rows beyond are kept on a disk meanwhile.
        spill_folder: of that disk; default: the system's folder for temporary files.
        advance: called with the rows that are written and all that are to be.
        dry_run: only say what would be rewritten.

    Raises:
        OfflineStoreError: a table of others, which have no order of their rows; a full disk.
        SourceReadError: a file cannot be read. AwsError: S3 refused.
    """
    table = handle.load()
    layout = _layout(handle, table)
    with catalog_errors(handle.address, handle.name):
        units, older = _units(table, planned(table), layout)
    work = {unit.name: unit.to_rewrite() for unit in units}
    todo = [unit for unit in units if work[unit.name]]
    total = sum(task.file.record_count for tasks in work.values() for task in tasks)
    done = 0

    def written(rows: int) -> None:
        nonlocal done
        done += rows
        advance(min(done, total), total)

    results: list[PartitionResult] = []
    rewrite = _Rewrite(handle, memory_bytes, spill_folder, written)
    for some in _groups(todo, work):
        if dry_run:
            results += [_result(unit, work[unit.name], (), 0) for unit in some]
        else:
            results += rewrite.run(table, layout, {unit: work[unit.name] for unit in some})
            logger.info("%s: %d partitions are rewritten", handle.name, len(results))
    if not dry_run and any(task.delete_files for tasks in work.values() for task in tasks):
        clean_manifests(handle)  # else files of deleted rows would stay, which apply to nothing
    return OptimizeReport(handle.name, tuple(results), len(units) - len(todo), older)


def _groups(units: Sequence[Unit], work: Mapping[str, Sequence[Any]]) -> Iterator[list[Unit]]:
    """Partitions that are committed together: a large one, or several small ones."""
    some: list[Unit] = []
    size = 0
    for unit in units:
        found = sum(task.file.file_size_in_bytes for task in work[unit.name])
        if some and (len(some) == COMMITTED_TOGETHER or size + found > TOGETHER_BYTES):
            yield some
            some, size = [], 0
        some.append(unit)
        size += found
    if some:
        yield some


def _layout(handle: TableHandle, table: Any) -> TableLayout:
    layout = TableLayout.from_table(table)
    if layout is None:
        raise OfflineStoreError(
            f"The Iceberg table {handle.name} was not made by `feast-dynamo table create`: it "
            "has no order of its rows and no sequence, so a rewrite could change which of equal "
            "rows counts. Optimize it with the engine that writes it (`rewrite_data_files`, "
            "Glue's own compaction), or import its rows into a table of ours."
        )
    return layout


# What needs work


@dataclass(frozen=True, eq=False)
class Unit:
    """The files of one partition.

    Attributes:
        name: as the folders of the files are called.
        partition: as `DataFiles.write` takes it.
        tasks: plans of the files, by the least sequence.
        shape: of what files of the table look like.
    """

    name: str
    partition: Any
    tasks: tuple[Any, ...]
    shape: _Shape

    def to_rewrite(self) -> list[Any]:
        """Plans of the files that are to be rewritten, as one run; none where all is well."""
        runs = self.shape.runs(self.tasks)
        while runs and self.shape.is_large(runs[0]) and self.shape.is_sound(runs[0]):
            runs = runs[1:]
        if not runs or (len(runs) == 1 and self.shape.is_sound(runs[0])):
            return []
        return [task for run in runs for task in run]


@dataclass(frozen=True)
class _Shape:
    """How files of a table are judged."""

    bounds: ManifestBounds
    order_id: int
    sequence: int
    columns: tuple[str, ...]
    target_bytes: int

    def runs(self, tasks: Sequence[Any]) -> list[list[Any]]:
        """Files by sequence, those that overlap together."""
        found: list[list[Any]] = []
        last = -(2**63)
        for task in sorted(tasks, key=lambda task: self.sequences(task)[0]):
            first, end = self.sequences(task)
            if found and first <= last:
                found[-1].append(task)
            else:
                found.append([task])
            last = max(last, end)
        return found

    def sequences(self, task: Any) -> tuple[int, int]:
        """The least and the greatest sequence that a file may hold, null before all."""
        nulls = (task.file.null_value_counts or {}).get(self.sequence)
        least = (task.file.lower_bounds or {}).get(self.sequence)
        greatest = (task.file.upper_bounds or {}).get(self.sequence)
        if least is None or greatest is None or nulls != 0:
            return -(2**63), 2**63 - 1
        return _number(least), _number(greatest)

    def is_large(self, run: Sequence[Any]) -> bool:
        size: int = sum(task.file.file_size_in_bytes for task in run)
        return size >= self.target_bytes // 2

    def is_sound(self, run: Sequence[Any]) -> bool:
        small = sum(task.file.file_size_in_bytes < self.target_bytes // 2 for task in run)
        return (
            small <= 1
            and all(
                task.file.sort_order_id == self.order_id and not task.delete_files for task in run
            )
            and self._are_apart(run)
        )

    def _are_apart(self, run: Sequence[Any]) -> bool:
        """Whether files hold disjoint ranges of the order.

        Bounds say it of a column. Where a key goes on in the next file they do not, but files that
        were written as one have one name, with a number.
        """
        stems = {task.file.file_path.rpartition("-")[0] for task in run}
        return len(stems) == 1 or any(self._are_apart_in(run, name) for name in self.columns)

    def _are_apart_in(self, run: Sequence[Any], column: str) -> bool:
        ranges = [self.bounds.range(task.file.file_path, column) for task in run]
        if any(found is None for found in ranges):
            return False
        ordered = sorted(found for found in ranges if found is not None)
        return all(one[1] < other[0] for one, other in itertools.pairwise(ordered))


def _number(bound: bytes) -> int:
    return int.from_bytes(bound, "little", signed=True)


def _units(table: Any, plans: dict[str, Any], layout: TableLayout) -> tuple[list[Unit], int]:
    """Partitions by name, and how many files are of an older partitioning."""
    spec, schema = table.spec(), table.schema()
    shape = _Shape(
        ManifestBounds(schema, {path: task.file for path, task in plans.items()}),
        table.sort_order().order_id,
        schema.find_field(layout.sequence).field_id,
        (*layout.keys[:1], layout.event_time),
        target_bytes(table),
    )
    by_partition: dict[str, list[Any]] = defaultdict(list)
    for task in plans.values():
        if task.file.spec_id == spec.spec_id:
            by_partition[spec.partition_to_path(task.file.partition, schema)].append(task)
    units = []
    for name, tasks in sorted(by_partition.items()):
        ordered = sorted(tasks, key=lambda task: (shape.sequences(task), task.file.file_path))
        partition = KnownPartition.from_file(table, ordered[0].file)
        units.append(Unit(name, partition, tuple(ordered), shape))
    return units, len(plans) - sum(len(unit.tasks) for unit in units)


def _result(
    unit: Unit, before: Sequence[Any], after: Sequence[Any], rows: int, skipped: str = ""
) -> PartitionResult:
    return PartitionResult(
        unit.name,
        rows,
        len(before),
        len(after),
        sum(task.file.file_size_in_bytes for task in before),
        sum(file.file_size_in_bytes for file in after),
        skipped,
    )


# The rewrite of partitions


@dataclass(frozen=True)
class _Rewrite:
    handle: TableHandle
    memory_bytes: int
    spill_folder: str | None
    advance: Callable[[int], object]

    def run(
        self, table: Any, layout: TableLayout, work: Mapping[Unit, Sequence[Any]]
    ) -> list[PartitionResult]:
        """Rewrite partitions and commit them together; where others came first, each by itself."""
        try:
            return self._together(table, layout, work)
        except NotCommittedError:
            return [self._alone(unit) for unit in work]

    def _alone(self, unit: Unit) -> PartitionResult:
        """Rewrite a partition as it is now."""
        refused, tasks = "", list[Any]()
        for _ in range(CONFLICTS):
            table = self.handle.load()
            layout = _layout(self.handle, table)
            with catalog_errors(self.handle.address, self.handle.name):
                units, _ = _units(table, planned(table), layout)
            found = [other for other in units if other.name == unit.name]
            tasks = found[0].to_rewrite() if found else []
            if not tasks:
                return _result(unit, (), (), 0)  # another writer has done it
            try:
                return self._together(table, layout, {found[0]: tasks})[0]
            except NotCommittedError as error:
                refused = str(error)
        return _result(unit, tasks, (), 0, refused)

    def _together(
        self, table: Any, layout: TableLayout, work: Mapping[Unit, Sequence[Any]]
    ) -> list[PartitionResult]:
        files = DataFiles(table, self.handle.settings)
        results: list[PartitionResult] = []
        written: list[Any] = []
        try:
            for unit, tasks in work.items():
                new = self._written(files, layout, unit, tasks)
                written += new
                rows = sum(file.record_count for file in new)
                results.append(_result(unit, tasks, new, rows))
        except BaseException:
            files.discard(written)
            raise
        removed = [task for tasks in work.values() for task in tasks]
        change = Change(written, removed, {OPERATION: "optimize"}, is_rewrite=True)
        self.handle.commit_files(files, change, new_commit_id())
        return results

    def _written(
        self, files: DataFiles, layout: TableLayout, unit: Unit, tasks: Sequence[Any]
    ) -> list[Any]:
        rows = FileRows(files.table)
        ordered = SortedRows(rows, layout, tasks, self.memory_bytes, self.spill_folder)
        with catalog_errors(self.handle.address, self.handle.name):
            live = sum(map(rows.live, tasks))
            written = files.write(
                unit.partition,
                self._counted(ordered.pieces()),
                is_sorted=True,
                may_end=FileEnds(layout, unit.shape.target_bytes).may_end,
            )
        new = sum(file.record_count for file in written)
        if new != live:
            files.discard(written)
            raise SourceReadError(
                f"The Iceberg table {self.handle.name}: of {live:,} rows to rewrite {new:,} were "
                "read. Nothing was changed; look for a file that was replaced."
            )
        return written

    def _counted(self, pieces: Iterable[pa.Table]) -> Iterator[pa.Table]:
        for piece in pieces:
            yield piece
            self.advance(piece.num_rows)


@dataclass
class FileEnds:
    """Says where a file of sorted rows may end.

    Rows of one key and event time are never in two files: then the files' order would have to say
    which of them counts. Where a file is full, it ends with the first key, so that bounds tell the
    files apart; where it is full twice over, with any key and time.

    Attributes:
        layout: of the rows.
        target_bytes: when a file is full.
    """

    layout: TableLayout
    target_bytes: int
    _last: pa.Table | None = None

    def may_end(self, piece: pa.RecordBatch | pa.Table, file_bytes: int) -> bool:
        """Whether a file may end before a piece, given its bytes so far."""
        names = [*self.layout.keys, self.layout.event_time]
        last, rows = self._last, _as_table(piece).select(names)
        # Copies, which do not hold the piece.
        self._last = rows.take(pa.array([rows.num_rows - 1]))
        if last is None or file_bytes < self.target_bytes:
            return False
        if file_bytes < 2 * self.target_bytes:
            names = names[:1]
        return bool(starts(pa.concat_tables([last, rows.slice(0, 1)]), names)[1])


def _as_table(rows: pa.RecordBatch | pa.Table) -> pa.Table:
    return pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows


def starts(rows: pa.Table, names: Sequence[str]) -> NDArray[np.bool_]:
    """Of sorted rows, which are not equal to the one before in some columns."""
    found = np.zeros(rows.num_rows, dtype=bool)
    found[:1] = True
    for name in names:
        column = rows.column(name)
        one, other = column.slice(0, max(0, len(column) - 1)), column.slice(1)
        differ = pc.fill_null(pc.not_equal(one, other), False)
        if column.null_count:
            differ = pc.or_(differ, pc.not_equal(one.is_null(), other.is_null()))
        found[1:] |= np.asarray(differ)
    return found


@dataclass(frozen=True)
class SortedRows:
    """The rows of some files in a table's order, in bounded memory.

    Attributes:
        rows: reads the files.
        layout: the order.
        tasks: plans of the files.
        memory_bytes: that may be taken.
        spill_folder: of a disk for what does not fit.
    """

    rows: FileRows
    layout: TableLayout
    tasks: Sequence[Any]
    memory_bytes: int
    spill_folder: str | None

    def pieces(self) -> Iterator[pa.Table]:
        """All rows in pieces, which begin where a key or an event time does, as far as possible.

        The first of a range may go on with the key and time of the last of the one before.
        """
        ends = self._range_ends()
        schema = file_schema(self.rows.table)
        piece_bytes = min(MOST_PIECE_BYTES, target_bytes(self.rows.table) // 4)
        with BinSpool(
            schema,
            ends.num_rows + 1,
            lambda batch: range_of(batch, ends, self.layout),
            min(128 << 20, self._range_bytes),
            self.spill_folder,
            purpose="sort",
        ) as spool:
            for task in self.tasks:
                for batch in self.rows.batches(task):
                    spool.add(batch)
            spool.finish()
            for found in range(ends.num_rows + 1):
                table = pa.Table.from_batches(spool.read(found), schema)
                if table.num_rows:
                    ordered = in_content_order(table, self.layout)
                    yield from _pieces(ordered, self.layout, piece_bytes)

    @property
    def _range_bytes(self) -> int:
        return max(LEAST_RANGE_BYTES, min(MOST_RANGE_BYTES, self.memory_bytes // SHARES))

    def _range_ends(self) -> pa.Table:
        """Where in the order ranges after the first begin; no rows where all fits in memory."""
        names = list(self.layout.order)
        none = file_schema(self.rows.table).empty_table().select(names)
        files = sum(task.file.file_size_in_bytes for task in self.tasks)
        if files * IN_MEMORY <= self._range_bytes:
            return none
        total = sum(task.file.record_count for task in self.tasks)
        every = max(1, -(-total // SAMPLED_ROWS))
        sampled, size, seen = [], 0, 0
        for task in self.tasks:
            for batch in self.rows.batches(task):
                size += batch.nbytes
                wanted = np.arange(-seen % every, batch.num_rows, every)
                seen += batch.num_rows
                sampled.append(batch.select(names).take(pa.array(wanted)))
        count = min(MOST_RANGES, size // self._range_bytes + 1)
        if count == 1:
            return none
        sample = in_order(pa.Table.from_batches(sampled), self.layout)
        at = np.unique(np.arange(1, count) * sample.num_rows // count)
        return sample.take(pa.array(at))


def range_of(batch: pa.RecordBatch, ends: pa.Table, layout: TableLayout) -> NDArray[np.int64]:
    """The number of the range of each row: how many of their beginnings are not beyond it."""
    rows = pa.Table.from_batches([batch.select(ends.column_names)])
    # The sort is stable, so that a beginning comes before the rows that are equal to it.
    order = order_of(pa.concat_tables([ends, rows]), layout)
    is_end = order < ends.num_rows
    found = np.empty(batch.num_rows, dtype=np.int64)
    found[order[~is_end] - ends.num_rows] = np.cumsum(is_end)[~is_end]
    return found


def in_content_order(rows: pa.Table, layout: TableLayout) -> pa.Table:
    """Rows as `in_order` has them; those that are equal in all of that, by what they hold."""
    ordered = in_order(rows, layout)
    is_start = starts(ordered, layout.order)
    if is_start.all():
        return ordered
    tied = ~is_start
    tied[:-1] |= tied[1:]
    places = np.flatnonzero(tied)
    ranks = content_ranks(ordered.take(pa.array(places)).drop_columns([layout.sequence]))
    order = np.arange(ordered.num_rows)
    order[places] = places[np.lexsort((ranks, np.cumsum(is_start)[places]))]
    return ordered.take(pa.array(order))


def _pieces(rows: pa.Table, layout: TableLayout, piece_bytes: int) -> Iterator[pa.Table]:
    """Sorted rows in pieces, which begin with a new first key where one is near."""
    names = [*layout.keys, layout.event_time]
    firsts = np.flatnonzero(starts(rows, names[:1]))
    begins = np.flatnonzero(starts(rows, names))
    wanted = max(1, piece_bytes * rows.num_rows // max(1, rows.nbytes))
    at = 0
    while at < rows.num_rows:
        end = _at_or_after(firsts, at + wanted, rows.num_rows)
        if end > at + 2 * wanted:
            end = _at_or_after(begins, at + wanted, rows.num_rows)
        yield rows.slice(at, end - at)
        at = end


def _at_or_after(places: NDArray[np.int64], least: int, end: int) -> int:
    found = int(np.searchsorted(places, least))
    return int(places[found]) if found < len(places) else end
