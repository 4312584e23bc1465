"""Reads events of series by call: the last ones, a stretch of time, another order.

::

    answer = online_series(
        store,
        ["purchases:amount", "purchases:category"],
        [{"customer_id": 7}, {"customer_id": 8}],
        last=20,
    )
    answer.features["amount"]  # [[12.5, 3.0, ...], []]
    answer.statuses            # ["found", "none"]

What a model needs at each request is better declared once, by `recent` and `windows`: it is read
with all other features then, and is the same in training.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa
from feast.type_map import feast_value_type_to_python_type
from feast.value_type import ValueType

from feast_dynamo_ext import _feast
from feast_dynamo_ext.config import did_you_mean
from feast_dynamo_ext.declared import SCALARS, declared_arrow, element_kind
from feast_dynamo_ext.dynamo import read, series_read
from feast_dynamo_ext.dynamo.event_loops import off_loop
from feast_dynamo_ext.dynamo.key_bounds import KeyBounds, bounds_of, refuse_other_columns
from feast_dynamo_ext.dynamo.query import LAST_US, EntityQuery, Stretch, sort_time
from feast_dynamo_ext.dynamo.views import FeastRequest, refuse_unknown_features
from feast_dynamo_ext.errors import ConfigError, EntityKeyError, FeastDynamoError
from feast_dynamo_ext.online_store import BAD_ROWS, LARGE_REQUEST, DynamoOnlineStore
from feast_dynamo_ext.timestamps import MICROSECOND, micros_of, moment_of
from feast_dynamo_ext.view_settings import ViewSettings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pandas as pd
    from feast import FeatureStore
    from feast.protos.feast.types.Value_pb2 import Value

    from feast_dynamo_ext.dynamo.client import Connection
    from feast_dynamo_ext.dynamo.layouts.packed import JsonItem
    from feast_dynamo_ext.dynamo.query import QueryResult
    from feast_dynamo_ext.dynamo.views import KnownView
    from feast_dynamo_ext.series_settings import Series

Status = Literal["found", "none", "unread"]

EVENT_TIME, STATUS, TRUNCATED = "event_time", "status", "truncated"
MOMENTS = pa.timestamp("us", "UTC")

AS_TEXT: dict[str, Callable[[Any], str]] = {
    "JSON": json.dumps,
    "UUID": str,
    "TIME_UUID": str,
    "DECIMAL": str,
}
"""Value types that Arrow has as texts, and Feast as objects of Python."""

PLAIN = {"INT32", "INT64", "FLOAT", "DOUBLE", "STRING", "BYTES", "BOOL"}
"""Value types whose values Feast gives to Python as they are."""


@dataclass(frozen=True)
class OnlineSeries:
    """Events of entities, in the order of the entity rows.

    Attributes:
        entities: the join keys of each entity row, by name.
        features: by feature, for each entity row a list of its events' values, None where null;
            None for the list of an entity row that is unread.
        event_us: for each entity row its events' times, microseconds since 1970 UTC; None where
            it is unread.
        statuses: of each entity row: `found`, `none` (no event of these bounds, or a null join
            key), or `unread` (not read before the deadline, with `on_partial: mark`; or an event
            that cannot be explained, which the log says).
        truncated: of each entity row, whether there are more events than `limit`.
        types: names of Feast's value types of join keys and features.
    """

    entities: Mapping[str, Sequence[Any]]
    features: Mapping[str, Sequence[list[Any] | None]]
    event_us: Sequence[list[int] | None]
    statuses: Sequence[Status]
    truncated: Sequence[bool]
    types: Mapping[str, str]

    def __len__(self) -> int:
        return len(self.statuses)

    def to_dict(self) -> dict[str, list[Any]]:
        """Join keys, features, `event_time`, `status`, `truncated`: a list each, by entity row.

        Times are datetimes in UTC. Where a join key or feature has one of these three names, the
        column of the answer has a `_` before it.
        """
        times = [
            None if each is None else [moment_of(moment) for moment in each]
            for each in self.event_us
        ]
        return {
            **{name: list(values) for name, values in self.entities.items()},
            **{name: list(values) for name, values in self.features.items()},
            self._name(EVENT_TIME): times,
            self._name(STATUS): list(self.statuses),
            self._name(TRUNCATED): list(self.truncated),
        }

    def to_arrow(self) -> pa.Table:
        """One row an entity row: columns as `to_dict`, features and `event_time` as lists.

        Times are microseconds in UTC, those of features among them; a null inside of a list is
        one in Arrow. Texts, numbers and times have their declared types, empty or not.
        """
        columns = {
            name: pa.array(self._texts(name, values), arrow_type(self.types[name]))
            for name, values in self.entities.items()
        }
        for name, lists in self.features.items():
            kind = arrow_type(self.types[name])
            cells = [None if each is None else self._texts(name, each) for each in lists]
            columns[name] = pa.array(cells, None if kind is None else pa.list_(kind))
        columns[self._name(EVENT_TIME)] = pa.array(self.event_us, pa.list_(pa.int64())).cast(
            pa.list_(MOMENTS)
        )
        columns[self._name(STATUS)] = pa.array(self.statuses, pa.string())
        columns[self._name(TRUNCATED)] = pa.array(self.truncated, pa.bool_())
        return pa.table(columns)

    def to_df(self) -> pd.DataFrame:
        """`to_dict` as a data frame; each cell of a feature is a list."""
        import pandas as pd

        columns = self.to_dict()
        return pd.DataFrame({name: pd.Series(cells) for name, cells in columns.items()})

    def _name(self, column: str) -> str:
        is_taken = column in self.entities or column in self.features
        return f"_{column}" if is_taken else column

    def _texts(self, name: str, values: Sequence[Any]) -> Sequence[Any]:
        as_text = AS_TEXT.get(self.types[name])
        if as_text is None:
            return values
        return [None if each is None else as_text(each) for each in values]


def arrow_type(kind: str) -> pa.DataType | None:
    """The Arrow type of values; None for maps and others that Arrow looks at itself."""
    if kind == "UNIX_TIMESTAMP":
        return MOMENTS
    value_type = ValueType[kind]
    element = element_kind(value_type)
    if element is not None and element.name in PLAIN | {"UNIX_TIMESTAMP"}:
        return pa.list_(arrow_type(element.name))
    is_zoned = value_type is ValueType.ZONED_TIMESTAMP
    return declared_arrow(value_type) if value_type in SCALARS and not is_zoned else None


def online_series(
    store: FeatureStore,
    features: Sequence[str],
    entity_rows: Any,
    *,
    last: int | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    within: timedelta | None = None,
    order: str | None = None,
    descending: bool = True,
    where: Mapping[str, tuple[str, Any]] | None = None,
    limit: int | None = None,
) -> OnlineSeries:
    """Events of entities, of a view that keeps each of them: `ViewSettings(series=Series(...))`.

    One Query an entity, several at once, each to its end. An event counts from `start` to `end`,
    both included. Events past the view's ttl, or kept longer than its `keep_for`, are not there,
    whether or not DynamoDB has deleted them yet. Reads are strongly consistent where the view or
    the store says so, those of an order too.

    Args:
        store: the feature store.
        features: references `view:feature`, all of one view.
        entity_rows: as `get_online_features` takes them: a list of dicts, or a dict of lists.
        last: the newest so many events of each entity.
        start: the first event time that counts; without a zone it is UTC.
        end: the last one; by default now, so that events ahead of now are left out.
        within: how far back from `end` events count, in place of `start`.
        order: a feature among the view's `Series(orders=...)`: events in its order, by the local
            index; events whose value is null are not in it. By default in the order of time.
        descending: the newest first, or the highest of the order; else the oldest or lowest.
        where: bounds of the order's feature: {"amount": (">=", 100.0)}, with =, <, <=, >, >= or
            ("between", (lowest, highest)), both included. DynamoDB reads no events beyond them.
        limit: at most so many events of each entity, the first in the order; `truncated` says of
            each entity whether there are more. Event times beside an order are looked at after
            the index was read: narrow ones read more events than they answer.

    Raises:
        ConfigError: a view that keeps no series, or has no such order; arguments that cannot be.
        FeatureNotFoundError: a reference to no feature.
        EntityKeyError: entity rows that lack a join key, or have one that cannot be a key.
        RequestTooLargeError: more rows than `max_rows_per_request`.
        IncompleteReadError: entities left unread at the deadline (`on_partial: error`).
        TableTakenError: the table is another view's or project's.
        AwsError: AWS refused a request.
    """
    bounds = Bounds(last, start, end, within, order, descending, where or {}, limit)
    online = dynamo_store(store)
    connection = online.connection(store.config)
    return connection.loops.run(_answer(store, connection, features, entity_rows, bounds))


async def online_series_async(
    store: FeatureStore,
    features: Sequence[str],
    entity_rows: Any,
    *,
    last: int | None = None,
    start: datetime | None = None,
    end: datetime | None = None,
    within: timedelta | None = None,
    order: str | None = None,
    descending: bool = True,
    where: Mapping[str, tuple[str, Any]] | None = None,
    limit: int | None = None,
) -> OnlineSeries:
    """`online_series` on an event loop.

    Raises: as `online_series`.
    """
    bounds = Bounds(last, start, end, within, order, descending, where or {}, limit)
    online = dynamo_store(store)
    connection = online.connection(store.config)
    return await _answer(store, connection, features, entity_rows, bounds)


def dynamo_store(store: FeatureStore) -> DynamoOnlineStore:
    """The online store of a feature store.

    Raises:
        ConfigError: it is another one.
    """
    online = getattr(store.provider, "online_store", None)
    if not isinstance(online, DynamoOnlineStore):
        raise ConfigError(
            "Series and cohorts are read from feast_dynamo_ext.DynamoOnlineStore, and this repo "
            f"has another online store, {type(online).__name__}. Set it as `type` of "
            "online_store in feature_store.yaml."
        )
    return online


# Which events


@dataclass(frozen=True)
class Bounds:
    """Which events are asked for: the arguments of `online_series`."""

    last: int | None
    start: datetime | None
    end: datetime | None
    within: timedelta | None
    order: str | None
    descending: bool
    where: Mapping[str, tuple[str, Any]]
    limit: int | None

    def check(self, subject: str) -> None:
        """Refuse arguments that cannot be, or contradict each other.

        Raises:
            ConfigError: names the argument.
        """
        for name in ("last", "limit"):
            value = getattr(self, name)
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            if value is not None and not is_count:
                raise ConfigError(f"{subject}: `{name}` must be a whole number of at least 1.")
        for name in ("start", "end"):
            if not isinstance(getattr(self, name), (datetime, type(None))):
                raise ConfigError(f"{subject}: `{name}` must be a datetime.")
        if self.within is not None and not (
            isinstance(self.within, timedelta) and self.within > timedelta(0)
        ):
            raise ConfigError(f"{subject}: `within` must be a timedelta of more than 0.")
        if self.within is not None and self.start is not None:
            raise ConfigError(f"{subject}: `within` and `start` both say where events begin.")
        if self.last is not None and self.limit is not None:
            raise ConfigError(
                f"{subject}: `last` and `limit` both say how many events. `last` are the newest "
                "ones; `limit` cuts what is answered, and says so."
            )
        if self.last is not None and self.order is not None:
            raise ConfigError(
                f"{subject}: `last` are the newest events, and `order` has them in another order. "
                "Pass `limit` for the first of that order."
            )
        if self.start and self.end and micros_of(self.start) > micros_of(self.end):
            raise ConfigError(f"{subject}: `start` is after `end`.")

    def stretch(self, known: KnownView, series: Series, now_us: int) -> Stretch | None:
        """The events of each entity; None where there can be none.

        Raises:
            ConfigError: an order that there is not, or a condition that cannot be.
        """
        subject = f"Feature view `{known.answers_as}`"
        self.check(subject)
        refuse_other_columns(self.where, self.order, subject)
        keys = KeyBounds()
        if self.order is not None:
            types = dict(zip(known.schema.names, known.schema.types, strict=True))
            refuse_undeclared_order(self.order, series, types, subject)
            if self.order in self.where:
                kind = types[self.order]
                keys = bounds_of(self.where[self.order], self.order, kind, subject)
        first_us, last_us = self._times(known, series, now_us)
        if keys.is_empty or (first_us is not None and first_us > last_us):
            return None
        # One more than the limit, to know whether there are more.
        limit = self.last if self.limit is None else self.limit + 1
        is_newest_first = self.last is not None or self.descending
        return Stretch(first_us, last_us, limit, is_newest_first, self.order, keys.low, keys.high)

    def _times(self, known: KnownView, series: Series, now_us: int) -> tuple[int | None, int]:
        last_us = now_us if self.end is None else micros_of(self.end)
        firsts = []
        if self.start is not None:
            firsts.append(micros_of(self.start))
        if self.within is not None:
            firsts.append(last_us - self.within // MICROSECOND)
        if known.ttl_s is not None:
            firsts.append(now_us - known.ttl_s * 1_000_000)
        if series.keep_for is not None:
            firsts.append(now_us - series.keep_for // MICROSECOND)
        return max(firsts, default=None), min(last_us, LAST_US)


def refuse_undeclared_order(
    order: str, series: Series, types: Mapping[str, str], subject: str
) -> None:
    """Refuse an order by a feature that has no local index.

    Raises:
        ConfigError: says what to declare.
    """
    if order in series.orders and order in types:
        return
    if order not in types:
        raise ConfigError(
            f"{subject}: `order` is `{order}`, which is no feature of it. "
            f"{did_you_mean(order, types, 'It has')}"
        )
    orders = json.dumps([*series.orders, order])
    raise ConfigError(
        f"{subject} has no order by `{order}`"
        f"{f' (only by {_listed(series.orders)})' if series.orders else ''}. Declare it: "
        f"Series(orders={orders}). DynamoDB makes an order with the table alone: a table that is "
        "there has to be made anew. Or leave `order` out, and sort what is answered."
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# The read


async def _answer(
    store: FeatureStore,
    connection: Connection,
    features: Sequence[str],
    entity_rows: Any,
    bounds: Bounds,
) -> OnlineSeries:
    asked, series, entities = _asked(store, connection, features, entity_rows)
    now_us, is_past = series_read.read_moment()
    stretch = bounds.stretch(asked.view, series, now_us)
    queries = {}
    if stretch is not None:
        view = asked.view
        for key in asked.rows:
            if key is not None and key not in queries:
                queries[key] = EntityQuery(view.table, key, stretch, view.consistent)
    settings = store.config.online_store
    result = await series_read.fetch_events(
        [asked], [*queries.values()], connection, may_be_partial=settings.on_partial == "mark"
    )

    def answer() -> OnlineSeries:
        events = _Events(asked, connection, bounds, now_us if is_past else None)
        return events.answer(queries, result, entities)

    return await off_loop(answer) if len(asked.rows) >= LARGE_REQUEST else answer()


def _asked(
    store: FeatureStore, connection: Connection, features: Sequence[str], entity_rows: Any
) -> tuple[read.ViewRead, Series, dict[str, Sequence[Value]]]:
    """What is asked of which view, its series, and the request's join keys.

    Raises: as `online_series`.
    """
    name = _one_view(features)
    registry, project, config = store.registry, store.project, store.config
    references = list(features)
    request = FeastRequest.checked(registry, project, entity_rows)
    try:
        prepared = _feast.prepare_request(
            registry, project, references, entity_rows, full_feature_names=False
        )
    except FeastDynamoError:
        raise
    except BAD_ROWS:
        request.explain(references, full_feature_names=False)
        raise
    views = [view for view, _ in prepared.refs]
    if config.registry.enable_online_feature_view_versioning:
        request.restore_versions(views)
    view = views[0]
    series = ViewSettings.from_view(view).series
    if view.name != name.partition("@")[0] or series is None:
        _refuse_no_series(name, registry, project)
        raise AssertionError(name)
    known = connection.views.known(view, config)
    rows = max(map(len, prepared.columns.values()), default=0)
    read.refuse_too_many(rows, config.online_store.max_rows_per_request)
    request.check_keys([known], prepared.join_keys, rows)
    names = list(dict.fromkeys(reference.partition(":")[2] for reference in references))
    if not set(names) <= set(known.schema.names):
        refuse_unknown_features(registry, project, references)
    try:
        (asked,) = read.of_columns([known], [names], prepared.columns)
    except EntityKeyError:
        request.completed([known], prepared.columns, prepared.response)  # names what is missing
        raise
    entities = {column: prepared.columns[column] for _, column in known.columns}
    return asked, series, entities


def _one_view(features: Sequence[str]) -> str:
    """The one view that references name.

    Raises:
        ConfigError: they name several, or are no list of references.
        FeatureNotFoundError: one names no feature.
    """
    if isinstance(features, str) or not all(isinstance(each, str) for each in features):
        raise ConfigError(
            "Series are read by a list of references `view:feature`; feature services are read "
            "by get_online_features, with views of `recent` and `windows` in them."
        )
    if not features or not all(each.partition(":")[2] for each in features):
        refuse_unknown_features(
            None, "", [each for each in features if not each.partition(":")[2]]
        )
    names = list(dict.fromkeys(each.partition(":")[0] for each in features))
    if len(names) > 1:
        raise ConfigError(
            f"The references name features of {_listed(names)}: events of several views are not "
            "one list. Call online_series once for each view."
        )
    return names[0]


def _refuse_no_series(name: str, registry: Any, project: str) -> None:
    """Refuse a view that does not keep its events.

    Raises:
        ConfigError: says what to do.
    """
    view = registry.get_any_feature_view(name.partition("@")[0], project, allow_cache=True)
    derived = ViewSettings.from_view(view).derived
    if derived is not None:
        raise ConfigError(
            f"Feature view `{name}` is derived from `{derived.base}`, and has no events of its "
            f"own. Read it with get_online_features, or the events of `{derived.base}`."
        )
    raise ConfigError(
        f"Feature view `{name}` keeps no series. Have it keep every event: "
        "tags=ViewSettings(series=Series(...)).tags()."
    )


class _Events:
    """Events that were found, as lists of Python's values."""

    def __init__(
        self,
        asked: read.ViewRead,
        connection: Connection,
        bounds: Bounds,
        written_by_us: int | None,
    ) -> None:
        self._asked, self._book, self._bounds = asked, connection.schemas, bounds
        self._written_by_us = written_by_us
        types = dict(zip(asked.view.schema.names, asked.view.schema.types, strict=True))
        self._kinds = {name: types[name] for name in asked.requested}
        self._plain = tuple(name for name in asked.requested if types[name] in PLAIN)
        self._others = tuple(name for name in asked.requested if types[name] not in PLAIN)

    def answer(
        self,
        queries: Mapping[str, EntityQuery],
        result: QueryResult,
        entities: Mapping[str, Sequence[Value]],
    ) -> OnlineSeries:
        """The answer, in the order of the entity rows."""
        found = {
            key: self._found(result.found[query])
            for key, query in queries.items()
            if query in result.found
        }
        rows = [self._row(key, queries, found) for key in self._asked.rows]
        view = self._asked.view
        names = [column for _, column in view.columns]
        types = {**dict(zip(names, view.encode.types, strict=False)), **self._kinds}
        return OnlineSeries(
            {name: [_python_of(each) for each in values] for name, values in entities.items()},
            {
                name: [lists[at] for lists, *_ in rows]
                for at, name in enumerate(self._asked.requested)
            },
            [event_us for _, event_us, *_ in rows],
            [status for *_, status, _ in rows],
            [is_cut for *_, is_cut in rows],
            types,
        )

    def _row(self, key: str | None, queries: Any, found: Any) -> Any:
        if key is None or key not in queries:
            return self._nothing([]), [], "none", False
        if key not in found:
            return self._nothing(None), None, "unread", False
        return found[key]

    def _nothing(self, value: list[Any] | None) -> list[Any]:
        return [value for _ in self._asked.requested]

    def _found(self, items: Sequence[JsonItem]) -> Any:
        bounds, asked = self._bounds, self._asked
        if self._written_by_us is not None:
            items = series_read.written_by(items, self._written_by_us)
        is_cut = bounds.limit is not None and len(items) > bounds.limit
        items = items[: bounds.limit]
        if bounds.last is not None and not bounds.descending:
            items = items[::-1]
        try:
            plain = series_read.python_values_of(items, self._plain, asked.view, self._book)
            columns = series_read.values_of(items, self._others, asked.view, self._book)
            lists = [
                plain[name] if name in plain else self._listed(name, columns.get(name, ()))
                for name in asked.requested
            ]
            times = [sort_time(item) for item in items]
        except series_read.UNEXPLAINED as error:
            self._book.warn(asked.view.table, series_read.explained(asked.view, error))
            return self._nothing(None), None, "unread", False
        return lists, times, "found" if items else "none", is_cut

    def _listed(self, name: str, values: Sequence[Value]) -> list[Any]:
        kind = ValueType[self._kinds[name]]
        return [feast_value_type_to_python_type(value, kind) for value in values]


def _python_of(value: Value) -> Any:
    return feast_value_type_to_python_type(value)
