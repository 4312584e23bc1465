"""The Parquet files of a view's history become those of its table, in one commit.

::

    rows by partition -> sorted -> new files -> commit
    files as they are -------------------------^

Copied rows keep the rule of folders: of equal rows that of the later path wins, then the later
one. Their sequence numbers say so. Registered files have none, so what the rows hold decides.
"""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import one_array
from feast_dynamo_ext.errors import ColumnTypeError, NotCommittedError
from feast_dynamo_ext.parquet.fitted import fitted
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.parquet.iceberg.commits import REFUSED
from feast_dynamo_ext.parquet.iceberg.data_files import (
    DataFiles,
    in_order,
    partitions_of,
    table_columns,
)
from feast_dynamo_ext.parquet.iceberg.import_record import forget
from feast_dynamo_ext.parquet.iceberg.ledger import COMMIT_ID, carried
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout, first_sequence
from feast_dynamo_ext.parquet.iceberg.view_table import IMPORTED, make
from feast_dynamo_ext.parquet.source import ROW
from feast_dynamo_ext.parquet.spill import BinSpool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from feast import RepoConfig
    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.iceberg.import_plan import ImportPlan


@dataclass(frozen=True)
class Room:
    """What a copy may take.

    Attributes:
        chunk_bytes: of rows that are sorted in memory at a time; in all it takes about five times
            as much.
        spill_bytes: of rows that are on the disk at a time, by partition.
        spill_folder: of the disk; None for the system's folder for temporary files.
    """

    chunk_bytes: int = 128 << 20
    spill_bytes: int = 4 << 30
    spill_folder: str | None = None


@dataclass(frozen=True)
class ImportResult:
    """What an import did.

    Attributes:
        table: namespace and table.
        files: files that were taken.
        rows: rows in these.
        written: files of the table that were written; none where they were registered.
    """

    table: str
    files: int
    rows: int
    written: int


def run_import(
    plan: ImportPlan,
    config: RepoConfig,
    advance: Callable[[int], None] = lambda _: None,
    room: Room | None = None,
) -> ImportResult:
    """Make the table, where there is none, and the files its own, in one commit.

    Args:
        plan: from `plan_import`.
        config: the repo's config.
        advance: is given the number of rows that were read or written: of each row twice.
        room: memory and disk.

    Raises:
        NotCommittedError: another import came first. Nothing of this one is in the table.
        ColumnTypeError: a value does not fit its column; names it. Nothing was imported.
        SourceReadError: a file cannot be read, or changed meanwhile.
        AwsError: S3 refused. DestinationError: a disk did.
    """
    handle = plan.new.handle
    if not plan.files:
        return ImportResult(handle.name, 0, 0, 0)
    table = plan.table if plan.table is not None else make(plan.new)
    files = DataFiles(table, handle.settings)
    added: list[Any] = []
    copied = [] if plan.register else added
    try:
        with catalog_errors(handle.address, handle.name):
            if plan.register:
                added += _described(plan, table)
            else:
                room = room or Room(spill_folder=config.offline_store.spill_folder)
                _Copy(plan, table, files, advance, room).run(added)
        plan.source.check_unchanged()
    except BaseException:
        files.discard(copied)
        raise
    try:
        is_ours = _commit(plan, table, added)
    except (NotCommittedError, *REFUSED):
        files.discard(copied)
        raise
    if not is_ours:  # another process imported the same files
        files.discard(copied)
    return ImportResult(handle.name, len(plan.files), plan.rows, len(copied))


# Files as they are


def _described(plan: ImportPlan, table: Any) -> list[Any]:
    """Descriptions of files that stay where they are."""
    from pyiceberg.table import _parquet_files_to_data_files

    scheme = "s3://" if plan.source.place.is_on_s3 else "file://"
    paths = [f"{scheme}{file.path}" for file in plan.files]
    return list(_parquet_files_to_data_files(table.metadata, paths, table.io))


# Rows, copied


