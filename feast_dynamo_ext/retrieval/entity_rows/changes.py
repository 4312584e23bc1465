"""Entity rows where there are none: every change of a range of time.

A change is a distinct (join keys, event time) of a row of history. Finding them is a matter of
narrow columns: DuckDB groups keys and times, spilling what does not fit in memory, and remembers
one row's position of each group. The keys themselves are then read from the files by position, so
that their types never pass through DuckDB.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING

import duckdb
import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import without_dictionary
from feast_dynamo_ext.duckdb_connection import connected, registered
from feast_dynamo_ext.errors import EntityRowsError
from feast_dynamo_ext.key_types import family
from feast_dynamo_ext.parquet.source import ROW
from feast_dynamo_ext.retrieval.engines.sql import between, usable
from feast_dynamo_ext.retrieval.inputs import (
    DEFAULT_EVENT_TIME,
    History,
    checked_source,
    key_names,
    with_tombstones,
)
from feast_dynamo_ext.retrieval.plan import without_eras
from feast_dynamo_ext.timestamps import NANOSECONDS, assume_utc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from feast.data_source import DataSource
    from numpy.typing import NDArray

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.plan import PitPlan, ViewPlan


@dataclass(frozen=True)
class Window:
    """The range whose changes are the entity rows, both bounds included.

    Attributes:
        start: the first event time that counts.
        end: the last one.
    """

    start: datetime
    end: datetime

    @classmethod
    def from_times(cls, start: datetime | None, end: datetime | None, plan: PitPlan) -> Window:
        """The range that Feast's `start_date` and `end_date` mean; naive ones are UTC.

        Args:
            start: None for the end less the longest ttl of the views, as in Feast's other stores.
            end: None for now.
            plan: the views.

        Raises:
            EntityRowsError: no views, no datetimes, a start after the end, or no start and no ttl.
        """
        if not plan.views:
            raise EntityRowsError(
                "Retrieval without entity rows: the request has no feature view with a history, "
                "so there are no changes of it. Pass `entity_df`."
            )
        end = _moment("end_date", end) if end is not None else datetime.now(tz=timezone.utc)
        if start is not None:
            start = _moment("start_date", start)
        else:
            start = end - _longest_ttl(plan.views)
        if start > end:
            raise EntityRowsError(
                f"`start_date` {start} is after `end_date` {end}. Exchange them."
            )
        return cls(start, end)


def _moment(name: str, value: datetime) -> datetime:
    # pandas' times are Python's, but for NaT, which is not itself, and for their nanoseconds.
    if not isinstance(value, datetime) or value != value:  # noqa: PLR0124
        raise EntityRowsError(
            f"`{name}` is a {type(value).__name__}. Give a datetime; without a zone it is UTC."
        )
    if getattr(value, "nanosecond", None):
        raise EntityRowsError(
            f"`{name}` has a part below a microsecond, the resolution of the range. Round it."
        )
    return assume_utc(value)


def _longest_ttl(views: Sequence[ViewPlan]) -> timedelta:
    ttls = (view.ttl if view.derived is None else view.derived.ttl for view in views)
    longest = max((ttl or timedelta() for ttl in ttls), default=timedelta())
    if not longest:
        raise EntityRowsError(
            "Retrieval without entity rows needs a `start_date`: no view of the request has a ttl "
            "that says how far back to go. Give it, or pass `entity_df`."
        )
    return longest


ROWS_AT_ONCE = 1 << 17


def changes(
    plan: PitPlan,
    window: Window,
    limits: Limits,
    open_source: Callable[[DataSource], ParquetSource],
) -> pa.Table:
    """One row for each distinct (join keys, event time) in a range, by event time, then by keys.

    The rows of the views that have all join keys of the request count; the others are joined to
    them. Rows with a null key or event time belong to no entity and are left out, and with
    `created_by_entity_time` those that were not yet created at their event time.

    Returns:
        The join keys, in the types of the files, and `event_timestamp`, in UTC and the finest unit
        of the files. No rows where nothing changed.

    Raises:
        EntityRowsError: no view has all join keys, or views have keys of different types.
        OfflineStoreError: a source that cannot be read, or no memory or disk; see its subclasses.
    """
    histories = [_history(view, open_source(view.source), window) for view in _widest(plan.views)]
    keys = [ours for ours, _ in histories[0].view.keys]
    _check_types(histories, keys)
    unit = min((history.axis.unit for history in histories), key=NANOSECONDS.__getitem__)
    found = _distinct(histories, window, unit, limits, known=plan.created_by_entity_time)
    columns = _keys_at(histories, keys, found).columns if keys else []
    times = found.column("t").cast(pa.timestamp(unit, tz="UTC"))
    return pa.table([*columns, times], names=[*keys, DEFAULT_EVENT_TIME])


def _widest(views: Sequence[ViewPlan]) -> list[ViewPlan]:
    """The views that have all join keys of the request; their keys in the same order."""
    every = list(dict.fromkeys(ours for view in views for ours, _ in view.keys))
    widest = [view for view in views if len(view.keys) == len(every)]
    if not widest:
        has = "; ".join(f"`{view.view}` has {[ours for ours, _ in view.keys]}" for view in views)
        raise EntityRowsError(
            f"Retrieval without entity rows: no view has all the join keys {every}, so there is "
            f"nothing that pairs them: {has}. Pass `entity_df` with these columns, or ask for the "
            "views one by one."
        )
    first = [ours for ours, _ in widest[0].keys]
    # The ttl says how long a row is seen, not whether it is a change; deletions likewise.
    return [
        replace(
            without_eras(view),
            ttl=None,
            keys=tuple(sorted(view.keys, key=lambda key: first.index(key[0]))),
        )
        for view in widest
    ]


def _history(view: ViewPlan, source: ParquetSource, window: Window) -> History:
    complete = checked_source(view, source)
    view = with_tombstones(view, complete)
    return History.from_view(view, complete.within(view.event_time, window.start, window.end))


def _check_types(histories: Sequence[History], keys: Sequence[str]) -> None:
    for at, key in enumerate(keys):
        kinds = {
            history.view.view: history.source.schema.field(history.view.keys[at][1]).type
            for history in histories
        }
        if len({family(kind) for kind in kinds.values()}) > 1:
            has = "; ".join(f"{kind} in `{view}`" for view, kind in kinds.items())
            raise EntityRowsError(
                f"Retrieval without entity rows: join key `{key}` is {has}, which are never "
                "equal. Write one of the histories with the other's type."
            )


def _distinct(
    histories: Sequence[History], window: Window, unit: str, limits: Limits, *, known: bool
) -> pa.Table:
    """Of each change its time t, a history v that has it, and the position r of a row there."""
    keys = ", ".join(key_names(histories[0].view))
    with connected(limits, "Finding the changes") as duck:
        for at, history in enumerate(histories):
            _group(duck, at, history, window, unit, known=known)
        every = " UNION ALL ".join(f"FROM changes_{at}" for at in range(len(histories)))
        return (
            duck.sql(
                f"SELECT t, v, r FROM (SELECT {keys}, t, min(v) AS v, arg_min(r, v) AS r "  # noqa: S608 - our own column names
                f"FROM ({every}) GROUP BY {keys}, t) ORDER BY t, {keys}"
            )
            .to_arrow_reader(ROWS_AT_ONCE)
            .read_all()
        )


def _group(
    duck: duckdb.DuckDBPyConnection,
    at: int,
    history: History,
    window: Window,
    unit: str,
    *,
    known: bool,
) -> None:
    names = key_names(history.view)
    keys = ", ".join(names)
    finer = NANOSECONDS[history.axis.unit] // NANOSECONDS[unit]
    axis = history.axis
    first, last = axis.first_at_or_after(window.start), axis.last_at_or_before(window.end)
    condition = f"{usable(history.view)} AND {between(first, last)}"
    if known and history.created_axis is not None:
        event, created = history.axis.unit, history.created_axis.unit
        condition += (
            f" AND h.c::HUGEINT * {NANOSECONDS[created]} <= h.t::HUGEINT * {NANOSECONDS[event]}"
        )
    failures: list[Exception] = []
    try:
        with registered(duck, "history", history.reader(failures), failures):
            duck.execute(
                f"CREATE TEMP TABLE changes_{at} AS SELECT {keys}, h.t * {finer} AS t, "  # noqa: S608 - our own column names
                f"{at} AS v, min({ROW}) AS r FROM history AS h WHERE {condition} "
                f"GROUP BY {keys}, h.t"
            )
    except duckdb.OutOfRangeException as error:
        raise EntityRowsError(
            f"Feature view `{history.view.view}` has event times beyond what {unit} can say, "
            "the unit of another view of the request. Ask for a shorter range."
        ) from error


def _keys_at(histories: Sequence[History], keys: Sequence[str], found: pa.Table) -> pa.Table:
    """The join keys of what was found, in its order, read from the files."""
    of = found.column("v").to_numpy()
    positions = found.column("r").to_numpy().astype(np.int64, copy=False)
    parts = [_fetch(history, keys, positions[of == at]) for at, history in enumerate(histories)]
    rows = _one_table(parts)
    # Part after part; back to the order of what was found.
    order = np.argsort(np.argsort(of, kind="stable"), kind="stable")
    return rows.take(pa.array(order))


def _fetch(history: History, keys: Sequence[str], positions: NDArray[np.int64]) -> pa.Table:
    columns = [theirs for _, theirs in history.view.keys]
    each = list(dict.fromkeys(columns))
    ascending = np.sort(positions)
    rows = pa.Table.from_batches(
        history.source.fetch(each, ascending), history.source.schema_of(each)
    )
    rows = rows.take(pa.array(np.searchsorted(ascending, positions)))
    return pa.table([rows.column(column) for column in columns], names=list(keys))


def _one_table(parts: Sequence[pa.Table]) -> pa.Table:
    """Tables of the same keys as one; where their types differ, in one that holds them all."""
    if all(part.schema.equals(parts[0].schema) for part in parts):
        return pa.concat_tables(parts)
    plain = [_without_dictionaries(part) for part in parts]
    try:
        return pa.concat_tables(plain, promote_options="permissive")
    except pa.ArrowException as error:
        raise EntityRowsError(
            f"Retrieval without entity rows: the views' join keys have no common type: {error}. "
            "Write the histories with the same types."
        ) from error


def _without_dictionaries(table: pa.Table) -> pa.Table:
    return table.cast(
        pa.schema([column.with_type(without_dictionary(column.type)) for column in table.schema])
    )
