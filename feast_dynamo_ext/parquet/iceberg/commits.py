"""Commits to Iceberg tables that happen once: never twice, never lost, with other writers about.

A commit has an id, which is kept in the summary of its snapshot, and, if whoever writes gave it,
in the table's ledger, which outlives snapshots::

    write files -> load the table -> is the id there? -> commit -> done
                        ^                                  |
                        +---- another writer was first, or no answer came

Whatever a catalog answered, the table says whether a commit is in it. Files of a writer that is
killed before are in no snapshot, so nobody reads them.
"""

from __future__ import annotations

import random
import time
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import (
    AccessDeniedError,
    ColumnNotFoundError,
    ColumnTypeError,
    ConfigError,
    CredentialsError,
    FeastDynamoError,
    NotCommittedError,
    OfflineStoreError,
    SourceReadError,
)
from feast_dynamo_ext.parquet.iceberg.catalog import (
    CatalogAddress,
    catalog_errors,
    opened,
    table_name,
)
from feast_dynamo_ext.parquet.iceberg.data_files import (
    DataFiles,
    in_order,
    partitions_of,
    table_columns,
    target_bytes,
)
from feast_dynamo_ext.parquet.iceberg.ledger import (
    COMMIT_ID,
    LEDGER,
    Ledger,
    carried,
    has_commit,
)
from feast_dynamo_ext.parquet.iceberg.snapshot_files import tidy_after_append
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout, first_sequence
from feast_dynamo_ext.parquet.writer import worthwhile_options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.parquet.iceberg.ledger import Progress


OPERATION = "feast-dynamo.operation"
"""Name of what a commit is for, in the summary of its snapshot."""

ATTEMPTS = 60
"""Where other writers come first; each loads the table anew."""

UNANSWERED = 5
"""Attempts that may end without an answer, or with an error that may pass."""

MOST_ROWS = 1 << 31
"""Of an append in batches, whose number nobody knows before."""

FIRST_WAIT_S, LONGEST_WAIT_S = 0.02, 2.0


REFUSED = (AccessDeniedError, CredentialsError, ConfigError)
"""Errors that no repetition mends."""


def pause(attempt: int) -> None:
    """Let other writers finish, longer after each attempt, and not all in step."""
    wait = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt, 10))
    time.sleep(wait * random.uniform(0.5, 1))  # noqa: S311 - no secret


def new_commit_id() -> str:
    """An id that no other commit has."""
    return uuid.uuid4().hex


@dataclass(frozen=True)
class Change:
    """What a commit does to a table.

    Attributes:
        added: descriptions of new data files.
        removed: plans of data files that no longer count, as `planned` gave them.
        summary: further entries of the snapshot's summary.
        is_rewrite: whether the rows stay the same, so that readers of changes may pass it over.
        is_kept: whether the commit is known by its id after its snapshot is expired, so that a
            later run may try it again; see `ledger`.
        progress: what else sources keep in the table, with their rows.
        check: called with the table that the commit is made to, before it is made; what it raises
            ends the commit.
    """

    added: Sequence[Any] = ()
    removed: Sequence[Any] = ()
    summary: Mapping[str, str] = field(default_factory=dict)
    is_rewrite: bool = False
    is_kept: bool = False
    progress: Sequence[Progress] = ()
    check: Callable[[Any], object] | None = None


