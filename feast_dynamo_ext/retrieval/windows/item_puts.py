"""Events that are items of a captured table: of which moments each put is the item's event.

An item has one state at a time, so it is one event: the last put of its era, see `eras`. Where
only what was written by a moment counts, it is the last put by then::

    written   10:00 put a    10:05 put b    10:20 deleted    10:31 put c
    counts
      else                   b: until 10:20                  c: from 10:20 on
      known   a: 10:00       b: 10:05                        c: from 10:31 on
                to 10:05       to 10:20

Where deletions are passed over there is one era, and its last put is the event.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from feast_dynamo_ext.arrow_types import is_time
from feast_dynamo_ext.duckdb_connection import connected, registered
from feast_dynamo_ext.retrieval.eras import ORDER, key_columns, load_changes, numbered
from feast_dynamo_ext.retrieval.inputs import History, texts_as_bytes
from feast_dynamo_ext.retrieval.plan import without_eras
from feast_dynamo_ext.timestamps import HIGHEST, LOWEST

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.plan import ViewPlan


@dataclass(frozen=True)
class CountingPuts:
    """Which of some rows are events, and when.

    Attributes:
        counts: whether each row is one at any moment.
        since: of those that are, the first moment at which they count.
        until: the moment from which they do not any more.
    """

    counts: NDArray[np.bool_]
    since: NDArray[np.int64]
    until: NDArray[np.int64]


def items_of(view: ViewPlan, source: ParquetSource) -> tuple[str, ...]:
    """The columns by which rows of a captured table are of one item."""
    breaker = [name for name, _ in view.derived.tie_breaker] if view.derived is not None else []
    joined = [theirs for _, theirs in view.keys]
    return source.item_keys or tuple(dict.fromkeys([*joined, *breaker]))


def by_item(view: ViewPlan, items: tuple[str, ...]) -> ViewPlan:
    """A plan of which the keys are those of items."""
    plain = without_eras(replace(view, derived=None, ttl=None))
    return replace(plain, keys=tuple((name, name) for name in items), key_kinds=())


def counting_puts(
    history: History,
    rows: NDArray[np.int64],
    entity_keys: tuple[pa.Array, ...],
    limits: Limits,
    *,
    known: bool,
) -> CountingPuts:
    """Of puts at some positions those that are events, and when.

    Args:
        history: of a captured table.
        rows: positions of puts.
        entity_keys: join keys of the entity rows, as they are compared.
        limits: memory, threads and spill folder of DuckDB.
        known: whether only what was written by a moment counts at it.

    Raises:
        OfflineStoreError: the history cannot be read, or memory or disk were not enough.
    """
    view = history.view
    plan = by_item(view, items_of(view, history.source))
    keys = key_columns(plan)
    with connected(limits, "Finding which items count") as duck:
        condition = "true"
        joined = _joined(view, plan, history.source)
        if joined:
            names = list(joined)
            wanted = pa.table([texts_as_bytes(key) for key in entity_keys], names=names)
            with registered(duck, "entity_rows", wanted):
                duck.execute("CREATE TEMP TABLE e AS SELECT DISTINCT * FROM entity_rows")
            same = " AND ".join(f"e.{name} = h.{name}" for name in names)
            condition = f"EXISTS (SELECT 1 FROM e WHERE {same})"  # noqa: S608 - names of our own
        load_changes(duck, History.from_view(plan, history.source), keys, condition, of_items=True)
        counting = puts("changes", keys, has_eras=view.has_eras, known=known)
        with registered(duck, "wanted", pa.table({"r": rows})):
            found = duck.execute(
                f"SELECT r, since, until FROM ({counting}) SEMI JOIN wanted USING (r) ORDER BY r"  # noqa: S608 - names of our own
            ).fetchnumpy()
    position, since, until = (
        np.asarray(found[name], dtype=np.int64) for name in ("r", "since", "until")
    )
    place = np.searchsorted(position, rows)
    counts = position.take(place, mode="clip") == rows if len(position) else rows < 0
    place = place[counts]
    return CountingPuts(counts, since.take(place), until.take(place))


def _joined(view: ViewPlan, plan: ViewPlan, source: ParquetSource) -> list[str]:
    """Names of the items' keys that are the view's join keys, in the order of these.

    None where a join key is no key of items, whose last put may then have another; nor where one
    is a time, of which join keys have whole seconds.
    """
    names = dict(zip((theirs for _, theirs in plan.keys), key_columns(plan), strict=True))
    columns = [theirs for _, theirs in view.keys]
    if any(name not in names or is_time(source.schema.field(name).type) for name in columns):
        return []
    return [names[name] for name in columns]


def puts(changes: str, keys: list[str], *, has_eras: bool, known: bool) -> str:
    """The puts that count at some moment: their columns, since when, and until when.

    Args:
        changes: the relation of `History.changes`, with positions r.
        keys: names of the columns of items' keys.
        has_eras: whether deletions end items.
        known: whether only what was written by a moment counts at it.
    """
    listed = ", ".join(keys)
    rows = f"SELECT *, 0 AS n, false AS ends FROM {changes}"  # noqa: S608 - names of our own
    if has_eras:
        rows = numbered(changes, keys)
    within = f"PARTITION BY {listed} ORDER BY {ORDER}"
    in_era = f"PARTITION BY {listed}, n, p ORDER BY {ORDER}"
    limits = (
        f"coalesce(max(CASE WHEN ends THEN w END) OVER ({within} ROWS UNBOUNDED PRECEDING), "
        f"{LOWEST}) AS begins, "
        f"coalesce(min(CASE WHEN ends THEN w END) OVER ({within} ROWS BETWEEN 1 FOLLOWING AND "
        f"UNBOUNDED FOLLOWING), {HIGHEST}) AS ended, lead(w) OVER ({in_era}) AS later"
    )
    since = "greatest(begins, w)" if known else "begins"
    until = f"least(ended, coalesce(later, {HIGHEST}))" if known else "ended"
    is_last = "true" if known else "later IS NULL"
    return (
        f"SELECT *, {since} AS since, {until} AS until FROM (SELECT *, {limits} FROM ({rows}) "  # noqa: S608 - names of our own
        f"AS h) AS h WHERE p = 1 AND {is_last} AND {since} < {until}"
    )
