"""The matching of keys and times in DuckDB, in this process.

DuckDB sees narrow columns alone: keys in comparable types, times as integers, positions. It spills
to a folder of its own under `spill_folder` when the memory limit is reached, and never downloads
an extension.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa

from feast_dynamo_ext.errors import OfflineStoreError
from feast_dynamo_ext.offline.engine import NO_ROW, Newest
from feast_dynamo_ext.offline.keys import check_joinable
from feast_dynamo_ext.offline.narrow import CREATED, History, key_names
from feast_dynamo_ext.offline.source import ROW
from feast_dynamo_ext.offline.times import minus
from feast_dynamo_ext.offline.winner import winner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

    from numpy.typing import NDArray

    from feast_dynamo_ext.offline.entities import EntityRows
    from feast_dynamo_ext.offline.plan import ViewPlan
    from feast_dynamo_ext.offline.source import ParquetSource

POSITIONS_AT_ONCE = 1 << 17


@dataclass(frozen=True)
class DuckDbEngine:
    """Matches in DuckDB.

    Attributes:
        memory_limit: DuckDB's memory limit, for example ``2GB``; None for its own default (80% of
            the machine's memory).
        threads: threads; None for one a core.
        spill_folder: where it spills; None for the system's folder for temporary files.
    """

    memory_limit: str | None = None
    threads: int | None = None
    spill_folder: str | None = None

    def match(
        self,
        entities: EntityRows,
        view: ViewPlan,
        source: ParquetSource,
        *,
        created_by_entity_time: bool,
    ) -> NDArray[np.int64]:
        """See `Engine.match`."""
        history = History.of(view, source)
        rows = _entity_table(entities, view, history, source)
        found = np.full(len(entities.times), NO_ROW, dtype=np.int64)
        with self._connection() as connection:
            connection.register("entity_rows", rows)
            connection.execute("CREATE TEMP TABLE e AS FROM entity_rows")
            _load(connection, history, _asked_for(view))
            known = created_by_entity_time and view.created_time is not None
            matched = connection.execute(
                _match_known_sql(view) if known else _match_sql(view)
            ).fetchnumpy()
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
        history = replace(History.of(view, source), scanned=scanned)
        with self._connection() as connection:
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
        history = History.of(view, source)
        with self._connection() as connection:
            _load(connection, history, history.between(start, end))
            within = connection.execute("SELECT r FROM h ORDER BY r").fetchnumpy()["r"]
        return np.asarray(within, dtype=np.int64)

    @contextlib.contextmanager
    def _connection(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._spill_folder() as spill:
            config: dict[str, Any] = {
                "temp_directory": spill,
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
            }
            if self.memory_limit is not None:
                config["memory_limit"] = self.memory_limit
            if self.threads is not None:
                config["threads"] = str(self.threads)
            try:
                with duckdb.connect(":memory:", config=config) as connection:
                    yield connection
            except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
                raise OfflineStoreError(
                    f"The join ran out of memory or of disk at {spill}: {error}. Raise "
                    "`memory_limit`, or point `spill_folder` to a larger disk."
                ) from error

    def _spill_folder(self) -> tempfile.TemporaryDirectory[str]:
        try:
            return tempfile.TemporaryDirectory(prefix="feast-dynamo-", dir=self.spill_folder)
        except OSError as error:
            raise OfflineStoreError(
                f"There can be no folder for what does not fit in memory: {error}. Point "
                "`spill_folder` of the offline store to a folder that is there and can be written."
            ) from error


def _entity_table(
    entities: EntityRows, view: ViewPlan, history: History, source: ParquetSource
) -> pa.Table:
    """The entity rows as the narrow columns k0, k1 ..., hi, lo, known and r."""
    entities.require([column for column, _ in view.keys], view.view)
    columns: dict[str, Any] = {}
    if not view.keys:
        columns["k0"] = np.zeros(len(entities.times), dtype=np.int64)
    for name, (ours, theirs) in zip(key_names(view), view.keys, strict=bool(view.keys)):
        check_joinable(
            ours, entities.table.column(ours).type, theirs, source.schema.field(theirs).type
        )
        columns[name] = entities.key(ours, view.view)
    axis = history.axis
    columns["hi"] = axis.floor(entities.times, entities.unit)
    columns["lo"] = (
        minus(axis.ceil(entities.times, entities.unit), axis.length(view.ttl))
        if view.ttl
        else np.full(len(entities.times), np.iinfo(np.int64).min)
    )
    if history.created_axis is not None:
        columns["known"] = history.created_axis.floor(entities.times, entities.unit)
    columns["r"] = np.arange(len(entities.times), dtype=np.int64)
    return pa.table(columns)


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
        raise (failures[0] if failures else error) from error
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