@dataclass(frozen=True)
class TableHandle:
    """A table by its name, to be loaded as it is now.

    Attributes:
        address: its catalog.
        name: namespace and table.
        settings: how AWS is reached.
    """

    address: CatalogAddress
    name: str
    settings: AwsSettings

    @classmethod
    def from_source(cls, source: Any, config: RepoConfig) -> TableHandle:
        """The table of Feast's `IcebergSource`."""
        address = CatalogAddress.from_source(source, config)
        return cls(address, table_name(source, config), config.offline_store.aws())

    def load(self) -> Any:
        """The table, as pyiceberg has it.

        Raises: as `catalog.load_table`.
        """
        with catalog_errors(self.address, self.name):
            return opened(self.address, self.settings).load_table(self.name)

    def columns(self) -> pa.Schema:
        """Names and types of the columns that rows bring: all but the sequence."""
        table = self.load()
        layout = TableLayout.from_table(table)
        internal = layout.sequence if layout else None
        return pa.schema(
            [column for column in table_columns(table.schema()) if column.name != internal]
        )

    def state(self, source: str) -> Any:
        """How far a source's rows are in the table: what `append` was given last; None: nothing.

        After a rollback it is what it was at that version.

        Raises:
            SourceReadError: it is not known, as another engine rolled the table back.
        """
        return self.states().get(source)

    def states(self) -> Mapping[str, Any]:
        """`state` of all sources that have one.

        Raises: as `state`.
        """
        return Ledger.from_table(self.load()).states

    def append(
        self,
        rows: pa.Table | Iterable[pa.RecordBatch],
        commit_id: str | None = None,
        *progress: Progress,
        check: Callable[[Any], object] | None = None,
    ) -> Any:
        """Add rows, once.

        Args:
            rows: in the columns and types of the table, without its sequence column. Batches are
                written as they come, in bounded memory; of equal rows the later one wins.
            commit_id: the same for the same rows, whoever writes them and whenever; by default a
                new one. The newest 256 that a table was given are known, whatever expires.
            progress: what each source of the rows is to find in the table, instead of what it
                found there; committed with the rows, also where there are none. It needs a
                `commit_id`.
            check: of rows that are known by themselves: raises NotCommittedError where the table
                that it is given has some of them. Without progress their commit's id is kept with
                its snapshot alone, so that many of them do not drive out the ids of others.

        Returns:
            The table with them.

        Raises:
            NotCommittedError: as `commit`; of `check`; or the state of a source is another one by
                now.
            ConfigError: a state is no JSON, or they are too large.
            ColumnNotFoundError: the table lacks a column of the rows.
            ColumnTypeError: a null where the table requires a value.
            FeastDynamoError: as `commit`.
        """
        is_kept = commit_id is not None and (check is None or bool(progress))
        if progress and not is_kept:
            listed = ", ".join(f"`{each.source}`" for each in progress)
            raise ConfigError(
                f"The Iceberg table {self.name}: rows with the progress of {listed} "
                "lack a `commit_id`, by which they are known when they are written again."
            )
        table, commit_id = self.load(), commit_id or new_commit_id()
        if has_commit(table, commit_id, is_kept=is_kept):
            return table
        if is_kept:  # before rows are written for nothing
            Ledger.from_table(table).with_commit(table, commit_id, progress)
        files, written = self._written(table, rows)
        if not written and not progress:
            return table
        change = Change(written, is_kept=is_kept, progress=progress, check=check)
        table = self.commit_files(files, change, commit_id)
        tidy_after_append(table, self.settings)
        return table

    def _written(
        self, table: Any, rows: pa.Table | Iterable[pa.RecordBatch]
    ) -> tuple[DataFiles, list[Any]]:
        """New files of rows; none of them remains where one fails."""
        layout = TableLayout.from_table(table)
        of_rows: dict[str, Any] = {}

        def options(_: Any) -> dict[str, Any]:
            return of_rows

        files, written = DataFiles(table, self.settings, options), []
        if isinstance(rows, pa.Table):
            most, chunks = rows.num_rows, iter([rows])
        else:
            most, chunks = MOST_ROWS, _chunks(rows, target_bytes(table))
        first, done = first_sequence(table.metadata.last_sequence_number, most), 0
        try:
            for chunk in chunks:
                if not chunk.num_rows:
                    continue
                _check_count(done + chunk.num_rows, most)
                complete = _complete(table, chunk)
                _check_required(table, complete)
                if layout is not None:
                    numbers = np.arange(chunk.num_rows, dtype=np.int64) + (first + done)
                    named = complete.append_column(layout.sequence, pa.array(numbers))
                    complete = in_order(named, layout)
                # By all rows: a partition's may be few, and trying each would take as long as
                # writing it.
                of_rows = of_rows or worthwhile_options(complete)
                with catalog_errors(self.address, self.name):
                    for partition, part in partitions_of(table, complete):
                        written += files.write(partition, [part], is_sorted=layout is not None)
                done += chunk.num_rows
        except BaseException:
            files.discard(written)
            raise
        return files, written

    def commit_files(self, files: DataFiles, change: Change, commit_id: str) -> Any:
        """`commit`; where the change is surely not in the table, its new files are deleted."""
        try:
            return self.commit(change, commit_id)
        except (NotCommittedError, *REFUSED):
            files.discard(change.added)
            raise

    def commit(self, change: Change, commit_id: str) -> Any:
        """Make a change once.

        Returns:
            The table with it.

        Raises:
            NotCommittedError: it is surely not in the table: others kept coming first, or have
                replaced a file that it removes, or have deleted rows of it.
            FeastDynamoError: it may be in the table; the same id, tried again, finds out.
        """
        return self.attempt(
            lambda table: _commit(table, change, commit_id), commit_id, is_kept=change.is_kept
        )

    def _known(self, unanswered: int) -> Any:
        """The table as it is now.

        Raises:
            SourceReadError: it cannot be loaded, and a commit may be in it.
            FeastDynamoError: it cannot be loaded, and none is.
        """
        try:
            return self.load()
        except FeastDynamoError as error:
            if not unanswered:
                raise
            raise self._unknown(error, "loaded to see whether it is there") from error

    def _unknown(self, error: FeastDynamoError, what: str) -> SourceReadError:
        return SourceReadError(
            f"The Iceberg table {self.name}: a commit got no answer, and the table cannot be "
            f"{what}: {error} Look at `feast-dynamo table history` before you run it again: its "
            "rows may be in the table."
        )

    def attempt(
        self, work: Callable[[Any], None], commit_id: str, *, is_kept: bool = False
    ) -> Any:
        """Work on the table as it is now, until its commit is in it.

        Args:
            work: is given the table; commits with the id in the summary.
            commit_id: the id.
            is_kept: whether the ledger has it.

        Raises: as `commit`.
        """
        from pyiceberg.exceptions import CommitFailedException, ValidationException

        failure: Exception = NotCommittedError("nothing was tried")
        unanswered = 0
        for attempt in range(ATTEMPTS):
            table = self._known(unanswered)
            if has_commit(table, commit_id, is_kept=is_kept):
                return table
            try:
                with catalog_errors(self.address, self.name):
                    try:
                        work(table)
                    except (CommitFailedException, ValidationException) as error:
                        failure = error  # surely not committed
                    else:
                        return table
            except NotCommittedError:
                raise
            except REFUSED as error:
                if unanswered:  # what was not answered may still be at work
                    raise self._unknown(error, "changed any more") from error
                # Clients repeat what is not answered: of two requests one may have been made.
                table = self._known(1)
                if has_commit(table, commit_id, is_kept=is_kept):
                    return table
                raise
            except FeastDynamoError as error:
                unanswered += 1
                # At once: after many more commits of others its snapshot may be expired.
                table = self._known(unanswered)
                if has_commit(table, commit_id, is_kept=is_kept):
                    return table
                if unanswered == UNANSWERED:
                    raise
                failure = error
            pause(attempt)
        raise NotCommittedError(
            f"The Iceberg table {self.name}: other writers came first {ATTEMPTS} times, the last "
            f"with {type(failure).__name__}: {' '.join(str(failure).split())}. Nothing of it is "
            "in the table. Run it again when fewer are at work."
        ) from failure


