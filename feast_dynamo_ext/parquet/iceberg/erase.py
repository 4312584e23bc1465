"""Erases all rows of some join keys from an Iceberg table, as a person's.

Files that hold a row of them are written anew without it, the order and the sequence of the others
kept; also those in which such a row was deleted already, but is there. A second commit writes the
manifests anew, which keep the least and the greatest values of removed files. What remains then is
in older snapshots: these are named, and expired where the caller says so.
"""

from __future__ import annotations

import bisect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.errors import (
    ColumnNotFoundError,
    ColumnTypeError,
    NotCommittedError,
    OfflineStoreError,
)
from feast_dynamo_ext.exact import cast_exact
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors
from feast_dynamo_ext.parquet.iceberg.commits import (
    OPERATION,
    Change,
    clean_manifests,
    new_commit_id,
    planned,
)
from feast_dynamo_ext.parquet.iceberg.data_files import (
    DataFiles,
    KnownPartition,
    partitions_of,
    table_columns,
)
from feast_dynamo_ext.parquet.iceberg.expire import ExpireReport, expire_chosen
from feast_dynamo_ext.parquet.iceberg.file_rows import FileRows
from feast_dynamo_ext.parquet.iceberg.snapshots import MAIN, SnapshotInfo, snapshots_of, untag
from feast_dynamo_ext.parquet.iceberg.table_files import ManifestBounds
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle

logger = logging.getLogger(__name__)

ROUNDS = 10
"""Times that files are looked through which others wrote meanwhile."""

TOGETHER_BYTES = 128 << 20
"""Of rows that are partitioned anew at once, where a table's partitioning has changed."""

ERASED_PROPERTY = "feast-dynamo.erased"
"""Property of a table: when rows were erased from it last, ISO 8601."""


