"""The matching of keys and times in DuckDB, in this process.

DuckDB sees narrow columns alone: keys in comparable types, times as integers, positions. It spills
to a folder of its own under `spill_folder` when the memory limit is reached, and never downloads
an extension.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import duckdb
import numpy as np

from feast_dynamo_ext.duckdb_connection import connected
from feast_dynamo_ext.parquet.source import ROW
from feast_dynamo_ext.retrieval.engines.base import NO_ROW, Newest
from feast_dynamo_ext.retrieval.engines.history import CREATED, History, key_names
from feast_dynamo_ext.retrieval.engines.one_pass import match
from feast_dynamo_ext.retrieval.engines.one_pass.slots import MatchInput, Order
from feast_dynamo_ext.retrieval.engines.sql import winner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from numpy.typing import NDArray

    from feast_dynamo_ext.parquet.source import ParquetSource
    from feast_dynamo_ext.retrieval.engines.one_pass.slots import Orders
    from feast_dynamo_ext.retrieval.entity_rows.rows import EntityRows
    from feast_dynamo_ext.retrieval.plan import ViewPlan


LIMIT = re.compile(r"([\d.]+) ?([KMGT])(i?)B")
POSITIONS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class DuckDbEngine:
    """Matches in DuckDB.

    Attributes:
        memory_limit: DuckDB's memory limit, for example ``2GB``; None for its own default (80% of
            the machine's memory).
        threads: threads; None for one a core.
        spill_folder: where it spills; None for the system's folder for temporary files.
        plan: how it matches: ``stream``, ``duckdb``, or ``auto`` for what suits the data.
    """

    memory_limit: str | None = None
    threads: int | None = None
    spill_folder: str | None = None
    plan: str = "auto"

    @property
    def workers(self) -> int:
        """See `Engine.workers`."""
        return self.threads or os.cpu_count() or 1

    @property
    def entity_bytes(self) -> int:
        """See `Engine.entity_bytes`."""
        if self.memory_limit is not None:
            return _bytes(self.memory_limit)
        return _default_bytes() // 2

    def explain(
        self, entities: EntityRows, view: ViewPlan, source: ParquetSource
    ) -> tuple[str, str]:
        """See `Engine.explain`."""
        if self.plan == "duckdb":
            return "duckdb", "`join_plan` says so: an ASOF join in DuckDB, which spills to disk"
        history = History.from_view(view, source)
        order = Order.from_input(
            MatchInput.from_entities(entities, history, created_by_entity_time=False)
        )
        chosen = "`join_plan` says so: " if self.plan == "stream" else ""
        return "stream", (
            f"{chosen}one pass over {source.rows:,} rows; {order.keys.size:,} keys are found by "
            f"{order.keys.ways}, and their entity rows, up to {order.most:,} a key, by "
            f"{order.way}"
        )

    def match(
        self,
        entities: EntityRows,
        view: ViewPlan,
        source: ParquetSource,
        *,
        created_by_entity_time: bool,
        threads: int | None = None,
        orders: Orders | None = None,
    ) -> NDArray[np.int64]:
        """See `Engine.match`."""
        history = History.from_view(view, source)
        asked = MatchInput.from_entities(
            entities, history, created_by_entity_time=created_by_entity_time
        )
        if self.plan != "duckdb":
            return match.match(asked, history, threads or self.workers, orders)
        found = np.full(len(asked.latest), NO_ROW, dtype=np.int64)
        with connected(self, "The join") as connection:
            connection.register("entity_rows", asked.table())
            connection.execute("CREATE TEMP TABLE e AS FROM entity_rows")
            _load(connection, history, _asked_for(view))
            sql = _match_sql(view) if asked.known is None else _match_known_sql(view)
            matched = connection.execute(sql).fetchnumpy()
        found[matched["entity"]] = matched["position"]
        return found

    @contextlib.contextmanager
    def newest(
        self,
        view: ViewPlan,
        source: ParquetSource,
        start: datetime,
        end: datetime,
        not_before: datetime | None = None,
        scanned: Callable[[int], object] | None = None,
    ) -> Iterator[Newest]:
        """See `Engine.newest`."""
        source = source.within(view.event_time, start, end)
        history = replace(History.from_view(view, source), scanned=scanned)
        with connected(self, "The join") as connection:
            keys = ", ".join(key_names(view))
            _read_history(
                connection,
                history,
                f"CREATE TEMP TABLE newest AS SELECT {winner(history, start, end)}, "  # noqa: S608 - our own column names
                f"count(*) AS n FROM (SELECT *, {ROW} AS r FROM history) AS h "
                f"WHERE {_usable(view)} AND {history.between(start, end)} GROUP BY {keys}",
            )
            alive = f"t >= {history.axis.first_at_or_after(not_before)}" if not_before else "true"
            ((read, keys_seen, kept),) = connection.execute(
                f"SELECT coalesce(sum(n), 0), count(*), count(*) FILTER ({alive}) FROM newest"  # noqa: S608 - as above
            ).fetchall()
            rows = connection.sql(
                f"SELECT r FROM newest WHERE {alive} ORDER BY r"  # noqa: S608 - as above
            ).to_arrow_reader(POSITIONS_AT_ONCE)
            positions = (batch.column(0).to_numpy() for batch in rows)
            yield Newest(source, int(read), keys_seen - kept, kept, positions)

    def within(
        self, view: ViewPlan, source: ParquetSource, start: datetime | None, end: datetime | None
    ) -> NDArray[np.int64]:
        """See `Engine.within`."""
        history = History.from_view(view, source)
        with connected(self, "The join") as connection:
            _load(connection, history, history.between(start, end))
            within = connection.execute("SELECT r FROM h ORDER BY r").fetchnumpy()["r"]
        return np.asarray(within, dtype=np.int64)


@functools.cache
def _default_bytes() -> int:
    """DuckDB's own limit: 80% of the machine's memory, or of what its container may have."""
    with duckdb.connect(":memory:") as connection:
        ((limit,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    return _bytes(limit)


def _bytes(limit: str) -> int:
    """A memory limit as DuckDB reads it and says it: KB is 1,000 bytes, KiB 1,024."""
    ((number, prefix, binary),) = LIMIT.findall(limit)
    return int(float(number) * (1024 if binary else 1000) ** (1 + "KMGT".index(prefix)))


def _load(connection: duckdb.DuckDBPyConnection, history: History, condition: str) -> None:
    """Read the history's narrow columns into table h: rows with all keys that meet a condition."""
    columns = ", ".join([*key_names(history.view), "t", "c"])
    _read_history(
        connection,
        history,
        f"CREATE TEMP TABLE h AS SELECT {columns}, {ROW} AS r FROM history AS h "  # noqa: S608 - our own column names
        f"WHERE {_usable(history.view)} AND {condition}",
    )


