"""What changed in a captured table whose items are events: events to be written, and to be ended.

An item is one event at a time, see `windows/item_puts`: that of the last put that nothing ended.
Items that changed in a range of time, or came into the history since the last time, are looked at
with all of their history::

    written   10:00 put at E    10:05 put at F    10:20 deleted    10:31 put at G
    online    E is ended, at 10:05                F, at 10:20      G is written

An event that was ended is named by the put that made it. Which of several puts of one event that
was is of no matter, so the last of them stands for all.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from feast_dynamo_ext.duckdb_connection import connected
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.parquet.iceberg.table_schema import ROW_BITS
from feast_dynamo_ext.retrieval.changed_rows import POSITIONS_AT_ONCE, Changed
from feast_dynamo_ext.retrieval.eras import ORDER, key_columns, load_changes
from feast_dynamo_ext.retrieval.inputs import History
from feast_dynamo_ext.retrieval.windows.item_puts import by_item, puts
from feast_dynamo_ext.timestamps import HIGHEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from datetime import datetime

    import duckdb
    from numpy.typing import NDArray

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.plan import ViewPlan


@dataclass(frozen=True)
class EndedEvents:
    """Events that were ended.

    Attributes:
        positions: ascending positions of the puts that made them, in parts.
        written: for each of them when it was ended, in ticks of the history's column.
    """

    positions: Iterator[NDArray[np.int64]]
    written: NDArray[np.int64]


@contextlib.contextmanager
def changed_events(
    view: ViewPlan,
    tie_breaker: Sequence[str],
    source: ParquetSource,
    start: datetime,
    end: datetime,
    limits: Limits,
    not_before: datetime | None = None,
    since: int | None = None,
    scanned: Callable[[int], object] | None = None,
) -> Iterator[tuple[Changed, EndedEvents]]:
    """What changed from start to end, both included, to be used while the context lasts.

    Args:
        view: a plan with tombstones: which columns are keys, times and changes.
        tie_breaker: columns by which events of one entity and time are told apart.
        source: the history, all files of a snapshot.
        start: the first moment of the range.
        end: the last one; what happened later is not written yet.
        limits: memory, threads and spill folder of DuckDB.
        not_before: events that happened before that are counted as expired.
        since: rows that came into the history after this commit count too; None for none.
        scanned: called with numbers of rows as they are looked at.

    Raises:
        OfflineStoreError: the history cannot be read, or memory or disk were not enough.
    """
    rule = view.tombstones
    if rule is None:
        raise OfflineStoreError(f"Source {source.uri} is no history of a captured table.")
    whole = History.from_view(view, source)
    event = whole.axis.first_at_or_after(start), whole.axis.last_at_or_before(end)
    written = (
        whole.written_axis.first_at_or_after(start),
        whole.written_axis.last_at_or_before(end),
    )
    arrived = HIGHEST if since is None else (since + 1) << ROW_BITS
    ranges = {
        view.event_time: event,
        rule.written: written,
        **dict.fromkeys(source.internal, (arrived, None)),
    }
    is_changed = (
        f"(t BETWEEN {event[0]} AND {event[1]} OR w BETWEEN {written[0]} AND {written[1]} "
        f"OR q >= {arrived})"
    )
    items = source.item_keys
    plan = by_item(view, items)
    keys = key_columns(plan)
    # Where deletions are passed over, puts alone end each other.
    counts = "true" if rule.is_applied else "p = 1"
    oldest = None if not_before is None else whole.axis.first_at_or_after(not_before)
    with connected(limits, "Finding what changed") as duck:
        near = History.from_view(plan, source.holding_any(ranges))
        load_changes(
            duck, near, keys, f"{is_changed} AND {counts}", of_items=True, scanned=scanned
        )
        duck.execute("ALTER TABLE changes RENAME TO candidates")
        same = " AND ".join(f"c.{key} = h.{key}" for key in keys)
        of_changed = f"EXISTS (SELECT 1 FROM candidates AS c WHERE {same})"  # noqa: S608 - names of our own
        everything = History.from_view(plan, source)
        load_changes(duck, everything, keys, f"{of_changed} AND {counts}", of_items=True)
        duck.execute("ALTER TABLE changes RENAME TO item_changes")
        named = _name_events(duck, view, tie_breaker, source, items)
        _find(duck, keys, named, is_changed, event[1], oldest, has_eras=rule.is_applied)
        ((read, expired, kept, deletions),) = duck.execute(
            "SELECT (SELECT count(*) FROM candidates), "
            "(SELECT count(*) FROM living WHERE is_expired), "
            "(SELECT count(*) FROM living WHERE NOT is_expired), (SELECT count(*) FROM ended)"
        ).fetchall()
        ended = duck.execute("SELECT r, w FROM ended ORDER BY r").fetchnumpy()
        rows = np.asarray(ended["r"], dtype=np.int64)
        found = Changed(
            source,
            read,
            expired,
            kept,
            _positions(duck, "SELECT r FROM living WHERE NOT is_expired ORDER BY r"),
            deletions,
            iter(()),
        )
        yield found, EndedEvents(iter((rows,)), np.asarray(ended["w"], dtype=np.int64))


def _name_events(
    duck: duckdb.DuckDBPyConnection,
    view: ViewPlan,
    tie_breaker: Sequence[str],
    source: ParquetSource,
    items: tuple[str, ...],
) -> list[str]:
    """Make the table `named` of the puts that are events of an entity, by position.

    What tells events apart besides their items and times has a column each; their names are given.
    """
    joined = [column for _, column in view.keys]
    beside = [
        name
        for name in dict.fromkeys([*joined, *tie_breaker])
        if name not in items and name != view.event_time
    ]
    if not beside:
        duck.execute("CREATE TEMP TABLE named AS SELECT r FROM item_changes WHERE p = 1")
        return []
    plan = by_item(view, tuple(beside))
    names = key_columns(plan)
    wanted = "EXISTS (SELECT 1 FROM item_changes AS c WHERE c.r = h.r)"
    condition = f"p = 1 AND {wanted}"
    load_changes(duck, History.from_view(plan, source), names, condition, of_items=True)
    listed = ", ".join(f"{name} AS e{place}" for place, name in enumerate(names))
    duck.execute(f"CREATE TEMP TABLE named AS SELECT r, {listed} FROM changes")  # noqa: S608 - names of our own
    return [f"e{place}" for place in range(len(names))]


def _find(
    duck: duckdb.DuckDBPyConnection,
    keys: list[str],
    named: list[str],
    is_changed: str,
    last: int,
    oldest: int | None,
    *,
    has_eras: bool,
) -> None:
    """Make tables of the events to be written, `living`, and of those that were ended, `ended`."""
    within = f"PARTITION BY {', '.join(keys)} ORDER BY {ORDER}"
    counting = puts("item_changes", keys, has_eras=has_eras, known=False)
    columns = [f"c.{name}" for name in [*keys, "t", "w", "q", "r", "next_w"]]
    columns += [f"n.{name}" for name in named]
    duck.execute(
        f"CREATE TEMP TABLE states AS SELECT {', '.join(columns)}, l.r IS NOT NULL AS is_living "  # noqa: S608 - names of our own
        f"FROM (SELECT *, lead(w) OVER ({within}) AS next_w FROM item_changes) AS c "
        "JOIN named AS n ON n.r = c.r "
        f"LEFT JOIN (SELECT r FROM ({counting}) WHERE until = {HIGHEST}) AS l ON l.r = c.r "
        "WHERE c.p = 1"
    )
    too_old = "false" if oldest is None else f"t < {oldest}"
    duck.execute(
        f"CREATE TEMP TABLE living AS SELECT r, {too_old} AS is_expired FROM states "  # noqa: S608 - as above
        f"WHERE is_living AND t <= {last} AND {is_changed}"
    )
    event = [*keys, "t", *named]
    same = " AND ".join(f"s.{name} = l.{name}" for name in event)
    duck.execute(
        f"CREATE TEMP TABLE ended AS SELECT max(r) AS r, max(next_w) AS w FROM states AS s "  # noqa: S608 - as above
        f"WHERE NOT is_living AND NOT EXISTS (SELECT 1 FROM states AS l WHERE l.is_living "
        f"AND {same}) GROUP BY {', '.join(event)}"
    )


def _positions(duck: duckdb.DuckDBPyConnection, text: str) -> Iterator[NDArray[np.int64]]:
    for batch in duck.sql(text).to_arrow_reader(POSITIONS_AT_ONCE):
        yield np.asarray(batch.column(0).to_numpy(), dtype=np.int64)