def _chunks(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.Table]:
    """Batches of so many bytes together, which are sorted and written at once."""
    held: list[pa.RecordBatch] = []
    held_bytes = 0
    for batch in batches:
        if held and (held_bytes >= size or batch.schema != held[0].schema):
            yield pa.Table.from_batches(held)
            held, held_bytes = [], 0
        held.append(batch)
        held_bytes += batch.nbytes
    if held:
        yield pa.Table.from_batches(held)


def _check_count(rows: int, most: int) -> None:
    """Refuse more rows than there are numbers for.

    Raises:
        OfflineStoreError: says how many there may be.
    """
    if rows > most:
        raise OfflineStoreError(
            f"An append in batches takes at most {most:,} rows. Append them in pieces."
        )


def _complete(table: Any, rows: pa.Table) -> pa.Table:
    """Rows with all columns of a table but its sequence; those that they lack are null.

    Others may have added columns to the table since the rows were made.

    Raises:
        ColumnNotFoundError: the table lacks a column of the rows.
    """
    layout = TableLayout.from_table(table)
    columns = table_columns(table.schema())
    unknown = [name for name in rows.column_names if name not in columns.names]
    if unknown:
        raise ColumnNotFoundError(
            f"The Iceberg table {'.'.join(table.name())} has no columns {unknown}; it has "
            f"{columns.names}. Leave them out, or add them to the table."
        )
    for column in columns:
        if column.name not in rows.column_names and not (
            layout and column.name == layout.sequence
        ):
            rows = rows.append_column(column.name, pa.nulls(len(rows), column.type))
    return rows


