"""Somebody's rows in the online store: which entities they are of, and their deletion.

While rows are erased, nothing materializes the views: their leases are held, as a run that read
the history before would write the rows again. A row that is written later, by whatever else, is
somebody who came anew: it stays, and is counted.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from feast_dynamo_ext.aws import translated
from feast_dynamo_ext.capture.values.attribute_types import MOMENT
from feast_dynamo_ext.columns import CHANGE, PUT, WRITTEN, join_keys, stored_names
from feast_dynamo_ext.dynamo.encoding.requests import Deletions
from feast_dynamo_ext.dynamo.keys import encode_keys
from feast_dynamo_ext.dynamo.layouts.packed import (
    CREATED_TIME,
    EVENT_TIME,
    FINGERPRINT,
    KEY,
    RowSchema,
)
from feast_dynamo_ext.dynamo.layouts.series import SORT
from feast_dynamo_ext.dynamo.precomputed.maintain import with_vectors
from feast_dynamo_ext.dynamo.views import table_name
from feast_dynamo_ext.errors import ColumnTypeError, ResourceNotFoundError
from feast_dynamo_ext.materialize.lease import Lease, LeaseSettings
from feast_dynamo_ext.parquet.iceberg.commits import pause
from feast_dynamo_ext.parquet.iceberg.erase import Keys, rows_of
from feast_dynamo_ext.view_settings import series_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from feast import RepoConfig

    from feast_dynamo_ext.capture.erasure.person import Person, PersonRows
    from feast_dynamo_ext.capture.table_source import DynamoDBTableSource
    from feast_dynamo_ext.online_store import DynamoOnlineStore
    from feast_dynamo_ext.parquet.iceberg.commits import TableHandle


AT_ONCE = 100
"""Keys of one BatchGetItem."""


@dataclass(frozen=True)
class OnlineRows:
    """Somebody's rows of one view.

    Attributes:
        view: its name.
        table: of DynamoDB.
        entities: with a row of theirs.
        later: rows that were written after the erasure, and stay.
        shared: entities that have rows of others in the history: their features come back with
            the next run that materializes all of it.
        source: of the view, where it is another than the captured one; else empty.
    """

    view: str
    table: str
    entities: int
    later: int = 0
    shared: int = 0
    source: str = ""


@dataclass
class _Found:
    """Somebody's entities in one view.

    Attributes:
        keys: a column a join key, distinct.
        encoded: the entity keys of `keys`.
        times: by entity key, event and written times of their rows, microseconds since 1970, by
            which a row online is known as theirs. None where all rows of the entities are.
        deleted: of `encoded`, whose rows were deleted.
    """

    keys: pa.Table
    encoded: pa.LargeBinaryArray
    times: dict[bytes, set[tuple[int, int]]] | None
    deleted: set[bytes] = field(default_factory=set)


@dataclass
class OnlineViews:
    """The views that have a table in the online store, and may have somebody's rows there.

    Attributes:
        config: the repo's config.
        store: the online store.
        views: the feature views.
        source: the captured one. Views over another have join keys that are all by which somebody
            is known: of these all rows with the keys are theirs. None: no view is over another.
    """

    config: RepoConfig
    store: DynamoOnlineStore
    views: Sequence[Any]
    source: DynamoDBTableSource | None = None
    _found: dict[str, _Found] = field(default_factory=dict)

    @contextlib.contextmanager
    def held(self, *, wait: bool = True) -> Iterator[None]:
        """Have nothing materialize the views while the block lasts.

        Raises:
            AlreadyRunningError: something does, and is not waited for.
            AwsError: AWS refused.
        """
        settings = LeaseSettings(if_running="wait" if wait else "refuse")
        client = self.store.connection(self.config).client
        with contextlib.ExitStack() as stack:
            for view in list(self.views):
                name = table_name(self.config, view)
                try:
                    is_series = series_of(view) is not None
                    lease = Lease.acquire(client, name, view.name, settings, is_series=is_series)
                except ResourceNotFoundError:
                    self.views = [each for each in self.views if each.name != view.name]
                    continue
                stack.callback(lease.release)
            yield

    def find(self, history: TableHandle, rows: PersonRows, person: Person) -> list[OnlineRows]:
        """Rows that are online and are of somebody, by view.

        Args:
            history: of the source.
            rows: theirs.
            person: who: where a view is known by what they are, also without rows.

        Raises:
            AwsError: AWS refused.
        """
        self._found = {}
        for view in self.views:
            # Of a view without entities the one row is of whoever came last.
            names = self._columns(view) or [CHANGE]
            is_own = set(names) <= set(person.names)
            found = []
            if not self._other_source(view):
                found = self._entities(history, rows, view, names, is_own=is_own)
            if is_own:
                found.append(person.table.select(names))
            if not found:
                continue
            all_rows = pa.concat_tables([each.cast(found[0].schema) for each in found])
            keys = _distinct(all_rows.select(names))
            times = None if is_own else self._times(view, all_rows, names)
            self._found[view.name] = _Found(keys, self._encoded(view, keys), times)
        return [
            OnlineRows(
                view.name,
                table_name(self.config, view),
                len({key for key, _ in present}),
                source=self._other_source(view),
            )
            for view in self.views
            if (present := self._present(view))
        ]

    def _entities(
        self,
        history: TableHandle,
        rows: PersonRows,
        view: Any,
        names: list[str],
        *,
        is_own: bool,
    ) -> list[pa.Table]:
        times = [] if is_own else [view.batch_source.timestamp_field, WRITTEN]
        wanted = list(dict.fromkeys([*names, *times]))
        found = []
        for batch in rows_of(history, rows, list(dict.fromkeys([*wanted, CHANGE]))):
            puts = batch.filter(pc.equal(batch.column(CHANGE), PUT))
            if puts.num_rows:
                found.append(_distinct(pa.Table.from_batches([puts.select(wanted)])))
        return found

    def _times(
        self, view: Any, rows: pa.Table, names: list[str]
    ) -> dict[bytes, set[tuple[int, int]]]:
        keys = self._encoded(view, rows.select(names)).to_pylist()
        event, written = (
            rows.column(name).cast(MOMENT).cast(pa.int64()).to_pylist()
            for name in (view.batch_source.timestamp_field, WRITTEN)
        )
        found: dict[bytes, set[tuple[int, int]]] = {}
        for key, *moments in zip(keys, event, written, strict=True):
            found.setdefault(key, set()).add((moments[0], moments[1]))
        return found

    def _present(self, view: Any) -> list[tuple[bytes, bytes | None]]:
        """Entity keys whose rows are online and are somebody's; of a series those of events."""
        found = self._found.get(view.name)
        if found is None:
            return []
        client, name = self.store.connection(self.config).client, table_name(self.config, view)
        keys, present = found.encoded.to_pylist(), []
        items_of = _events if series_of(view) is not None else _items
        for at in range(0, len(keys), AT_ONCE):
            try:
                items = list(items_of(client, name, keys[at : at + AT_ONCE]))
            except ResourceNotFoundError:
                return []
            for key, sort, event, created in items:
                times = None if found.times is None else found.times.get(key, set())
                # A row that does not say when it was written is known by its event time.
                if (
                    times is None
                    or (event, created) in times
                    or (created is None and any(event == each for each, _ in times))
                ):
                    present.append((key, sort))
        return present

    def delete(self, written_us: int) -> dict[str, int]:
        """Delete the rows that were found, but for those that were written later.

        Args:
            written_us: what was written after it stays, microseconds since 1970.

        Returns:
            By view, how many stay.

        Raises:
            AwsError: AWS refused. IncompleteWriteError: rows that could not be deleted.
        """
        connection = self.store.connection(self.config)
        later = {}
        for view in self.views:
            present = self._present(view)
            keys = pa.array([key for key, _ in present], pa.large_binary())
            if not present:
                continue
            times = pa.array([written_us] * len(keys), pa.int64())
            table = table_name(self.config, view)
            is_series = series_of(view) is not None
            sorts = pa.array([sort for _, sort in present], pa.large_binary())
            # Nothing of somebody stays, not even where an event of theirs was.
            gone = Deletions(keys, times, sorts if is_series else None, is_noted=False)
            delete = connection.writer.delete(table, gone)
            if not is_series:
                schema = RowSchema.from_view(view)
                delete = with_vectors(connection, table, schema, keys.to_pylist, delete)
            outcome = connection.loops.run(delete).checked(table)
            self._found[view.name].deleted.update(keys.to_pylist())
            later[view.name] = outcome.older
        return later

    def shared(self, history: TableHandle) -> dict[str, int]:
        """By view, entities of deleted rows that have rows of others in the history."""
        found = {}
        for view in self.views:
            own = self._found.get(view.name)
            if own is None or not own.deleted or self._other_source(view):
                continue
            is_deleted = pc.is_in(own.encoded, pa.array([*own.deleted], pa.large_binary()))
            keys = own.keys.filter(is_deleted)
            there = [
                _distinct(pa.Table.from_batches([batch]))
                for batch in rows_of(history, Keys(keys), keys.column_names)
            ]
            found[view.name] = _distinct(pa.concat_tables(there)).num_rows if there else 0
        return found

    def _other_source(self, view: Any) -> str:
        """Name of a view's source where it is not the captured one; else empty."""
        name: str = view.batch_source.name
        return "" if self.source is None or name == self.source.name else name

    def _columns(self, view: Any) -> list[str]:
        return _key_columns(view, self.source or view.batch_source)

    def _encoded(self, view: Any, keys: pa.Table) -> pa.LargeBinaryArray:
        return _encoded(view, keys.select(self._columns(view)))


