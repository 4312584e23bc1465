"""What changed in a captured table in a range of time: rows to be written, and to be deleted.

A row counts where it happened or was written in the range, or came into the history since the
last time: captured rows come late, and what came must go online, whenever it happened. Of each
entity that changed the newest row that is alive is to be written; where an item was ended and none
is alive, the entity's row is to be deleted. What did not change is online already, or not wanted.

What ends an item after the range counts too: nobody wants a row online that is known to be gone.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from feast_dynamo_ext.columns import PUT
from feast_dynamo_ext.duckdb_connection import Limits, connected
from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.parquet.iceberg.table_schema import ROW_BITS
from feast_dynamo_ext.retrieval.eras import key_columns, load_changes, numbered
from feast_dynamo_ext.retrieval.inputs import History
from feast_dynamo_ext.timestamps import HIGHEST

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    import duckdb
    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.plan import ViewPlan

POSITIONS_AT_ONCE = 1 << 17

RANK = "row(t, w, q, r)"
"""Of puts that are alive: as of any history, the newest event time wins, then what was written
last. Puts of one era ascend in both."""

WRITTEN = "row(w, q, p, t)"
"""The order of writing; see `eras.ORDER`."""


@dataclass(frozen=True)
class Changed:
    """What is to be done.

    Attributes:
        source: where positions count.
        read: rows that changed.
        expired: newest rows that are too old to be written.
        rows: rows to be written.
        positions: their ascending positions, in parts.
        deletions: how many entities' rows are to be deleted.
        deleted: ascending positions of rows that say so, in parts; to be read after `positions`.
    """

    source: ParquetSource
    read: int
    expired: int
    rows: int
    positions: Iterator[NDArray[np.int64]]
    deletions: int
    deleted: Iterator[NDArray[np.int64]]


@contextlib.contextmanager
def changed_rows(
    view: ViewPlan,
    source: ParquetSource,
    start: datetime,
    end: datetime,
    limits: Limits,
    not_before: datetime | None = None,
    since: int | None = None,
    scanned: Callable[[int], object] | None = None,
) -> Iterator[Changed]:
    """What changed from start to end, both included, to be used while the context lasts.

    Args:
        view: a plan with tombstones: which columns are keys, times and changes.
        source: the history, all files of a snapshot.
        start: the first moment of the range.
        end: the last one; what happened later is not written yet.
        limits: memory, threads and spill folder of DuckDB.
        not_before: newest rows that happened before that are counted as expired.
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
    changed = source.holding_any(ranges)
    keys = key_columns(view)
    is_changed = (
        f"(h.t BETWEEN {event[0]} AND {event[1]} OR h.w BETWEEN {written[0]} AND {written[1]} "
        f"OR h.q >= {arrived})"
    )
    with connected(limits, "Finding what changed") as duck:
        load_changes(duck, History.from_view(view, changed), keys, is_changed, scanned=scanned)
        duck.execute("ALTER TABLE changes RENAME TO candidates")
        if rule.is_applied and not source.holds_only(rule.change, PUT):
            _find_ends(duck, view, source, keys, event[1])
        else:
            duck.execute("CREATE TEMP TABLE all_ends AS SELECT * FROM candidates LIMIT 0")
        oldest = None if not_before is None else whole.axis.first_at_or_after(not_before)
        find_winners(duck, keys, event[1], oldest, is_applied=rule.is_applied)
        counts = duck.execute(
            "SELECT (SELECT count(*) FROM candidates), "
            "(SELECT count(*) FROM winners WHERE is_expired), "
            "(SELECT count(*) FROM winners WHERE NOT is_expired), (SELECT count(*) FROM deleted)"
        ).fetchall()
        ((read, expired, kept, deletions),) = counts
        yield Changed(
            changed,
            read,
            expired,
            kept,
            _positions(duck, "SELECT r FROM winners WHERE NOT is_expired ORDER BY r"),
            deletions,
            _positions(duck, "SELECT r FROM deleted ORDER BY r"),
        )