def _check_required(table: Any, rows: pa.Table) -> None:
    """Refuse nulls in columns that a table requires values in.

    Raises:
        ColumnTypeError: names the column.
    """
    for column in table.schema().fields:
        if column.name not in rows.column_names:
            continue  # the sequence
        if column.required and rows.column(column.name).null_count:
            raise ColumnTypeError(
                f"The Iceberg table {'.'.join(table.name())} requires a value of "
                f"`{column.name}` in each row; {rows.column(column.name).null_count:,} of the "
                "rows to append have none. Drop or fill them."
            )


def planned(table: Any) -> dict[str, Any]:
    """Pyiceberg's plans of the data files of a table, by the files' paths."""
    return {task.file.file_path: task for task in table.scan().plan_files()}


def _commit(table: Any, change: Change, commit_id: str) -> None:
    from feast_dynamo_ext.parquet.iceberg.producers import (
        LightTransaction,
        ReplaceFiles,
        delete_unlisted,
    )

    if change.check is not None:
        change.check(table)
    entries, summary = {}, {COMMIT_ID: commit_id, **change.summary, **carried(table)}
    if change.is_kept:
        ledger = Ledger.from_table(table).with_commit(table, commit_id, change.progress)
        entries = {LEDGER: ledger.to_text()}
        summary |= ledger.to_summary()
    if change.removed:
        _check_unchanged(planned(table), change.removed)
    with LightTransaction(table) as transaction:
        if entries:
            transaction.set_properties(entries)
        update = transaction.update_snapshot(snapshot_properties=summary)
        producer: Any
        if change.is_rewrite:
            producer = ReplaceFiles.within(transaction, summary)
        else:
            producer = update.overwrite() if change.removed else update.merge_append()
        for task in change.removed:
            producer.delete_data_file(task.file)
        for file in change.added:
            producer.append_data_file(file)
        producer.commit()
    delete_unlisted(table, producer)


def _check_unchanged(there: Mapping[str, Any], removed: Sequence[Any]) -> None:
    """Refuse to replace files that others have replaced, or of which they deleted rows.

    Raises:
        NotCommittedError: counts them.
    """

    def is_changed(task: Any) -> bool:
        now = there.get(task.file.file_path)
        return now is None or _deletes(now) != _deletes(task)

    changed = sum(map(is_changed, removed))
    if changed:
        raise NotCommittedError(
            f"{changed:,} of {len(removed):,} data files to replace were replaced by another "
            "writer meanwhile, or rows of them deleted. Nothing was changed; run it again."
        )


def _deletes(task: Any) -> set[str]:
    return {file.file_path for file in task.delete_files}


def clean_manifests(handle: TableHandle, properties: Mapping[str, str] | None = None) -> int:
    """Write the manifests of a table anew, without files that do not count.

    Manifests keep the statistics of removed files, and files of deleted rows that apply to none.

    Args:
        handle: the table.
        properties: of the table, set in the same commit.

    Returns:
        The sequence number of the first snapshot without them.

    Raises: as `TableHandle.commit`.
    """
    from feast_dynamo_ext.parquet.iceberg.producers import (
        LightTransaction,
        RewriteManifests,
        delete_unlisted,
    )

    commit_id = new_commit_id()

    def work(table: Any) -> None:
        if table.current_snapshot() is None:
            return
        live = {file.file_path for task in planned(table).values() for file in task.delete_files}
        summary = {OPERATION: "clean manifests", COMMIT_ID: commit_id, **carried(table)}
        with LightTransaction(table) as transaction:
            if properties:
                transaction.set_properties(dict(properties))
            producer = RewriteManifests.within(transaction, summary, live)
            producer.commit()
        delete_unlisted(table, producer)

    table = handle.attempt(work, commit_id)
    found = [
        each for each in table.snapshots() if (each.summary or {}).get(COMMIT_ID) == commit_id
    ]
    return int(found[0].sequence_number) if found else 0