def views_by_keys(
    views: Iterable[Any], source: DynamoDBTableSource, person: Person
) -> tuple[list[Any], list[Any]]:
    """Views over other sources, by their join keys: whose rows of somebody can be named.

    Args:
        views: with a batch source; those over the captured one are passed over.
        source: the captured one.
        person: who.

    Returns:
        Those whose join keys are all by which they are known, and that are served online; and
        those that have one of these keys among others, or of another type, or are not online.
    """
    found: list[Any] = []
    others: list[Any] = []
    for view in views:
        names = _key_columns(view, source)
        if view.batch_source.name == source.name or not set(names) & set(person.names):
            continue
        is_known = set(names) == set(person.names) and getattr(view, "online", False)
        if is_known:
            try:
                _encoded(view, person.table.select(names))
            except ColumnTypeError:
                is_known = False
        (found if is_known else others).append(view)
    return found, others


def _key_columns(view: Any, source: Any) -> list[str]:
    """A view's join keys by the names that a source's files have."""
    stored = stored_names(source)
    return [stored[name] for name in join_keys(view)]


def _encoded(view: Any, keys: pa.Table) -> pa.LargeBinaryArray:
    names = join_keys(view)
    kinds = {column.name: column.dtype.to_value_type() for column in view.entity_columns}
    return encode_keys(
        keys.columns, [kinds[name] for name in names], names, view.name, keys.num_rows
    )


