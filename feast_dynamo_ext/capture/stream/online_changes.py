"""Changes of a captured table go online: at once, before they are in the history.

Each view over the table takes a batch of changes by the rules, and through the functions, by which
`feast materialize` takes the history that has them: see `retrieval/changed_rows`. Of an entity one
row is written, or deleted, a batch::

    rows of a batch -> per view: keys, what ends what -> the last that counts, of each entity
                                                         -> put, unless a newer one is there
                                                         -> delete, unless a later one is there

So a batch that is delivered again changes nothing, and one from before is undone with the next.
Of a view that keeps every event each event is a row of its own: see `online_events`.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.capture.erasure.erased_keys import ErasedLately
from feast_dynamo_ext.capture.history import CapturedHistory
from feast_dynamo_ext.capture.stream.online_events import EventsPlan, changed_events
from feast_dynamo_ext.columns import CHANGE, CHANGE_ID, MOVE, PUT, WRITTEN
from feast_dynamo_ext.dynamo.encoding.requests import Deletions, EncodedRows
from feast_dynamo_ext.dynamo.precomputed.maintain import with_vectors
from feast_dynamo_ext.dynamo.row_batch import EncodedBlock, Outcome
from feast_dynamo_ext.dynamo.views import table_name
from feast_dynamo_ext.dynamo.write import latest_event_us
from feast_dynamo_ext.errors import (
    AwsError,
    ColumnTypeError,
    ConfigError,
    EntityKeyError,
    IncompleteWriteError,
    ItemTooLargeError,
    OnlineStoreError,
    UnsupportedTypeError,
)
from feast_dynamo_ext.materialize.newest_rows import (
    Columns,
    Encoder,
    takes_rows_as_they_are,
)
from feast_dynamo_ext.online_store import DynamoOnlineStore
from feast_dynamo_ext.retrieval.changed_rows import find_winners
from feast_dynamo_ext.retrieval.eras import numbered
from feast_dynamo_ext.timestamps import HIGHEST, micros_of
from feast_dynamo_ext.view_settings import view_tombstones

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from feast import FeatureStore, RepoConfig
    from numpy.typing import NDArray

    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.columns import Tombstones
    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.write import WriteMethod

logger = logging.getLogger(__name__)

NOT_ONLINE = (EntityKeyError, ColumnTypeError, ItemTooLargeError, UnsupportedTypeError)
"""Of rows that an item of the online store cannot hold; the history holds them."""


@dataclass(frozen=True)
class ViewOutcome:
    """What became of a batch in one view; numbers of entities.

    Attributes:
        view: name of the view; empty for all of them.
        written: whose row was written.
        deleted: whose row is gone.
        older: of which a newer row is there already.
        expired: whose newest row is past the view's ttl, and not written.
        passed_over: rows, not entities, that cannot go online: further ahead than `max_future`, or
            too large; they are in the history.
        failed: ids of the changes that are to be applied again.
        error: why the last of them could not be.
    """

    view: str
    written: int = 0
    deleted: int = 0
    older: int = 0
    expired: int = 0
    passed_over: int = 0
    failed: frozenset[str] = frozenset()
    error: Exception | None = None

    def __add__(self, other: ViewOutcome) -> ViewOutcome:
        return ViewOutcome(
            self.view,
            self.written + other.written,
            self.deleted + other.deleted,
            self.older + other.older,
            self.expired + other.expired,
            self.passed_over + other.passed_over,
            self.failed | other.failed,
            other.error or self.error,
        )


@dataclass(frozen=True)
class Applied:
    """What became of a batch in all views.

    Attributes:
        views: of each view.
    """

    views: tuple[ViewOutcome, ...]

    @property
    def total(self) -> ViewOutcome:
        """Of all views together; what is in its `failed` may be applied again without harm."""
        return sum(self.views, ViewOutcome(""))

    def checked(self) -> Applied:
        """Itself, if nothing failed.

        Raises:
            AwsError, OnlineStoreError: why the last that failed did; all may be applied again.
        """
        error = self.total.error
        if error is not None:
            raise error
        return self


@dataclass(frozen=True)
class OnlineView:
    """A view over a captured table.

    Attributes:
        view: the view.
        table: the name of its table online.
        encoder: makes items of rows.
        rule: how rows say that items are gone.
    """

    view: Any
    table: str
    encoder: Encoder
    rule: Tombstones

    @classmethod
    def from_view(cls, view: Any, config: RepoConfig) -> OnlineView:
        """A view as it is declared now.

        Raises:
            ConfigError: its source is no captured table.
        """
        columns, rule = Columns.from_view(view), view_tombstones(view)
        if rule is None:
            raise ConfigError(f"Feature view `{view.name}`: its source is no captured table.")
        encoder = Encoder.from_view(config, view, columns)
        return cls(view, table_name(config, view), encoder, rule)

    def changes(self, rows: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.LargeBinaryArray]:
        """The rows of a batch that matter to the view and have its keys, with these keys.

        Raises:
            EntityKeyError: a key that cannot be one. ColumnTypeError: of another type.
        """
        events = self.encoder.events
        if events is not None:
            kept = changed_events(self.encoder, events, self.rule, rows)
            return kept, self.encoder.keys_of(kept)
        kinds = [PUT, MOVE, *sorted(self.rule.ends)] if self.rule.is_applied else [PUT]
        wanted = pc.is_in(rows.column(CHANGE), value_set=pa.array(kinds))
        for name in self.encoder.columns.keys:
            wanted = pc.and_(wanted, rows.column(name).is_valid())
        kept = rows.filter(wanted)
        return kept, self.encoder.keys_of(kept)


def _opened() -> duckdb.DuckDBPyConnection:
    return duckdb.connect(":memory:", config={"threads": "1"})


@dataclass(frozen=True)
class OnlineChanges:
    """Brings changes of one captured table online. Safe to share between threads.

    Attributes:
        config: the repo's.
        connection: the online store's.
        views: the views over the table.
        erased: who was erased; None where nobody can be.
        duck: where batches are looked at; opening one takes longer than that.
    """

    config: RepoConfig
    connection: Connection
    views: Sequence[OnlineView]
    erased: ErasedLately | None = None
    duck: duckdb.DuckDBPyConnection = field(default_factory=_opened, repr=False)

    @classmethod
    def from_store(cls, store: FeatureStore, source: DynamoDBTableSource) -> OnlineChanges:
        """For all views over a source that are served online and take its rows as they are.

        Args:
            store: the feature store; its registry is read.
            source: the source.

        Raises:
            ConfigError: the online store is another one.
            TableTakenError: a view's table is another view's or project's.
            AwsError: AWS refused.
        """
        online = dynamo_store(store)
        if online is None:
            raise ConfigError(
                f"Source `{source.name}`: the online store of this repo is "
                f"{type(_online_store(store)).__name__}. Changes of captured tables go online "
                "into DynamoOnlineStore: set `online_store` in feature_store.yaml to `type: "
                "feast_dynamo_ext.DynamoOnlineStore`."
            )
        views = online_views(store.list_all_feature_views(), source)
        online.refuse_anothers(store.config, *views)
        return cls(
            store.config,
            online.connection(store.config),
            [OnlineView.from_view(view, store.config) for view in views],
            _erased(store.config, source),
        )

    def apply(self, rows: pa.RecordBatch) -> Applied:
        """Bring a batch of changes online; what fails in a view is in its outcome.

        Args:
            rows: of history, in the order of the stream; see `stream_records.converted`.
        """
        if not self.views or not rows.num_rows:
            return Applied(tuple(ViewOutcome(each.view.name) for each in self.views))
        return self.connection.loops.run(self._apply_to_all(rows))

    async def _apply_to_all(self, rows: pa.RecordBatch) -> Applied:
        if self.erased is not None:
            rows = await asyncio.to_thread(self.erased.without_old_puts, rows)
        found = await asyncio.gather(*(self._apply(view, rows) for view in self.views))
        return Applied(tuple(found))

    async def _apply(self, view: OnlineView, rows: pa.RecordBatch) -> ViewOutcome:
        try:
            changes, keys = view.changes(rows)
            latest_us, encoder = latest_event_us(self.config), view.encoder
            plan: _Plan | EventsPlan
            if encoder.events is not None:
                plan = EventsPlan.from_changes(encoder, encoder.events, changes, keys, latest_us)
            else:
                with self.duck.cursor() as duck:
                    plan = _Plan.from_changes(view, changes, keys, latest_us, duck)
            put, gone = plan.encoded(encoder, changes, keys)
        except NOT_ONLINE as error:
            if rows.num_rows > 1:
                return await self._by_halves(view, rows)
            logger.warning(
                "feature view %s: a change cannot go online, and is in the history alone (%s); "
                "`feast materialize` says what it is",
                view.view.name,
                type(error).__name__,
            )
            return ViewOutcome(view.view.name, passed_over=1)
        wrote, deleted = await self._put(view, put), await self._delete(view, gone)
        failed = wrote.unwritten + deleted.unwritten
        return ViewOutcome(
            view.view.name,
            wrote.written,
            deleted.written,
            wrote.older + deleted.older,
            plan.expired,
            plan.ahead,
            _ids(changes, keys, failed),
            wrote.cause or deleted.cause,
        )

    async def _by_halves(self, view: OnlineView, rows: pa.RecordBatch) -> ViewOutcome:
        """So that a row that no item can hold holds up no other."""
        half = rows.num_rows // 2
        first = await self._apply(view, rows.slice(0, half))
        return first + await self._apply(view, rows.slice(half))

    async def _put(self, view: OnlineView, rows: EncodedRows) -> Outcome:
        if not len(rows):
            return Outcome()
        connection, schema = self.connection, view.encoder.schema
        method: WriteMethod = self.config.online_store.newest_wins_with

        async def write() -> Outcome:
            await connection.schemas.declare(
                view.table, schema, connection.writer, is_series=view.encoder.events is not None
            )
            batches = EncodedBlock(rows).batches()
            return await connection.writer.write_batches(view.table, batches, None, method)

        return await self._with_vectors(view, rows.keys, write())

    async def _delete(self, view: OnlineView, rows: Deletions) -> Outcome:
        if not len(rows):
            return Outcome()
        delete = self.connection.writer.delete(view.table, rows)
        return await self._with_vectors(view, rows.keys, delete)

    async def _with_vectors(
        self, view: OnlineView, keys: pa.LargeBinaryArray, write: Awaitable[Outcome]
    ) -> Outcome:
        """Write rows and renew what stands beside them; what fails is in the outcome."""
        done = Outcome()

        async def written() -> Outcome:
            nonlocal done
            done = await write
            return done.checked(view.table)

        listed, schema = keys.to_pylist, view.encoder.schema
        try:
            if view.encoder.events is not None:
                return await written()  # no precomputed service has features of a series
            return await with_vectors(self.connection, view.table, schema, listed, written())
        except IncompleteWriteError as error:
            return replace(done, unwritten=tuple(error.unwritten), cause=error)
        except (OnlineStoreError, AwsError) as error:
            return replace(done, unwritten=tuple(listed()), cause=error)


@dataclass(frozen=True)
class _Plan:
    """What is to be done with changes in a view.

    Attributes:
        rows: positions of those that are to be written, one an entity.
        deleted: positions of those that say that an entity's row is to be deleted.
        expired: rows that would be written, but are past the view's ttl.
        ahead: rows further in the future than may be written now.
    """

    rows: NDArray[np.int64]
    deleted: NDArray[np.int64]
    expired: int
    ahead: int

    @classmethod
    def from_changes(
        cls,
        view: OnlineView,
        changes: pa.RecordBatch,
        keys: pa.LargeBinaryArray,
        latest_us: int | None,
        duck: duckdb.DuckDBPyConnection,
    ) -> _Plan:
        """The plan by the rules of `retrieval/changed_rows`.

        Args:
            view: the view.
            changes: see `OnlineView.changes`.
            keys: theirs.
            latest_us: the last event time that may be written; None for no limit.
            duck: a connection without temporary tables.
        """
        kinds, times = changes.column(CHANGE), changes.column(view.encoder.columns.event_time)
        number = pa.array(np.arange(changes.num_rows))
        # A move shows what the put before it was, which may be of an earlier batch.
        is_move = pc.equal(kinds, MOVE)
        columns = {
            "k0": keys,
            "t": times.cast(pa.int64()),
            "w": changes.column(WRITTEN).cast(pa.int64()),
            "p": pc.or_(is_move, pc.equal(kinds, PUT)).cast(pa.int8()),
            "q": number,
            "r": number,
            "is_move": is_move,
        }
        oldest, last = view.encoder.not_before(), HIGHEST if latest_us is None else latest_us
        is_applied = view.rule.is_applied
        duck.register("batch", pa.table(columns))
        duck.execute("CREATE TEMP TABLE candidates AS SELECT * FROM batch WHERE NOT is_move")
        ends = "SELECT * FROM candidates LIMIT 0"
        if is_applied:
            ends = f"SELECT * FROM ({numbered('batch', ['k0'])}) WHERE ends AND NOT is_move"  # noqa: S608 - names of our own
        duck.execute(f"CREATE TEMP TABLE all_ends AS {ends}")
        first_us = None if oldest is None else micros_of(oldest)
        find_winners(duck, ["k0"], last, first_us, is_applied=is_applied)
        found = duck.execute("SELECT r, is_expired FROM winners ORDER BY r").fetchnumpy()
        deleted = duck.execute("SELECT r FROM deleted ORDER BY r").fetchnumpy()["r"]
        counted = "SELECT count(*) FROM candidates WHERE p = 1 AND t > ?"
        ((ahead,),) = duck.execute(counted, [last]).fetchall()
        is_expired = np.asarray(found["is_expired"], dtype=bool)
        rows = np.asarray(found["r"], dtype=np.int64)[~is_expired]
        gone = np.asarray(deleted, dtype=np.int64)
        return cls(rows, gone, int(is_expired.sum()), ahead)

    def encoded(
        self, encoder: Encoder, changes: pa.RecordBatch, keys: pa.LargeBinaryArray
    ) -> tuple[EncodedRows, Deletions]:
        """What is written, and what is deleted.

        Raises:
            OnlineStoreError, ColumnTypeError: see `Encoder`.
        """
        gone = pa.array(self.deleted)
        written = changes.column(WRITTEN).take(gone).cast(pa.int64())
        return (
            encoder(changes.take(pa.array(self.rows))),
            Deletions(keys.take(gone), written),
        )


def _ids(
    changes: pa.RecordBatch, keys: pa.LargeBinaryArray, failed: tuple[bytes, ...]
) -> frozenset[str]:
    """Ids of the changes of entities."""
    if not failed:
        return frozenset()
    is_failed = pc.is_in(keys, value_set=pa.array(failed, keys.type))
    return frozenset(changes.column(CHANGE_ID).filter(is_failed).to_pylist())


def dynamo_store(store: FeatureStore) -> DynamoOnlineStore | None:
    """The online store, if it is one that takes changes of captured tables."""
    online = _online_store(store)
    return online if isinstance(online, DynamoOnlineStore) else None


def _online_store(store: FeatureStore) -> Any:
    provider: Any = store.provider
    return getattr(provider, "online_store", None)


def _erased(config: RepoConfig, source: DynamoDBTableSource) -> ErasedLately | None:
    """Who was erased from the source's history; None where no store of ours keeps one."""
    if not hasattr(config.offline_store, "catalog_config"):
        return None
    return ErasedLately(CapturedHistory.from_source(source, config).erased_keys)


def online_views(views: Iterable[Any], source: DynamoDBTableSource) -> list[Any]:
    """The views over a source whose rows go online as they are; says which do not."""
    found = []
    for view in views:
        if getattr(view, "batch_source", None) is None or view.batch_source.name != source.name:
            continue
        if not getattr(view, "online", False):
            continue
        if takes_rows_as_they_are(view):
            found.append(view)
        else:
            logger.warning(
                "feature view %s computes its features: changes of %s reach it with "
                "`feast materialize` alone",
                view.name,
                source.name,
            )
    return found