class Chosen(Protocol):
    """Which rows are meant, whatever their columns are compared with."""

    @property
    def names(self) -> Sequence[str]:
        """Columns that `are_in` looks at."""
        ...

    def may_be_in(self, bounds: ManifestBounds, path: str) -> bool:
        """Whether a file may hold such a row, as manifests say."""
        ...

    def are_in(self, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows are meant."""
        ...


@dataclass(frozen=True)
class EraseReport:
    """What was erased, or would be.

    Attributes:
        table: its name.
        rows: that counted and are erased.
        files: data files that held such rows, deleted ones included.
        new_files: data files in their place.
        remaining: older snapshots, in which the rows can be read until they are expired.
        expired: what was expired; None where nothing was.
    """

    table: str
    rows: int
    files: int
    new_files: int
    remaining: tuple[SnapshotInfo, ...]
    expired: ExpireReport | None = None


def erase(
    handle: TableHandle,
    keys: Mapping[str, Any] | pa.Table | Chosen,
    advance: Callable[[int, int], object] = lambda _done, _total: None,
    *,
    expire_now: bool = False,
    drop_tags: bool = False,
    dry_run: bool = False,
) -> EraseReport:
    """Erase all rows of some join keys.

    Rows that are appended meanwhile are erased too, up to the last look at the table. Files that
    a killed writer left are in no snapshot, and are not found by this.

    Args:
        handle: the table.
        keys: values by join key, of one entity; or a table of them, an entity a row. Of several
            join keys some may be left out: then rows are erased whatever they hold there. Or what
            says itself which rows are meant.
        advance: called with the number of files that are done, and of all that are looked through.
        expire_now: also expire all older snapshots, so that nothing of the rows remains.
        drop_tags: with `expire_now`, also those that have a tag, which is removed.
        dry_run: only count.

    Raises:
        ColumnNotFoundError: a key is no column, or no join key, of the table.
        ColumnTypeError: a value is null, or does not fit its column exactly.
        OfflineStoreError: with `expire_now`: a tag, or a branch, keeps an older snapshot; nothing
            was changed.
        NotCommittedError: others kept changing the same files; see the report of those before in
            the table's history.
        AwsError: S3 refused.
    """
    table = handle.load()
    wanted = (
        Keys.from_values(handle.name, table, keys)
        if isinstance(keys, (Mapping, pa.Table))
        else keys
    )
    if expire_now and not dry_run:
        _check_refs(handle, table, drop_tags=drop_tags)
    report = _Erasure(handle, wanted, advance, dry_run).run()
    if dry_run:
        return report
    now = datetime.now(timezone.utc).isoformat(timespec="seconds")
    clean = clean_manifests(handle, {ERASED_PROPERTY: now} if report.files else {})
    if expire_now:
        report = replace(report, expired=_expire(handle, clean, drop_tags=drop_tags))
    remaining = [info for info in snapshots_of(handle.load()) if not info.is_current]
    return replace(report, remaining=tuple(remaining))


def erased_at(table: Any) -> str | None:
    """When rows were erased from a table last, ISO 8601; None for never."""
    found: str | None = table.properties.get(ERASED_PROPERTY)
    return found


def rows_of(
    handle: TableHandle, chosen: Chosen, columns: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    """The rows that are meant and count, with these columns, file by file.

    Raises:
        OfflineStoreError: as `TableHandle.load`. AwsError: S3 refused.
    """
    table = handle.load()
    names = list(dict.fromkeys([*columns, *chosen.names]))
    with catalog_errors(handle.address, handle.name):
        plans, rows = planned(table), FileRows(table)
        bounds = ManifestBounds(table.schema(), {path: task.file for path, task in plans.items()})
        for path, task in plans.items():
            if chosen.may_be_in(bounds, path):
                for batch in rows.batches(task, names):
                    kept = batch.filter(pa.array(chosen.are_in(batch)))
                    if kept.num_rows:
                        yield kept.select(list(columns))


# What is erased


@dataclass(frozen=True)
class Keys:
    """Join keys whose rows are erased.

    Attributes:
        values: a column a join key, in the table's types.
    """

    values: pa.Table

    @classmethod
    def from_values(cls, name: str, table: Any, keys: Mapping[str, Any] | pa.Table) -> Keys:
        """Checked against the table.

        Args:
            name: the table's.
            table: pyiceberg's.
            keys: as `erase` takes them.

        Raises: as `erase`.
        """
        columns, layout = table_columns(table.schema()), TableLayout.from_table(table)
        given = keys if isinstance(keys, pa.Table) else _one_row(name, keys, columns)
        known = list(layout.keys) if layout else columns.names
        wrong = [each for each in given.column_names if each not in known]
        if wrong or not given.column_names:
            raise ColumnNotFoundError(
                f"The Iceberg table {name}: {wrong or 'nothing'} cannot be erased by. Its "
                f"{'join keys' if layout else 'columns'} are {known}."
            )
        cast = {}
        for each in given.column_names:
            if given.column(each).null_count:
                raise ColumnTypeError(
                    f"The Iceberg table {name}: {given.column(each).null_count:,} values of "
                    f"`{each}` to erase are null. Leave the column out to erase whatever it holds."
                )
            cast[each] = _cast(name, each, given.column(each), columns.field(each).type)
        return cls(pa.table(cast).group_by(list(cast)).aggregate([]))

    @property
    def names(self) -> Sequence[str]:
        """Columns that are compared."""
        return list(self.values.column_names)

    def may_be_in(self, bounds: ManifestBounds, path: str) -> bool:
        """Whether a file may hold a row of them, as manifests say."""
        return all(
            not bounds.is_all_null(path, name) and _may_hold(values, bounds.range(path, name))
            for name, values in self._ordered.items()
        )

    def are_in(self, rows: pa.RecordBatch) -> NDArray[np.bool_]:
        """Which rows are theirs."""
        names = self.values.column_names
        found = np.ones(rows.num_rows, dtype=bool)
        for name in names:
            values = self.values.column(name).combine_chunks()
            found &= np.asarray(pc.is_in(rows.column(name), value_set=values))
        if len(names) > 1 and found.any():
            places = np.flatnonzero(found)
            tuples = self._tuples
            some = rows.select(names).take(pa.array(places)).to_pydict().values()
            found[places] = [each in tuples for each in zip(*some, strict=True)]
        return found

    @cached_property
    def _tuples(self) -> set[tuple[Any, ...]]:
        return set(zip(*self.values.to_pydict().values(), strict=True))

    @cached_property
    def _ordered(self) -> dict[str, list[Any]]:
        return {
            name: sorted(pc.unique(self.values.column(name)).to_pylist())
            for name in self.values.column_names
            if pa.types.is_integer(self.values.schema.field(name).type)
            or pa.types.is_string(self.values.schema.field(name).type)
        }


def _one_row(name: str, keys: Mapping[str, Any], columns: pa.Schema) -> pa.Table:
    def one(column: str, value: Any) -> pa.Array:
        try:
            return pa.array([value])  # whatever Arrow takes it for; the cast checks it
        except pa.ArrowException as error:
            kind = columns.field(column).type if column in columns.names else "value"
            raise ColumnTypeError(
                f"The Iceberg table {name}: what is to be erased of `{column}` is no {kind}."
            ) from error

    return pa.table({column: one(column, value) for column, value in keys.items()})


def _cast(name: str, column: str, values: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    try:
        return cast_exact(values, kind)
    except (ValueError, pa.ArrowException) as error:
        raise ColumnTypeError(
            f"The Iceberg table {name}: `{column}` to erase: {error} The column is of the type "
            f"{kind}."
        ) from error


def _may_hold(values: list[Any], said: tuple[Any, Any] | None) -> bool:
    if said is None:
        return True
    at = bisect.bisect_left(values, said[0])
    return at < len(values) and bool(values[at] <= said[1])


# The rewrite


@dataclass
class _Erasure:
    handle: TableHandle
    keys: Chosen
    advance: Callable[[int, int], object]
    dry_run: bool

    def run(self) -> EraseReport:
        """Rewrite and commit until no file that is there holds a row of the keys."""
        report = EraseReport(self.handle.name, 0, 0, 0, ())
        clean: set[str] = set()
        refused: NotCommittedError | None = None
        for _ in range(ROUNDS):
            table = self.handle.load()
            with catalog_errors(self.handle.address, self.handle.name):
                plans = planned(table)
                rows = FileRows(table)
                holding = self._holding(table, rows, plans, clean)
            counts = sum(holding.values())
            tasks = [plans[path] for path in holding]
            if not tasks or self.dry_run:
                if self.dry_run:
                    report = replace(report, rows=counts, files=len(tasks))
                return report
            files = DataFiles(table, self.handle.settings)
            written = self._rewritten(rows, files, tasks)
            change = Change(written, tasks, {OPERATION: "erase"})
            try:
                self.handle.commit_files(files, change, new_commit_id())
            except NotCommittedError as error:
                refused = error
                continue
            # Files are never changed: what was looked through needs no second look.
            clean |= plans.keys() | {file.file_path for file in written}
            report = replace(
                report,
                rows=report.rows + counts,
                files=report.files + len(tasks),
                new_files=report.new_files + len(written),
            )
        raise NotCommittedError(
            f"The Iceberg table {self.handle.name}: others kept writing rows to erase, or "
            f"changing their files, {ROUNDS} times; {report.rows:,} rows are erased. Run it again."
        ) from refused

    def _holding(
        self, table: Any, rows: FileRows, plans: Mapping[str, Any], clean: set[str]
    ) -> dict[str, int]:
        """Files that hold rows of the keys, and how many of these count."""
        bounds = ManifestBounds(table.schema(), {path: task.file for path, task in plans.items()})
        names = list(self.keys.names)
        maybe = [path for path in plans if path not in clean and self.keys.may_be_in(bounds, path)]
        found = {}
        for done, path in enumerate(maybe):
            task = plans[path]
            stored = self._count(rows.batches(task, names, deleted_too=True))
            if stored:
                found[path] = (
                    self._count(rows.batches(task, names)) if task.delete_files else stored
                )
            self.advance(done + 1, len(maybe))
        return found

    def _count(self, batches: Iterator[pa.RecordBatch]) -> int:
        return int(sum(self.keys.are_in(batch).sum() for batch in batches))

    def _rewritten(self, rows: FileRows, files: DataFiles, tasks: Sequence[Any]) -> list[Any]:
        """New files without the rows; none of them remains where one fails."""
        written: list[Any] = []
        table = files.table
        try:
            with catalog_errors(self.handle.address, self.handle.name):
                for task in tasks:
                    is_sorted = task.file.sort_order_id == table.sort_order().order_id
                    for partition, batches in self._kept(rows, table, task):
                        written += files.write(
                            partition, batches, is_sorted=is_sorted, may_end=lambda *_: False
                        )
        except BaseException:
            files.discard(written)
            raise
        return written

    def _kept(
        self, rows: FileRows, table: Any, task: Any
    ) -> Iterator[tuple[Any, Iterator[pa.RecordBatch | pa.Table]]]:
        """Rows of a file that stay, by partition."""
        kept = (batch.filter(pa.array(~self.keys.are_in(batch))) for batch in rows.batches(task))
        if task.file.spec_id == table.spec().spec_id:
            yield KnownPartition.from_file(table, task.file), kept
            return
        for some in _together(kept):
            for partition, part in partitions_of(table, some):
                yield partition, iter([part])


def _together(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    size = 0
    for batch in batches:
        held.append(batch)
        size += batch.nbytes
        if size >= TOGETHER_BYTES:
            yield pa.Table.from_batches(held)
            held, size = [], 0
    if size:
        yield pa.Table.from_batches(held)


# What remains


def _check_refs(handle: TableHandle, table: Any, *, drop_tags: bool) -> None:
    """Refuse to leave rows in snapshots that are kept.

    Raises:
        OfflineStoreError: names the tags and branches.
    """
    refs = {name: ref.snapshot_ref_type.value for name, ref in sorted(table.refs().items())}
    branches = [name for name, kind in refs.items() if kind == "branch" and name != MAIN]
    tags = [name for name, kind in refs.items() if kind == "tag"]
    if branches or (tags and not drop_tags):
        kept = [f"branch `{name}`" for name in branches] + [f"tag `{name}`" for name in tags]
        raise OfflineStoreError(
            f"The Iceberg table {handle.name}: older versions are kept by {', '.join(kept)}, in "
            "which the rows to erase can be read. Nothing was changed. "
            + ("Remove the branches. " if branches else "")
            + (
                "Have the tags dropped too (`--drop-tags`), whose training sets can then not be "
                "built again, or erase without expiring."
                if tags
                else ""
            )
        )


def _expire(handle: TableHandle, clean: int, *, drop_tags: bool) -> ExpireReport:
    """Expire all snapshots before one, by its sequence number."""
    table = handle.load()
    if drop_tags:
        for info in snapshots_of(table):
            older = table.snapshot_by_id(info.snapshot_id).sequence_number < clean
            for name in info.tags if older else ():
                untag(handle, name)

    def choose(now: Any) -> tuple[list[Any], dict[int, str]]:
        named = {ref.snapshot_id: name for name, ref in now.refs().items()}
        older = sorted(
            (each for each in now.snapshots() if each.sequence_number < clean),
            key=lambda each: each.sequence_number,
        )
        kept = {
            each.snapshot_id: f"`{named[each.snapshot_id]}`"
            for each in older
            if each.snapshot_id in named
        }
        return [each for each in older if each.snapshot_id not in kept], kept

    return expire_chosen(handle, choose)
