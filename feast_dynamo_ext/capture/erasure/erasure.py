"""Erases somebody from all that was captured of a table: in an order that can be repeated.

::

    who it is is noted     from now on no export, stream or retry brings them back
    the state is marked    what is being captured since before is refused
    online rows            deleted, while nothing materializes the views
    history, quarantine    files written anew, older versions expired, their files deleted
    raw exports            deleted, those that were named and are captured
    search                 of all files that are left

A run that ends between is repeated, and does what is left.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from feast_dynamo_ext import aws
from feast_dynamo_ext.capture.erasure import raw_exports
from feast_dynamo_ext.capture.erasure.erased_keys import note_erased
from feast_dynamo_ext.capture.erasure.person import PersonRecords, PersonRows
from feast_dynamo_ext.capture.history import CAPTURE, ERASED_STATE
from feast_dynamo_ext.errors import (
    AccessDeniedError,
    CaptureError,
    NotCommittedError,
    OfflineStoreError,
    ResourceNotFoundError,
    SourceNotFoundError,
)
from feast_dynamo_ext.parquet.iceberg.commits import ATTEMPTS, new_commit_id, pause
from feast_dynamo_ext.parquet.iceberg.erase import Keys, erase, rows_of
from feast_dynamo_ext.parquet.iceberg.erase_search import Trace, remove_unlisted, search
from feast_dynamo_ext.parquet.iceberg.ledger import Progress
from feast_dynamo_ext.parquet.iceberg.snapshots import MAIN, snapshots_of
from feast_dynamo_ext.timestamps import EPOCH, MICROSECOND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from feast_dynamo_ext.aws import AwsSettings
    from feast_dynamo_ext.capture.erasure.erase_online import OnlineRows, OnlineViews
    from feast_dynamo_ext.capture.erasure.person import Person
    from feast_dynamo_ext.capture.erasure.raw_exports import RawExport
    from feast_dynamo_ext.capture.history import CapturedHistory
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle


SETTLED = dt.timedelta(minutes=15)
"""A file that no version of the table names may be a writer's that is at work; an older one is
not."""

Say = Callable[[str, int, int], object]
"""Called with what is worked on, how much of it is done, and of how much."""

BEYOND = (
    "point-in-time recovery of the table keeps its items for 35 days after they were deleted",
    "the table's stream keeps its changes for 24 hours",
    "backups and copies of the table, and of the history, that others made",
    "deleted objects, where the bucket keeps versions, and parts of uploads that were never "
    "completed, until its lifecycle rules remove them",
    "models that were trained on them, and training sets and reports elsewhere",
    "answers of the online store that services keep, and logged features",
)
"""What no command of this package reaches, in words."""


@dataclass(frozen=True)
class ErasePlan:
    """What would be erased.

    Attributes:
        source: name of the source.
        person: whose it is, in words.
        rows: of the history.
        quarantined: records in quarantine.
        items_in_table: that the DynamoDB table has of them; None where that is not known.
        online: their rows in the online store.
        exports: raw exports that hold them.
        tags: of the history and the quarantine, whose versions go.
        versions: older versions of both, which go.
    """

    source: str
    person: str
    rows: int
    quarantined: int
    items_in_table: int | None
    online: tuple[OnlineRows, ...]
    exports: tuple[RawExport, ...]
    tags: tuple[str, ...]
    versions: int

    @property
    def has_nothing(self) -> bool:
        """Whether nothing of them was found, nor anything that may hold them unseen."""
        return not (
            self.rows or self.quarantined or self.items_in_table or self.online or self.exports
        )


@dataclass(frozen=True)
class EraseResult:
    """What was erased, and what is left.

    Attributes:
        plan: what was meant.
        at: from when on what is captured is somebody anew.
        rows: of the history that were erased.
        quarantined: records in quarantine that were.
        online: what became of the rows in the online store.
        removed: folders of raw exports that were deleted.
        kept: raw exports that hold them still.
        expired: versions that are gone.
        searched: files that were looked through in the end.
        orphans: files that no version named, and that were deleted as they held rows of them.
        traces: files that hold something of them still: nothing, where all is done.
    """

    plan: ErasePlan
    at: dt.datetime
    rows: int
    quarantined: int
    online: tuple[OnlineRows, ...]
    removed: tuple[str, ...]
    kept: tuple[RawExport, ...]
    expired: int
    searched: int
    orphans: tuple[str, ...]
    traces: tuple[Trace, ...]


@dataclass(frozen=True)
class Erasure:
    """Erases one person from one source.

    Attributes:
        history: of the source.
        person: who.
        online: the views over the source; None where the online store is another.
        settings: how S3 is reached.
        places: folders with raw exports, beside those that the history knows.
        arn: the table's; None where there is none of the name now, or it may not be seen: then
            exports that the history does not know stay, as they may be another table's.
        say: told how far it is.
    """

    history: CapturedHistory
    person: Person
    online: OnlineViews | None
    settings: AwsSettings
    places: Sequence[str] = ()
    arn: str | None = None
    say: Say = field(default=lambda _what, _done, _total: None)

    def plan(self, client: Any = None) -> ErasePlan:
        """What there is; nothing is changed.

        Args:
            client: boto3's of DynamoDB, to count items that the table has; None: not counted.

        Raises:
            OfflineStoreError: a branch keeps older versions of a table; or it cannot be read.
            AwsError: AWS refused.
        """
        refs = [self._refs(handle) for handle in self._tables()]
        rows = self.rows()
        return ErasePlan(
            self.history.source.name,
            self.person.words(),
            self._count(self.history.handle, rows),
            self._count(self.history.quarantine, PersonRecords(self.person)),
            None if client is None else items_in_table(client, self.history, self.person),
            (*self._found(rows),),
            tuple(self._exports()),
            tuple(f"{name} of {table}" for table, tags, _ in refs for name in tags),
            sum(versions for *_, versions in refs),
        )

    def run(
        self,
        plan: ErasePlan,
        *,
        remove_exports: bool = True,
        settled: dt.timedelta = SETTLED,
        now: dt.datetime | None = None,
    ) -> EraseResult:
        """Erase what was planned, and what came since.

        Args:
            plan: as it was shown.
            remove_exports: delete the raw exports that the plan names.
            settled: files that no version names and that are as old as this are no writer's.
            now: what was written before is erased; None for the clock's.

        Raises:
            AlreadyRunningError: a run that materializes one of the views does not end.
            NotCommittedError: others kept changing the table. Run it again.
            AwsError: AWS refused. OfflineStoreError: a table cannot be read or changed.
        """
        at = now or dt.datetime.now(dt.timezone.utc)
        note_erased(self.history.erased, self.person, at)
        self._fence(at)
        with contextlib.ExitStack() as stack:
            if self.online is not None:
                stack.enter_context(self.online.held())
            rows = self.rows()
            online = self._found(rows)
            self._delete_online(at)
            of_history = self._erased(self.history.handle, rows)
            of_quarantine = self._erased(self.history.quarantine, PersonRecords(self.person))
            # Once more: a stream may have written what it had read before.
            later = self._delete_online(at)
            shared = {} if self.online is None else self.online.shared(self.history.handle)
        removed, kept = [], []
        for export in plan.exports:
            if remove_exports and not export.kept:
                raw_exports.remove(export, self.settings)
                removed.append(export.folder)
            else:
                kept.append(export)
        searched, orphans, traces = self._search(rows, settled)
        return EraseResult(
            plan,
            at,
            of_history[0],
            of_quarantine[0],
            tuple(
                replace(each, later=later.get(each.view, 0), shared=shared.get(each.view, 0))
                for each in online
            ),
            tuple(removed),
            tuple(kept),
            of_history[1] + of_quarantine[1],
            searched,
            orphans,
            traces,
        )

    def is_begun(self) -> bool:
        """Whether they were erased before, perhaps not to the end.

        Raises:
            OfflineStoreError: who was erased cannot be read. AwsError: AWS refused.
        """
        erased = self.history.erased_keys()
        return erased is not None and erased.has(self.person)

    # Whose rows

    def rows(self) -> PersonRows:
        """Their rows: where another attribute than the key says it, by their items too."""
        mine = PersonRows(self.person)
        if self.person.has_partition_key:
            return mine
        keys = list(self.person.items)
        found = [
            pa.Table.from_batches([batch]).group_by(keys).aggregate([])
            for batch in rows_of(self.history.handle, mine, keys)
        ]
        if not found:
            return mine
        items = pa.concat_tables(found).group_by(keys).aggregate([])
        return PersonRows(self.person, Keys(items))

    def _found(self, rows: PersonRows) -> list[OnlineRows]:
        if self.online is None:
            return []
        return self.online.find(self.history.handle, rows, self.person)

    def _delete_online(self, at: dt.datetime) -> dict[str, int]:
        if self.online is None:
            return {}
        return self.online.delete((at - EPOCH) // MICROSECOND)

    # Tables

    def _tables(self) -> list[TableHandle]:
        """Those that are there."""
        found = []
        for handle in (self.history.handle, self.history.quarantine):
            with contextlib.suppress(SourceNotFoundError):
                handle.load()
                found.append(handle)
        return found

    def _refs(self, handle: TableHandle) -> tuple[str, list[str], int]:
        table = handle.load()
        refs = {name: ref.snapshot_ref_type.value for name, ref in sorted(table.refs().items())}
        branches = [name for name, kind in refs.items() if kind == "branch" and name != MAIN]
        if branches:
            raise OfflineStoreError(
                f"The Iceberg table {handle.name}: older versions are kept by the branches "
                f"{', '.join(branches)}, in which what is to be erased can be read. Remove them "
                "first. Nothing was changed."
            )
        tags = [name for name, kind in refs.items() if kind == "tag"]
        return handle.name, tags, sum(not each.is_current for each in snapshots_of(table))

    def _count(self, handle: TableHandle, rows: Any) -> int:
        try:
            return erase(handle, rows, dry_run=True).rows
        except SourceNotFoundError:
            return 0

    def _erased(self, handle: TableHandle, rows: Any) -> tuple[int, int]:
        """How many rows, and how many versions that are gone."""
        try:
            found = erase(
                handle,
                rows,
                lambda done, total: self.say(handle.name, done, total),
                expire_now=True,
                drop_tags=True,
            )
        except SourceNotFoundError:
            return 0, 0
        return found.rows, len(found.expired.expired) if found.expired else 0

    def _fence(self, at: dt.datetime) -> None:
        """Have what is captured at the moment, of records that were read before, be refused."""
        moment = at.isoformat()

        def marked(state: Any) -> Any:
            return None if state is None else {**state, "erased": moment}

        for handle in self._tables():
            if handle == self.history.handle:
                self._mark(handle, CAPTURE, marked)
            self._mark(handle, ERASED_STATE, lambda _: moment)

    def _mark(self, handle: TableHandle, name: str, change: Callable[[Any], Any]) -> None:
        failure: NotCommittedError | None = None
        for attempt in range(ATTEMPTS):
            before = handle.state(name)
            after = change(before)
            if after == before:
                return
            try:
                handle.append(iter(()), new_commit_id(), Progress(name, before, after))
            except NotCommittedError as error:
                failure = error
                pause(attempt)
            else:
                return
        raise NotCommittedError(
            f"The Iceberg table {handle.name}: others came first {ATTEMPTS} times. Nothing is "
            "erased yet; run it again."
        ) from failure

    # Files

    def _exports(self) -> list[RawExport]:
        try:
            state = self.history.state()
        except SourceNotFoundError:
            state = None
        return raw_exports.holding(
            self.places,
            raw_exports.ExportedTable(self.history.source.table, self.arn),
            self.person,
            state,
            self.settings,
            lambda done, total: self.say("raw exports", done, total),
        )

    def _search(
        self, rows: PersonRows, settled: dt.timedelta
    ) -> tuple[int, tuple[str, ...], tuple[Trace, ...]]:
        """Files that were looked through, those that were deleted, and what is left in others."""
        person = self.person
        values = dict(person.table.to_pylist()[0]) if len(person.names) == 1 else {}
        files, orphans, left = 0, [], []
        for handle in self._tables():
            is_history = handle == self.history.handle
            look: Any = rows if is_history else PersonRecords(person)
            told = lambda done, total, name=handle.name: self.say(f"search of {name}", done, total)  # noqa: E731
            found = search(handle, look, values if is_history else {}, told)
            files += found.files
            old = [
                trace
                for trace in found.traces
                if not trace.is_listed and trace.age_s >= settled.total_seconds()
            ]
            gone = set(remove_unlisted(handle, old)) if old else set()
            orphans += sorted(gone)
            left += [trace for trace in found.traces if trace.uri not in gone]
        return files, tuple(orphans), tuple(left)


def items_in_table(client: Any, history: CapturedHistory, person: Person) -> int | None:
    """How many items of somebody the DynamoDB table has; None where nobody knows without a scan.

    Raises:
        AwsError: AWS refused, for another reason than that the identity may not look.
    """
    found = person.query()
    if found is None:
        return None
    request = {"TableName": history.source.table, "Select": "COUNT", **found}
    count: int = 0
    try:
        while True:
            with aws.translated("dynamodb", f"table {history.source.table}"):
                page = client.query(**request)
            count += int(page["Count"])
            if "LastEvaluatedKey" not in page:
                return count
            request["ExclusiveStartKey"] = page["LastEvaluatedKey"]
    except AccessDeniedError:
        return None
    except ResourceNotFoundError:
        return 0


def check_done(result: EraseResult) -> None:
    """Refuse to call it done where something is left.

    Raises:
        CaptureError: names the files.
    """
    if not result.traces:
        return
    named = "; ".join(
        f"{trace.uri} ({trace.kind}{'' if trace.is_listed else ', in no version'})"
        for trace in result.traces[:5]
    )
    more = f"; and {len(result.traces) - 5} more" if len(result.traces) > 5 else ""  # noqa: PLR2004
    young = any(not trace.is_listed for trace in result.traces)
    raise CaptureError(
        f"Source `{result.plan.source}`: {len(result.traces)} files hold something of "
        f"{result.plan.person} still: {named}{more}. "
        + (
            "Those in no version may be of a writer that is at work: run it again when they are "
            f"{SETTLED.total_seconds() / 60:.0f} minutes old. "
            if young
            else "Run it again. "
        )
    )