def _read_history(connection: duckdb.DuckDBPyConnection, history: History, sql: str) -> None:
    """Run a statement that reads the narrow columns, as table `history`, once."""
    failures: list[Exception] = []
    connection.register("history", history.reader(failures))
    try:
        connection.execute(sql)
    except duckdb.Error as error:
        # DuckDB wraps what a reader raises; the reader's own error is the one that helps.
        helps = failures[0] if failures else error
        raise helps from helps.__cause__
    connection.unregister("history")


def _match_sql(view: ViewPlan) -> str:
    """First the newest time each entity row sees, then the winner among the rows of that time."""
    keys = "".join(f", e.{key}" for key in key_names(view))
    return (
        f"WITH seen AS (SELECT e.r AS entity{keys}, h.t FROM e ASOF JOIN h "  # noqa: S608 - our own column names
        f"ON {_equal('e', 'h', view)} AND e.hi >= h.t WHERE h.t >= e.lo) "
        f"SELECT entity, arg_max(h.r, ({CREATED}, h.r)) AS position FROM seen JOIN h "
        f"ON {_equal('seen', 'h', view)} AND seen.t = h.t GROUP BY entity"
    )


def _match_known_sql(view: ViewPlan) -> str:
    """Among the rows in range that were created by the entity row's time, the winner."""
    return (
        f"SELECT e.r AS entity, arg_max(h.r, (h.t, {CREATED}, h.r)) AS position FROM e JOIN h "  # noqa: S608 - our own column names
        f"ON {_equal('e', 'h', view)} AND h.t <= e.hi AND h.t >= e.lo AND h.c <= e.known "
        "GROUP BY e.r"
    )


def _usable(view: ViewPlan) -> str:
    """The condition that a row has an event time and all keys."""
    return " AND ".join(f"h.{name} IS NOT NULL" for name in ["t", *key_names(view)])


def _asked_for(view: ViewPlan) -> str:
    """The condition that some entity row asks for a row's keys, at its time or later."""
    return f"t <= (SELECT max(hi) FROM e) AND EXISTS (FROM e WHERE {_equal('e', 'h', view)})"  # noqa: S608 - our own column names


def _equal(left: str, right: str, view: ViewPlan) -> str:
    return " AND ".join(f"{left}.{key} = {right}.{key}" for key in key_names(view))
