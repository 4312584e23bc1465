"""Where items may be deleted: which rows of a history are alive at a time.

An item of a captured table has one state at a time, and so has its entity. Rows are taken in the
order of writing. A row **ends** the item's state before it where it is a deletion, or where it is
a put of an earlier event time than the put just before it: the item was moved back. What lies
between two ends is an era::

    written   10:00        10:05        10:20 deleted        10:31
    event      9:58        10:04                              10:15
              put a        put b     |  ends            |    put c
    era         0            0       |   1                     1

A row is alive from its event time and the begin of its era on, until the era ends: c at 10:20, not
at 10:15, when b still was. So at a time the rows of one era alone count, and of these, as of any
history, the newest event time wins. The era is a further join key: that of a row says how many
ends were written up to it, that of an entity row how many up to its time. What ends an item later
is not known by it: a training set sees a deletion from that moment on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from feast_dynamo_ext.duckdb_connection import connected, registered
from feast_dynamo_ext.parquet.source import ROW
from feast_dynamo_ext.retrieval.inputs import EraKeys, History, MatchInput

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime

    import duckdb
    from numpy.typing import NDArray

    from feast_dynamo_ext.duckdb_connection import Limits
    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.inputs import EntityRows
    from feast_dynamo_ext.retrieval.plan import ViewPlan

ORDER = "w, q, p, t, r"
"""Of writing: time, the table's sequence, then what rows hold."""


def with_eras(history: History, entities: EntityRows, limits: Limits) -> History:
    """A history with the eras of its rows and of entity rows, where deletions count in it.

    Raises:
        OfflineStoreError: it cannot be read, or memory or disk were not enough.
    """
    if not history.view.has_eras:
        return history
    rows = MatchInput.from_entities(entities, history, created_by_entity_time=False).table()
    moments = history.written_axis.floor(entities.times, entities.unit)
    rows = rows.append_column("moment", [moments])
    keys = key_columns(history.view)
    with connected(limits, "Finding what was deleted") as duck:
        with registered(duck, "entity_rows", rows):
            duck.execute("CREATE TEMP TABLE e AS FROM entity_rows")
        is_wanted = f"EXISTS (SELECT 1 FROM e WHERE {_equal('e', 'h', keys)})"  # noqa: S608 - names of our own
        _load_numbered(duck, history, keys, is_wanted)
        listed = ", ".join(keys)
        later = duck.execute(
            "SELECT r, n FROM numbered WHERE p = 1 AND n > 0 ORDER BY r"
        ).fetchnumpy()
        of_entities = duck.execute(
            f"SELECT e.r, a.n FROM e ASOF JOIN (SELECT {listed}, w, max(n) AS n FROM numbered "  # noqa: S608 - as above
            f"WHERE ends GROUP BY {listed}, w) AS a ON {_equal('e', 'a', keys)} "
            "AND e.moment >= a.w"
        ).fetchnumpy()
    eras = np.zeros(len(entities.times), dtype=np.int64)
    eras[_whole(of_entities["r"])] = of_entities["n"]
    return replace(history, eras=EraKeys(_whole(later["r"]), _whole(later["n"]), eras))


def gone_by(
    view: ViewPlan, source: ParquetSource, moment: datetime | None, limits: Limits
) -> NDArray[np.int64]:
    """Ascending positions of the puts that are not alive at a time, or after all; see `sql`.

    Args:
        view: a plan whose keys are those of items.
        source: the history, with all rows of the items.
        moment: the time; None for after all.
        limits: memory, threads and spill folder of DuckDB.

    Raises:
        OfflineStoreError: as `with_eras`.
    """
    history = History.from_view(view, source)
    keys = key_columns(view)
    listed = ", ".join(keys)
    until = "true" if moment is None else f"w <= {history.written_axis.last_at_or_before(moment)}"
    with connected(limits, "Finding what was deleted") as duck:
        _load_numbered(duck, history, keys, "true", of_items=True)
        gone = duck.execute(
            f"SELECT h.r FROM numbered AS h LEFT JOIN (SELECT {listed}, max(n) AS n FROM numbered "  # noqa: S608 - names of our own
            f"WHERE ends AND {until} GROUP BY {listed}) AS a ON {_equal('a', 'h', keys)} "
            "WHERE h.p = 1 AND h.n <> coalesce(a.n, 0) ORDER BY h.r"
        ).fetchnumpy()
    return _whole(gone["r"])


def numbered(changes: str, keys: list[str]) -> str:
    """The changes of items with their eras n, and whether each ends a state.

    Args:
        changes: the relation of `History.changes`, with positions r.
        keys: names of the key columns.
    """
    within = f"PARTITION BY {', '.join(keys)} ORDER BY {ORDER}"
    return (
        f"SELECT *, CAST(sum(CAST(ends AS INTEGER)) OVER ({within} ROWS UNBOUNDED PRECEDING) "  # noqa: S608 - names of our own
        f"AS BIGINT) AS n\n  FROM (SELECT *, p = 0 OR coalesce(lag(p) OVER ({within}) = 1 "
        f"AND t < lag(t) OVER ({within}), false) AS ends FROM {changes}) AS h"
    )


def load_changes(
    duck: duckdb.DuckDBPyConnection,
    history: History,
    keys: list[str],
    condition: str,
    *,
    of_items: bool = False,
    scanned: Callable[[int], object] | None = None,
) -> None:
    """Make the table `changes`: rows that count, meet a condition of ``h`` and have all keys.

    Raises:
        OfflineStoreError: the history cannot be read.
    """
    failures: list[Exception] = []
    read = replace(history, scanned=scanned)
    has_keys = " AND ".join(f"h.{key} IS NOT NULL" for key in keys)
    columns = ", ".join(f"h.{name}" for name in [*keys, "t", "w", "p", "q"])
    reader = read.changes(failures, of_items=of_items)
    with registered(duck, "history", reader, failures):
        duck.execute(
            f"CREATE TEMP TABLE changes AS SELECT * FROM (SELECT {columns}, h.{ROW} AS r "  # noqa: S608 - names of our own
            f"FROM history AS h) AS h WHERE p IS NOT NULL AND {has_keys} AND {condition}"
        )


def _load_numbered(
    duck: duckdb.DuckDBPyConnection,
    history: History,
    keys: list[str],
    condition: str,
    *,
    of_items: bool = False,
) -> None:
    """Make the table `numbered` of the items that meet a condition of columns of ``h``."""
    load_changes(duck, history, keys, condition, of_items=of_items)
    duck.execute(f"CREATE TEMP TABLE numbered AS {numbered('changes', keys)}")


def key_columns(view: ViewPlan) -> list[str]:
    """Names of the keys of items: all but the era."""
    return [f"k{index}" for index in range(max(1, len(view.keys)))]


def _equal(left: str, right: str, keys: list[str]) -> str:
    return " AND ".join(f"{left}.{key} = {right}.{key}" for key in keys)


def _whole(values: NDArray[np.generic]) -> NDArray[np.int64]:
    return np.asarray(values, dtype=np.int64)