def _items(
    client: Any, table: str, keys: Sequence[bytes]
) -> Iterator[tuple[bytes, None, int, int | None]]:
    """Of some entity keys those that are there: with event time and, if it has one, written."""
    names = {"#k": KEY, "#t": EVENT_TIME, "#c": CREATED_TIME}
    wanted: dict[str, Any] = {
        table: {
            "Keys": [{KEY: {"B": key}} for key in keys],
            "ProjectionExpression": ", ".join(names),
            "ExpressionAttributeNames": names,
            "ConsistentRead": True,
        }
    }
    attempt = 0
    while wanted:
        with translated("dynamodb", f"table {table}"):
            answer = client.batch_get_item(RequestItems=wanted)
        for item in answer["Responses"].get(table, ()):
            if EVENT_TIME in item:
                created = item.get(CREATED_TIME)
                yield (
                    item[KEY]["B"],
                    None,
                    int(item[EVENT_TIME]["N"]),
                    None if created is None else int(created["N"]),
                )
        wanted = answer.get("UnprocessedKeys") or {}
        if wanted:
            pause(attempt)
            attempt += 1


def _events(
    client: Any, table: str, keys: Sequence[bytes]
) -> Iterator[tuple[bytes, bytes, int, int | None]]:
    """Of some entity keys of a series all that is there, the places of deleted events too."""
    pages = client.get_paginator("query")
    for key in keys:
        with translated("dynamodb", f"table {table}"):
            for page in pages.paginate(
                TableName=table,
                KeyConditionExpression="#k = :k",
                ProjectionExpression="#k, #s, #t, #c, #f",
                ExpressionAttributeNames={
                    "#k": KEY,
                    "#s": SORT,
                    "#t": EVENT_TIME,
                    "#c": CREATED_TIME,
                    "#f": FINGERPRINT,
                },
                ExpressionAttributeValues={":k": {"B": key}},
                ConsistentRead=True,
            ):
                for item in page["Items"]:
                    if EVENT_TIME in item:
                        # Where an event was deleted, its own time of writing is not known.
                        created = item.get(CREATED_TIME) if FINGERPRINT in item else None
                        yield (
                            key,
                            item[SORT]["B"],
                            int(item[EVENT_TIME]["N"]),
                            None if created is None else int(created["N"]),
                        )


def _distinct(rows: pa.Table) -> pa.Table:
    return rows.group_by(rows.column_names).aggregate([])
