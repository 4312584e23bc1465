"""The history of a captured table, and the table of what did not fit: how they are written.

An export is one commit of the history. Items that do not fit their columns go to the quarantine
table first, in a commit of the same id; then the rows are committed together with how far capture
is. A run that is killed between is repeated: both tables know the id, so nothing is there twice::

    data files -> rows ---------------------> files of the history --+
               -> items that do not fit -> commit of the quarantine -+-> commit of the history

Changes of a stream that are delivered at least once, in batches that may be cut otherwise the next
time, are known by the ids that the stream gave them: what the tables have already is left out.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.capture.erasure.erased_keys import ERASED_SUFFIX, ErasedKeys
from feast_dynamo_ext.capture.exports.windows import CaptureState
from feast_dynamo_ext.capture.stream.stream_positions import StreamPositions
from feast_dynamo_ext.capture.values.change_rows import QUARANTINE, Converted, joined
from feast_dynamo_ext.columns import CHANGE_ID, WRITTEN
from feast_dynamo_ext.errors import CaptureError, NotCommittedError, SourceNotFoundError
from feast_dynamo_ext.parquet.iceberg.catalog import catalog_errors, opened
from feast_dynamo_ext.parquet.iceberg.commits import TableHandle
from feast_dynamo_ext.parquet.iceberg.data_files import table_columns
from feast_dynamo_ext.parquet.iceberg.ledger import Ledger, Progress
from feast_dynamo_ext.parquet.iceberg.table_schema import TableLayout, create_table
from feast_dynamo_ext.parquet.iceberg.view_table import table_type

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource


QUARANTINE_SUFFIX = "_quarantine"
"""How the name of a quarantine table ends."""

CAPTURE = "capture"
"""Under which a history table keeps how far capture is."""

ERASED_STATE = "erased"
"""Under which a quarantine table keeps when somebody was erased from it last."""


@dataclass
class Counts:
    """Figures of a commit; they grow while it is made.

    Attributes:
        records: that were read.
        rows: of the history; an update that moves its event time makes two.
        quarantined: records that do not fit.
        erased: rows and records of who was erased, which are left out.
    """

    records: int = 0
    rows: int = 0
    quarantined: int = 0
    erased: int = 0


@dataclass(frozen=True)
class CapturedHistory:
    """The history of a source, and its quarantine.

    Attributes:
        source: the source.
        handle: of its history table.
        quarantine: of the table of what does not fit.
    """

    source: DynamoDBTableSource
    handle: TableHandle
    quarantine: TableHandle

    @classmethod
    def from_source(cls, source: DynamoDBTableSource, config: RepoConfig) -> CapturedHistory:
        """That of a source; it need not be there yet."""
        handle = TableHandle.from_source(source, config)
        return cls(source, handle, replace(handle, name=f"{handle.name}{QUARANTINE_SUFFIX}"))

    @property
    def erased(self) -> TableHandle:
        """Of the table of who was erased; it need not be there."""
        return replace(self.handle, name=f"{self.handle.name}{ERASED_SUFFIX}")

    def erased_keys(self) -> ErasedKeys | None:
        """Who was erased; to be read after the state that a commit goes on from."""
        return ErasedKeys.read(self.erased, self.handle, self.source)

    def state(self) -> CaptureState | None:
        """How far capture is; None before the first.

        Raises:
            SourceNotFoundError: there is no history table.
        """
        found = self.handle.state(CAPTURE)
        return None if found is None else CaptureState.from_json(found)

    def stream(self) -> StreamPositions:
        """How far the table's stream is in the history.

        Raises:
            SourceNotFoundError: there is no history table.
        """
        return StreamPositions.from_states(self.handle.states())

    def keep(self, before: CaptureState | None, after: CaptureState, commit_id: str) -> None:
        """Note what is about to be done, without rows.

        Raises:
            CaptureError: another run captures the source.
        """
        self._append(iter(()), before, after, commit_id)

    def commit(
        self,
        parts: Iterable[Converted],
        expected: int,
        before: CaptureState | None,
        after: CaptureState,
        commit_id: str,
    ) -> Counts:
        """Make what was converted count, once.

        Args:
            parts: rows, and what does not fit.
            expected: how many records there must be.
            before: how far capture is.
            after: how far it is with these.
            commit_id: the same whenever the same records are captured.

        Returns:
            What was written; no records where it was committed before.

        Raises:
            CaptureError: there were other than the expected records, or another run captures the
                source. Nothing of it is in the history.
            AwsError: AWS refused.
        """
        counts = Counts()
        # An erasure from now on changes the state, and this is refused.
        erased, last_erased = self.erased_keys(), self.last_erased()

        def rows() -> Iterator[pa.RecordBatch]:
            quarantined = []
            for converted in parts:
                part, gone = erased.without(converted) if erased else (converted, 0)
                counts.records += part.records
                counts.erased += gone
                counts.rows += part.rows.num_rows
                counts.quarantined += part.quarantine.num_rows
                if part.quarantine.num_rows:
                    quarantined.append(part.quarantine)
                if part.rows.num_rows:
                    yield part.rows
            if counts.records != expected:
                raise CaptureError(
                    f"Source `{self.source.name}`: {counts.records:,} records were read, but the "
                    f"export's manifest counts {expected:,}. Nothing of it is in the history. "
                    "Export once more."
                )
            if quarantined:
                table = pa.Table.from_batches(quarantined, QUARANTINE)
                self._put_aside(table, commit_id, last_erased)

        self._append(rows(), before, after, commit_id)
        return counts

    def add(
        self,
        rows: pa.Table,
        quarantined: pa.Table,
        before: CaptureState | None,
        after: CaptureState | None,
        commit_id: str,
    ) -> None:
        """Make rows in memory, and what does not fit, count once; see `commit`."""
        erased, last_erased = self.erased_keys(), self.last_erased()
        found = Known(frozenset(), None, None, erased=erased)
        rows, quarantined, _ = found.without_erased(rows, quarantined)
        if quarantined.num_rows:
            self._put_aside(quarantined, commit_id, last_erased)
        self._append(iter(rows.to_batches()), before, after, commit_id)

    # Changes of a stream

    def add_changes(self, changes: Converted) -> Counts:
        """Make changes of a stream count once, whichever of them were delivered before.

        Args:
            changes: with the ids of the stream; see `RecordReader.converted`.

        Returns:
            What was written: rows and records that were not there.

        Raises:
            NotCommittedError: others keep changing a table; what is there stays.
            OfflineStoreError: a table cannot be read. AwsError: AWS refused.
        """
        rows = pa.Table.from_batches([changes.rows])
        misfits = pa.Table.from_batches([changes.quarantine], QUARANTINE)
        look = Look.from_changes(rows, misfits)
        if look is None:
            return Counts(changes.records)
        while True:
            known = self.known(look)
            new, bad = (without(known.ids, part) for part in (rows, misfits))
            new, bad, erased = known.without_erased(new, bad)
            try:
                self.add_misfits(bad, known, look)
                if new.num_rows:
                    self.handle.append(new, _commit_id(new), check=known.check_of(look))
            except NotCommittedError:
                # The same changes were committed by another, who was thought to be gone.
                if not known.is_outdated:
                    raise
            else:
                return Counts(changes.records, new.num_rows, bad.num_rows, erased)

    def add_misfits(self, misfits: pa.Table, known: Known, look: Look) -> None:
        """Put changes of a stream that do not fit into quarantine, once.

        Raises:
            NotCommittedError: another brought some of them since `known` was looked up.
        """
        if misfits.num_rows:
            check = known.check_of(look, is_quarantine=True)
            self._quarantine().append(misfits, _commit_id(misfits), check=check)

    def known(self, look: Look) -> Known:
        """The changes of a stream that the history or the quarantine has already.

        Raises:
            SourceNotFoundError: there is no history table.
            OfflineStoreError: one cannot be read. AwsError: AWS refused.
        """
        table = self.handle.load()
        with catalog_errors(self.handle.address, self.handle.name):
            found = look.ids_in(table)
        try:
            bad = self.quarantine.load()
        except SourceNotFoundError:
            erased = (_last_erased(table), None)
            return Known(found, _version(table), None, erased, self.erased_keys())
        with catalog_errors(self.quarantine.address, self.quarantine.name):
            found |= look.ids_in(bad)
        last = (_last_erased(table), _last_erased(bad))
        return Known(found, _version(table), _version(bad), last, self.erased_keys())

    def check_key(self, columns: Sequence[str], key: Sequence[tuple[str, str]] = ()) -> None:
        """Refuse a table that was made anew with another key: its items are not these.

        Args:
            columns: of the table's key attributes, the partition key first.
            key: names and types of these attributes; none where DynamoDB was not asked.

        Raises:
            CaptureError: the history is of another key; says both.
            SourceNotFoundError: there is no history table.
        """
        of_history = TableLayout.item_keys(self.handle.load())
        state = self.state()
        before, renamed = "", ""
        if state is not None and state.keys and key and tuple(key) != state.keys:
            before = _key(state.keys)
        elif of_history != tuple(columns):
            before, renamed = ", ".join(of_history), ", or columns of its key were renamed"
        if before:
            raise CaptureError(
                f"Source `{self.source.name}`: table {self.source.table} has the key "
                f"{_key(key) or ', '.join(columns)}, but its history is of the key {before}: the "
                f"table was made anew with another key{renamed}. Declare a source of another "
                "name, with another `history`."
            )

    def evolve(self, wanted: pa.Schema) -> None:
        """Give the history table the columns and types of a declaration that was changed.

        Columns are added, and types made wider; what is not declared any more stays, and is null
        in new rows.

        Args:
            wanted: names and types, as `CapturedColumns.history_schema`.

        Raises:
            CaptureError: a type that does not hold what is there; names the column.
            NotCommittedError: others keep changing the table.
        """
        table = self.handle.load()
        new, wider = changed_columns(self.source.name, table, wanted)
        if not new and not wider:
            return
        from pyiceberg.exceptions import CommitFailedException
        from pyiceberg.io.pyarrow import _pyarrow_to_schema_without_ids

        kinds = _pyarrow_to_schema_without_ids(pa.schema([*new, *wider]))
        with catalog_errors(self.handle.address, self.handle.name):
            try:
                with table.update_schema() as update:
                    for column in new:
                        update.add_column(column.name, kinds.find_type(column.name))
                    for column in wider:
                        update.update_column(column.name, kinds.find_type(column.name))
            except CommitFailedException:
                # Another run did the same at the same time, or the next one does.
                if self.handle.load().schema() == table.schema():
                    raise

    def _append(
        self,
        rows: Iterator[pa.RecordBatch],
        before: CaptureState | None,
        after: CaptureState | None,
        commit_id: str,
    ) -> None:
        old, new = (None if each is None else each.to_json() for each in (before, after))
        try:
            self.handle.append(rows, commit_id, Progress(CAPTURE, old, new))
        except NotCommittedError as error:
            if self.state() == before:
                raise
            raise CaptureError(
                f"Source `{self.source.name}`: another run captures it at the moment, and came "
                "first. Nothing is lost, and nothing is there twice; let that run end."
            ) from error

    def last_erased(self) -> str | None:
        """When somebody was erased from the quarantine last, ISO 8601; None for never."""
        try:
            found: str | None = self.quarantine.state(ERASED_STATE)
        except SourceNotFoundError:
            return None
        return found

    def _put_aside(self, records: pa.Table, commit_id: str, last_erased: str | None) -> None:
        """Add records to the quarantine, unless somebody was erased since they were looked at."""
        try:
            self._quarantine().append(
                records, commit_id, Progress(ERASED_STATE, last_erased, last_erased)
            )
        except NotCommittedError as error:
            if self.last_erased() == last_erased:
                raise
            raise CaptureError(
                f"Source `{self.source.name}`: somebody is erased from it at the moment. Nothing "
                "was added; run it again."
            ) from error

    def _quarantine(self) -> TableHandle:
        """The quarantine table, made where there is none."""
        from pyiceberg.exceptions import TableAlreadyExistsError

        handle = self.quarantine
        try:
            table = handle.load()
            if CHANGE_ID not in table.schema().column_names:
                self._identify(table)
        except SourceNotFoundError:
            layout = TableLayout(("origin",), WRITTEN, None, "month")
            with catalog_errors(handle.address, handle.name):
                catalog = opened(handle.address, handle.settings)
                # Another process may make it at the same time.
                with contextlib.suppress(TableAlreadyExistsError):
                    create_table(catalog, handle.name, QUARANTINE, layout)
        return handle

    def _identify(self, table: Any) -> None:
        """Give a quarantine table that was made before streams were captured its last column."""
        from pyiceberg.exceptions import CommitFailedException
        from pyiceberg.types import StringType

        handle = self.quarantine
        with catalog_errors(handle.address, handle.name):
            try:
                with table.update_schema() as update:
                    update.add_column(CHANGE_ID, StringType())
            except CommitFailedException:
                if CHANGE_ID not in handle.load().schema().column_names:
                    raise

    def rows(self) -> int:
        """How many rows the history has, tombstones included.

        Raises:
            SourceNotFoundError: there is no history table.
        """
        return _rows_of(self.handle)

    def quarantined(self) -> int:
        """How many records are in quarantine."""
        try:
            return _rows_of(self.quarantine)
        except SourceNotFoundError:
            return 0


@dataclass(frozen=True)
class Look:
    """Which changes of a stream are looked for in a table.

    Attributes:
        ids: theirs.
        first: when the first of them was written.
        last: when the last was.
    """

    ids: pa.Array
    first: dt.datetime
    last: dt.datetime

    @classmethod
    def from_changes(cls, *parts: pa.Table) -> Look | None:
        """For rows and quarantined records; None where there are none with an id."""
        given = pa.concat_tables([part.select([CHANGE_ID, WRITTEN]) for part in parts])
        given = given.filter(given[CHANGE_ID].is_valid())
        if not given.num_rows:
            return None
        limits = pc.min_max(given[WRITTEN])
        ids = given[CHANGE_ID].unique()
        return cls(ids, limits["min"].as_py(), limits["max"].as_py())

    def ids_in(self, table: Any) -> frozenset[str]:
        """Those that a table has: files that were written at other times are left out."""
        if CHANGE_ID not in table.schema().column_names:
            return frozenset()
        within = (
            f"{WRITTEN} >= '{self.first.isoformat()}' AND {WRITTEN} <= '{self.last.isoformat()}' "
            f"AND {CHANGE_ID} IS NOT NULL"
        )
        found: set[str] = set()
        for batch in table.scan(within, (CHANGE_ID,)).to_arrow_batch_reader():
            ids = batch.column(0).cast(pa.string())
            found.update(ids.filter(pc.is_in(ids, value_set=self.ids)).to_pylist())
        return frozenset(found)


@dataclass
class Known:
    """Changes of a stream that are in the history or the quarantine.

    Attributes:
        ids: theirs.
        history: the version of the history table that was looked at.
        quarantine: that of the quarantine table; None where there was none.
        last_erased: when somebody was erased from the two last.
        erased: who was erased.
        is_outdated: whether more of them have come since, or somebody was erased.
    """

    ids: frozenset[str]
    history: int | None
    quarantine: int | None
    last_erased: tuple[str | None, str | None] = (None, None)
    erased: ErasedKeys | None = None
    is_outdated: bool = False

    def without_erased(self, rows: pa.Table, misfits: pa.Table) -> tuple[pa.Table, pa.Table, int]:
        """Rows and records without those of who was erased, and how many these are."""
        if self.erased is None:
            return rows, misfits, 0
        part = Converted(
            joined(rows.to_batches(), rows.schema), joined(misfits.to_batches(), QUARANTINE), 0
        )
        kept, gone = self.erased.without(part)
        tables = [pa.Table.from_batches([each]) for each in (kept.rows, kept.quarantine)]
        return tables[0], tables[1], gone

    def check_of(self, look: Look, *, is_quarantine: bool = False) -> Callable[[Any], None]:
        """What refuses a commit to a table that has more of the changes by now."""
        version = self.quarantine if is_quarantine else self.history
        last_erased = self.last_erased[is_quarantine]

        def check(table: Any) -> None:
            if _last_erased(table) != last_erased:
                self.is_outdated = True
                raise NotCommittedError(
                    f"The Iceberg table {'.'.join(table.name())}: somebody was erased from it "
                    "since the changes were looked at. Nothing of them is in the table."
                )
            if _version(table) == version or look.ids_in(table) <= self.ids:
                return
            self.is_outdated = True
            raise NotCommittedError(
                f"The Iceberg table {'.'.join(table.name())}: another commit brought the same "
                "changes. Nothing of this one is in the table."
            )

        return check


def _key(keys: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in keys)


def _last_erased(table: Any) -> str | None:
    found: str | None = Ledger.from_table(table).states.get(ERASED_STATE)
    return found


def _version(table: Any) -> int | None:
    found: int | None = table.metadata.current_snapshot_id
    return found


def without(known: frozenset[str], part: pa.Table) -> pa.Table:
    """Rows of changes that are not known."""
    ids = part[CHANGE_ID]
    return part.filter(pc.invert(pc.is_in(ids, value_set=pa.array(sorted(known), pa.string()))))


def _commit_id(part: pa.Table) -> str:
    ids = sorted(part[CHANGE_ID].unique().to_pylist())
    return f"changes/{hashlib.sha256(chr(10).join(ids).encode()).hexdigest()}"


def changed_columns(
    source: str, table: Any, wanted: pa.Schema
) -> tuple[list[pa.Field], list[pa.Field]]:
    """Columns of a declaration that a history table has not, and those that get a wider type.

    Args:
        source: name of the source.
        table: pyiceberg's.
        wanted: names and types, as `CapturedColumns.history_schema`.

    Raises:
        CaptureError: a type that does not hold what is there; names the column.
    """
    there = {column.name: column.type for column in table_columns(table.schema())}
    new = [column for column in wanted if column.name not in there]
    wider = [
        column
        for column in wanted
        if column.name in there and not _same(there[column.name], column.type)
    ]
    for column in wider:
        if (there[column.name], column.type) not in WIDENED and not _is_wider_decimal(
            there[column.name], column.type
        ):
            raise CaptureError(
                f"Source `{source}`: `schema` declares `{column.name}` as "
                f"{column.type}, but its history has it as {there[column.name]}, which no "
                f"value of it fits for certain. Declare it as it was; or give the new column "
                "another name: "
                f"`Field(..., tags={{'attribute': '{column.name}'}})`."
            )
    return new, wider


WIDENED = {(pa.int32(), pa.int64()), (pa.float32(), pa.float64())}
"""Types that Iceberg makes wider, and what of."""


def _same(there: pa.DataType, wanted: pa.DataType) -> bool:
    return bool(table_type(wanted) == table_type(there))


def _is_wider_decimal(there: pa.DataType, wanted: pa.DataType) -> bool:
    if not (pa.types.is_decimal(there) and pa.types.is_decimal(wanted)):
        return False
    return bool(there.scale == wanted.scale and there.precision <= wanted.precision)


def _rows_of(handle: TableHandle) -> int:
    snapshot = handle.load().current_snapshot()
    summary: Any = snapshot.summary if snapshot else None
    return int((summary or {}).get("total-records", 0))