def _find_ends(
    duck: duckdb.DuckDBPyConnection,
    view: ViewPlan,
    source: ParquetSource,
    keys: list[str],
    last: int,
) -> None:
    """Make the table of what ends items that changed.

    Only what was written since the first of the changes can end one of them. To a put of the
    future, though, one of long before may be what it was moved back from.
    """
    ((first, ahead),) = duck.execute(
        f"SELECT min(w), count(*) FILTER (p = 1 AND t > {last}) FROM candidates"  # noqa: S608 - names of our own
    ).fetchall()
    rule = view.tombstones
    since = source
    if first is not None and not ahead and rule is not None:
        since = source.holding_any({rule.written: (first, None)})
    same = " AND ".join(f"c.{key} = h.{key}" for key in keys)
    is_wanted = f"EXISTS (SELECT 1 FROM candidates AS c WHERE {same})"  # noqa: S608 - as above
    if first is not None and not ahead:
        is_wanted += f" AND h.w >= {first}"
    load_changes(duck, History.from_view(view, since), keys, is_wanted)
    duck.execute(
        f"CREATE TEMP TABLE all_ends AS SELECT * FROM ({numbered('changes', keys)}) WHERE ends"  # noqa: S608 - as above
    )


def find_winners(
    duck: duckdb.DuckDBPyConnection,
    keys: list[str],
    last: int,
    oldest: int | None,
    *,
    is_applied: bool,
) -> None:
    """Make tables of the rows to be written, `winners`, and of those that delete, `deleted`.

    Args:
        duck: has the tables `candidates`, of rows that changed, and `all_ends`, of those that end
            items: columns as `History.changes` has them, and positions r.
        keys: names of the key columns.
        last: the last event time that may be written.
        oldest: the first that is not expired; None where nothing expires.
        is_applied: whether deletions count.
    """
    listed = ", ".join(keys)
    duck.execute(
        f"CREATE TEMP TABLE last_ends AS SELECT {listed}, max({WRITTEN}) AS e FROM all_ends "  # noqa: S608 - names of our own
        f"GROUP BY {listed}"
    )
    too_old = "false" if oldest is None else f"max(t) < {oldest}"
    same = " AND ".join(f"c.{key} = x.{key}" for key in keys)
    columns = ", ".join(f"c.{name}" for name in [*keys, "t", "w", "p", "q", "r"])
    duck.execute(
        f"CREATE TEMP TABLE winners AS SELECT {listed}, max_by(r, {RANK}) AS r, "  # noqa: S608 - names of our own
        f"{too_old} AS is_expired FROM ("
        f"SELECT {columns} FROM candidates AS c LEFT JOIN last_ends AS x ON {same} "
        f"WHERE c.p = 1 AND c.t <= {last} AND (x.e IS NULL OR row(c.w, c.q, c.p, c.t) >= x.e)"
        f") GROUP BY {listed}"
    )
    if not is_applied:
        duck.execute("CREATE TEMP TABLE deleted AS SELECT r FROM winners LIMIT 0")
        return
    # Also where the newest row is too old to be written: the one before it must not stay.
    duck.execute(
        f"CREATE TEMP TABLE deleted AS SELECT max_by(r, {WRITTEN}) AS r FROM ("  # noqa: S608 - as above
        f"SELECT {columns} FROM candidates AS c SEMI JOIN all_ends AS x ON {same} "
        "AND c.w = x.w AND c.q = x.q AND c.p = x.p AND c.t IS NOT DISTINCT FROM x.t"
        f") AS c ANTI JOIN (SELECT * FROM winners WHERE NOT is_expired) AS x ON {same} "
        f"GROUP BY {listed}"
    )


def _positions(duck: duckdb.DuckDBPyConnection, text: str) -> Iterator[NDArray[np.int64]]:
    for batch in duck.sql(text).to_arrow_reader(POSITIONS_AT_ONCE):
        yield np.asarray(batch.column(0).to_numpy(), dtype=np.int64)