class _Copy:
    """Copies the rows of an import into files of its table.

    Rows are read in the order of their positions. Those of a partitioned table are kept on the
    disk by partition until there are many. What is sorted and written together follows each other,
    so that of two files of a partition one has only later rows than the other.
    """

    def __init__(
        self,
        plan: ImportPlan,
        table: Any,
        files: DataFiles,
        advance: Callable[[int], None],
        room: Room,
    ) -> None:
        self._plan, self._table, self._files = plan, table, files
        self._advance, self._room = advance, room
        self._layout = TableLayout.from_table(table)
        self._schema = table_columns(table.schema())
        # Of a table without rows, columns that would be of other types if it were made now.
        self._outdated = {
            column.name: column.type
            for column in (plan.new.columns if plan.is_into_nothing else [])
            if column.type != self._schema.field(column.name).type
        }
        last = table.metadata.last_sequence_number
        self._first = first_sequence(last, plan.rows) if self._layout else 0

    def run(self, written: list[Any]) -> None:
        """Copy all; the files are added to `written` one by one."""
        partition = self._layout.partition if self._layout else "none"
        pieces = self._rows() if partition == "none" else self._by_partition(partition)
        for chunk in self._chunks(pieces):
            for key, rows in partitions_of(self._table, chunk):
                is_sorted = self._layout is not None
                ordered = in_order(rows, self._layout) if self._layout else rows
                written += self._files.write(key, [ordered], is_sorted=is_sorted)
            self._advance(chunk.num_rows)

    def _rows(self) -> Iterator[pa.RecordBatch | None]:
        """All rows as the table has them."""
        source = self._plan.source
        names = [name for name in self._schema.names if name in source.schema.names]
        for batch in source.scan(names):
            yield self._fitted(batch)
            self._advance(batch.num_rows)

    def _fitted(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        columns = []
        for column in self._schema:
            if self._layout is not None and column.name == self._layout.sequence:
                positions = batch.column(ROW).to_numpy(zero_copy_only=False)
                columns.append(pa.array(positions + self._first))
            elif column.name not in batch.schema.names:
                columns.append(pa.nulls(batch.num_rows, column.type))
            elif batch.schema.field(column.name).type == column.type:
                columns.append(batch.column(column.name))
            else:
                columns.append(self._cast(batch, column))
        return pa.RecordBatch.from_arrays(columns, schema=self._schema)

    def _cast(self, batch: pa.RecordBatch, column: pa.Field) -> pa.Array:
        name = column.name
        about = f"Feature view `{self._plan.view}`: column `{name}` of {self._plan.source.uri}"
        there = f"the table {self._plan.new.handle.name}"
        values = pa.chunked_array([batch.column(name)])
        kind = self._plan.new.declared.get(name)
        try:
            return one_array(fitted(values, column.type, name, about, there, kind))
        except ColumnTypeError as error:
            if name not in self._outdated:
                raise
            raise ColumnTypeError(
                f"{error} Or, as {there} has no rows, `feast-dynamo table drop "
                f"{self._plan.new.handle.name}` and import again: its column is {column.type} "
                f"from an earlier run, and would be {self._outdated[name]}."
            ) from error

    def _chunks(self, pieces: Iterator[pa.RecordBatch | None]) -> Iterator[pa.Table]:
        """What is sorted and written together; None ends one."""
        held: list[pa.RecordBatch] = []
        held_bytes = 0
        for batch in pieces:
            if batch is not None:
                held.append(batch)
                held_bytes += batch.nbytes
            if held and (batch is None or held_bytes >= self._room.chunk_bytes):
                yield pa.Table.from_batches(held, self._schema).combine_chunks()
                held, held_bytes = [], 0
        if held:
            yield pa.Table.from_batches(held, self._schema).combine_chunks()

    def _by_partition(self, partition: str) -> Iterator[pa.RecordBatch | None]:
        """Rows partition by partition, as far as the disk has room; None after each."""
        rows = self._rows()
        more: pa.RecordBatch | None = next(rows, None)
        while more is not None:
            with contextlib.closing(self._spool(partition)) as spool:
                kept_bytes = 0
                while more is not None and kept_bytes < self._room.spill_bytes:
                    spool.add(more)
                    kept_bytes += more.nbytes
                    more = next(rows, None)
                spool.finish()
                for found in np.flatnonzero(spool.counts):
                    yield from spool.read(int(found))
                    yield None

    def _spool(self, partition: str) -> BinSpool:
        unit, bins = {"day": ("D", 4_096), "month": ("M", 512)}[partition]
        event_time = self._layout.event_time if self._layout else ""

        def bin_of(batch: pa.RecordBatch) -> NDArray[np.int64]:
            # Partitions that are ten years apart may share a bin: they are split later.
            times = batch.column(event_time).cast(pa.int64()).fill_null(0).to_numpy()
            numbers: NDArray[np.int64] = times.view("M8[us]").astype(f"M8[{unit}]").view(np.int64)
            return numbers % bins

        return BinSpool(
            self._schema,
            bins,
            bin_of,
            self._room.chunk_bytes,
            self._room.spill_folder,
            purpose="import",
        )


# The commit


RUN = "feast-dynamo.import-run"
"""Name of the run in the summary of its snapshot."""


def _commit(plan: ImportPlan, table: Any, added: list[Any]) -> bool:
    """Make files count, once.

    Returns:
        Whether they do; False where the same files were imported by another process.

    Raises: as `TableHandle.commit`.
    """
    from feast_dynamo_ext.parquet.iceberg.producers import LightTransaction

    run, before = uuid.uuid4().hex, table.properties.get(IMPORTED)
    record = plan.record.with_import(table, plan.files, plan.commit_id).write(table)
    summary = {COMMIT_ID: plan.commit_id, RUN: run}

    def work(fresh: Any) -> None:
        if fresh.properties.get(IMPORTED) != before:
            raise NotCommittedError(
                f"The Iceberg table {plan.new.handle.name}: another import came first, and may "
                "have taken the same files. Nothing of this one is in the table; run it again."
            )
        properties = {IMPORTED: record}
        if plan.register and fresh.name_mapping() is None:
            # The files have no numbers of columns; a rename must not lose them.
            mapping = fresh.schema().name_mapping.model_dump_json()
            properties["schema.name-mapping.default"] = mapping
        said = {**summary, **carried(fresh)}
        with LightTransaction(fresh) as transaction:
            transaction.set_properties(properties)
            producer = transaction.update_snapshot(snapshot_properties=said).merge_append()
            for file in added:
                producer.append_data_file(file)
            producer.commit()

    is_ours = False
    try:
        done = plan.new.handle.attempt(work, plan.commit_id)
        summaries = [snapshot.summary or {} for snapshot in done.snapshots()]
        is_ours = any(each.get(RUN) == run for each in summaries)
    except (NotCommittedError, *REFUSED):
        forget(table, record)
        raise
    outdated = before if is_ours else record
    if outdated is not None:
        forget(table, outdated)
    return is_ours
